"""A run of adapters on shards: torn and continued, by one process too; what it saves and what it ends with."""

import json
import shutil
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from herd.formats.checkpoint import load
from herd.parallel.launch import open_run_together
from herd.parallel.layout import check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.run import read_metrics
from herd.train.hooks import Hook, every
from herd.train.lora import adapt, add_adapters, fresh_adapters
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.saving import SavingSettings, finish
from herd.train.trainer import Trainer
from tests.parallel.processes import LORA, run_on_meshes
from tests.train.tiny import TinySettings, run_folder, tiny_loader, tiny_model

NUM_STEPS, TORN_AT = 8, 5
ADAPTERS = "adapter/adapter_model.safetensors"
DTYPES = [torch.float32, torch.bfloat16]
OPTIONS = {
    "optimizer": OptimizerSettings(learning_rate=1e-2, lora=LORA),
    "saving": SavingSettings(snapshot_steps=4, save_seconds=1e6),
}


def sharded(dtype):
    whole, settings = tiny_model(dtype=dtype), ParallelSettings(shard=2)
    mesh = Mesh(check(whole.config, settings, 2, row_tokens=32))
    options = {"adapt": partial(adapt, options=LORA), "base": lambda: whole.state_dict().items()}
    model = ParallelModel(whole.config, settings, mesh, dtype, **options).materialize()
    model.fill([*whole.named_parameters(), *fresh_adapters(model.whole())])
    return model


def run(folder, dtype, hooks=(), end=True):
    model, loader = sharded(dtype), tiny_loader(micro_tokens=64, rank=dist.get_rank(), world=2)
    with open_run_together(folder, stage="tiny", settings=TinySettings(), inputs={}) as found:
        Trainer(model, next_token, found, hooks=hooks, **OPTIONS).fit(loader, NUM_STEPS)
        if end:
            finish(model, found)


def interrupt(step):
    raise KeyboardInterrupt


def whole_and_torn(dtype, folder):
    def note(step):
        if dist.get_rank() == 0:
            [state] = (folder / "whole/state").glob(f"step-{step:08d}")
            names = sorted(dcp.FileSystemReader(state).read_metadata().state_dict_metadata)
            (folder / "names.json").write_text(json.dumps(names))

    run(folder / "whole", dtype, [every(NUM_STEPS, note)])
    with pytest.raises(KeyboardInterrupt):
        run(folder / "torn", dtype, [Hook(interrupt, lambda step, num_steps: step == TORN_AT)])
    if dist.get_rank() == 0:
        shutil.copytree(folder / "torn", folder / "alone")
    dist.barrier()
    run(folder / "torn", dtype)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """All of it by the same two processes, for each takes seconds to start."""
    runs = [(2, whole_and_torn, (dtype,)) for dtype in DTYPES]
    return dict(zip(DTYPES, run_on_meshes(runs, tmp_path_factory.mktemp("runs")), strict=True))


def losses(folder):
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(folder)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_torn_run_goes_on_as_if_it_had_not_been(folders, dtype):
    assert losses(folders[dtype] / "torn") == losses(folders[dtype] / "whole")
    ours, theirs = (load_file(folders[dtype] / name / ADAPTERS) for name in ("torn", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_process_continues_it(folders):
    folder, model = folders[torch.float32] / "alone", tiny_model()
    add_adapters(model, LORA)
    with run_folder(folder) as found:
        Trainer(model, next_token, found, **OPTIONS).fit(tiny_loader(micro_tokens=64), NUM_STEPS)
    assert losses(folder)[:TORN_AT] == losses(folders[torch.float32] / "whole")[:TORN_AT]
    for ours, theirs in zip(losses(folder), losses(folders[torch.float32] / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_its_states_hold_the_adapters_and_nothing_of_the_base(folders, dtype):
    names = json.loads((folders[dtype] / "names.json").read_text())
    kinds = {name.partition("/")[0] for name in names}
    assert kinds == {"optimizer", "master", "exp_avg", "exp_avg_sq"}
    assert all(name.endswith(("lora_A", "lora_B")) for name in names if name != "optimizer/num_steps")


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_ends_with_adapters_and_the_base_they_are_merged_into(folders, dtype):
    folder, base = folders[dtype] / "whole", tiny_model(dtype=dtype).state_dict()
    adapters = load_file(folder / ADAPTERS)
    assert adapters.keys() == load_file(folder / "checkpoints/step-00000004/adapter_model.safetensors").keys()
    merged = load(folder / "checkpoint").state_dict()
    assert merged.keys() == base.keys() and all(weight.dtype == dtype for weight in merged.values())
    for name, weight in base.items():
        prefix = "base_model.model." + name.removesuffix(".weight")
        if f"{prefix}.lora_A.weight" in adapters:
            down, up = (adapters[f"{prefix}.{part}.weight"].float() for part in ("lora_A", "lora_B"))
            assert up.abs().max() > 0
            weight = (weight.float() + LORA.alpha / LORA.rank * up @ down).to(dtype)
        assert torch.equal(merged[name], weight), name
