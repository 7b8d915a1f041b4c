"""Two processes save in threads beside the training: what fails on one is raised on both, and nobody hangs."""

import errno
import json
import os
import threading
import time
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from herd.errors import CapacityError
from herd.parallel.chunk import LocalShard
from herd.parallel.launch import open_run_together
from herd.parallel.layout import check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.run import read_metrics
from herd.train import checkpoint
from herd.train.objectives import next_token
from herd.train.saving import SavingSettings
from herd.train.stability import StabilitySettings
from herd.train.trainer import Trainer
from tests.parallel.processes import run_on_meshes
from tests.train.tiny import TinySettings, tiny_loader, tiny_model

FAULTS = [("_make_room", 0), ("write_data", 1), ("_hash", 1), ("_seal", 0)]
NUM_STEPS = 20


def sharded():
    whole = tiny_model(tie_word_embeddings=False)
    layout = check(whole.config, settings := ParallelSettings(shard=2), 2, row_tokens=32)
    model = ParallelModel(whole.config, settings, Mesh(layout)).materialize()
    model.fill(whole.named_parameters())
    return model


def run(folder, save_seconds, objective=next_token, num_steps=NUM_STEPS, **options):
    model, loader = sharded(), tiny_loader(rank=dist.get_rank(), world=2)
    options = {"saving": SavingSettings(save_seconds=save_seconds)} | options
    with open_run_together(folder, stage="tiny", settings=TinySettings(), inputs={}) as found:
        Trainer(model, objective, found, **options).fit(loader, num_steps)


@contextmanager
def full_at(step, owner, name):
    """In the state after so many steps there is no room for what this function writes."""
    inner, save, at = getattr(owner, name), checkpoint.save_state, 0

    def save_state(*what):
        nonlocal at
        at = what[1]
        return save(*what)

    def full(*what):
        if at == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return inner(*what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", save_state)
        patch.setattr(owner, name, full)
        yield


def fails_on_one(name, culprit, folder):
    def unhurried(*parts):
        time.sleep(0.03)
        return next_token(*parts)

    how = {"save_seconds": 1e6, "stability": StabilitySettings(action="rollback", rollback_steps=6)}
    owner = dcp.FileSystemWriter if name == "write_data" else checkpoint
    spoiled = full_at(6, owner, name) if dist.get_rank() == culprit else nullcontext()
    with spoiled, pytest.raises(CapacityError) as caught:
        run(folder / "run", objective=unhurried, **how)
    (folder / f"error-{dist.get_rank()}.txt").write_text(str(caught.value))
    if dist.get_rank() == 0:
        (folder / "left.json").write_text(json.dumps([states(folder), len(read_metrics(folder / "run"))]))
    dist.barrier()
    run(folder / "run", **how)


def goes_on(folder):
    began, may_end, passes = threading.Event(), threading.Event(), []
    save = checkpoint.save_state

    def slow(*what):
        if what[1] == 3:
            began.set()
            assert may_end.wait(30)
        return save(*what)

    def objective(*parts):
        if began.is_set() and not may_end.is_set():
            passes.append(1)
            may_end.set()
        return next_token(*parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", slow)
        run(folder / "run", 1e-6, objective, num_steps=6)
    assert passes  # a forward pass, with its collectives, ran while the state was being written


def copies(folder):
    rank, saver = dist.get_rank(), checkpoint.StateSaver(folder / "state")
    tensors = {"master/a": LocalShard(torch.full((2,), float(rank)), (2 * rank,), (4,))}
    found = {"master/a": torch.empty(4)}
    for step, expected in ((1, [0.0, 0.0, 1.0, 1.0]), (2, [7.0] * 4)):
        saver.save(step, tensors)
        tensors["master/a"].local.fill_(7.0)  # the training goes on
        saver.finish()
        assert checkpoint.load_state(folder / "state", found) and found["master/a"].tolist() == expected


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """All of it by the same two processes, for each takes seconds to start."""
    meshes = [(2, copies, ()), (2, goes_on, ()), *((2, fails_on_one, fault) for fault in FAULTS)]
    return run_on_meshes(meshes, tmp_path_factory.mktemp("meshes"))


def states(folder):
    return sorted(state.name for state in (folder / "run/state").iterdir())


def test_what_is_saved_are_the_blocks_as_they_were_when_the_save_began(folders):
    assert sorted(state.name for state in (folders[0] / "state").iterdir()) == ["step-00000001", "step-00000002"]


def test_both_train_on_while_their_state_is_written(folders):
    assert states(folders[1]) == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[name for name, _ in FAULTS])
def test_what_fails_in_one_process_is_raised_in_both_at_a_step_and_the_run_goes_on_from_the_state_before(
    folders, number
):
    folder = folders[2 + number]
    for rank in range(2):
        text = (folder / f"error-{rank}.txt").read_text()
        assert "after step 6 could not be saved (" in text and "No space left" in text
    left, steps = json.loads((folder / "left.json").read_text())
    assert left == ["step-00000000", "step-00000002"] and 6 < steps < NUM_STEPS
    assert states(folder)[-1] == f"step-{NUM_STEPS:08d}"
    assert [row["step"] for row in read_metrics(folder / "run")] == [*range(1, NUM_STEPS + 1)]


def test_what_is_large_is_written_from_where_it_lies_and_the_next_update_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", 0)
    held, seen, save = threading.Event(), [], dcp.save

    def slow(tensors, **options):
        held.wait(5)
        seen.append({name: tensor.data_ptr() for name, tensor in tensors.items()})
        save(tensors, **options)

    monkeypatch.setattr(dcp, "save", slow)
    flat = torch.arange(24.0)
    tensors = {"one": flat[:8].view(2, 4), "two": flat[8:].bfloat16().view(4, 4)[1:]}
    saver = checkpoint.StateSaver(tmp_path / "state")
    saver.save(3, tensors)
    threading.Timer(0.05, held.set).start()
    saver.release()
    assert saver.rest_seconds > 0
    flat.zero_()
    saver.finish()
    assert seen == [{name: tensor.data_ptr() for name, tensor in tensors.items()}]
    found = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    assert checkpoint.load_state(tmp_path / "state", found)
    assert found["one"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and torch.equal(found["two"], tensors["two"])
