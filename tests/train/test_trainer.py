import copy
import json
import math
import resource
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch

from herd.data.loader import PackedLoader, Phase
from herd.data.shards import in_memory
from herd.errors import CapacityError, CheckpointError, ConfigError, DataError
from herd.formats.checkpoint import load
from herd.model.flops import batch_flops
from herd.run import read_metrics
from herd.train import checkpoint, trainer
from herd.train.hooks import Hook, at_shares, evenly, every
from herd.train.metrics import Speed
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.saving import SavingSettings, finish
from herd.train.schedule import ScheduleSettings
from herd.train.trainer import Trainer, tokens_per_second
from herd.types import IGNORE
from tests.train.tiny import corpus, run_folder, tiny_loader, tiny_model

OPTIMIZER = OptimizerSettings(learning_rate=1e-2)


def losses(path):
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(path)]


def train_tiny(path, num_steps=12, model=None, loader=None, objective=next_token, **options):
    options = {"optimizer": OPTIMIZER, "schedule": ScheduleSettings(warmup_steps=2)} | options
    model, loader = model or tiny_model(), loader or tiny_loader()
    with run_folder(path) as run:
        Trainer(model, objective, run, **options).fit(loader, num_steps)
    return model


def gradients(path, loader):
    with run_folder(path) as run:
        made = Trainer(tiny_model(), next_token, run, optimizer=OPTIMIZER)
        totals = made.gradients(loader.batches(0))
    return [group.sums() / totals.count for group in made.adamw.groups], totals


def test_accumulation_over_unequal_micro_batches_is_one_big_batch(tmp_path):
    whole, whole_totals = gradients(tmp_path, tiny_loader(micro_tokens=10_000))
    for micro_tokens in (32, 96):
        parts, totals = gradients(tmp_path, tiny_loader(micro_tokens=micro_tokens))
        counts = [(batch.labels >= 0).sum().item() for batch in tiny_loader(micro_tokens=micro_tokens).batches(0)]
        assert len(set(counts)) > 1  # unequal, so that a mean of means would be wrong
        assert totals.means()["loss"] == pytest.approx(whole_totals.means()["loss"], rel=1e-6)
        for a, b in zip(whole, parts):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_packed_rows_cost_what_single_documents_cost():
    documents = corpus(40)
    packed = PackedLoader({"a": documents}, [Phase(batch_tokens=64, row_tokens=128, mixture={"a": 1.0})])
    model = tiny_model()
    total = sum(model.run(next_token, batch).sum.item() for batch in packed.epoch())
    alone = 0.0
    for index in range(len(documents)):
        tokens = torch.from_numpy(documents.tokens(index).astype("int64"))
        log_probs = model(tokens[None, :-1])[0].log_softmax(-1)
        alone -= log_probs.gather(1, tokens[1:, None]).sum().item()
    assert total == pytest.approx(alone, rel=1e-6)


def test_training_learns(tmp_path):
    train_tiny(tmp_path, num_steps=60)
    found = losses(tmp_path)
    assert found[0][1] == pytest.approx(math.log(96), abs=0.3)
    assert found[-1][1] < 0.6 * found[0][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(tmp_path, stop, dtype):
    whole = train_tiny(tmp_path / "whole", model=tiny_model(dtype=dtype))

    def interrupt(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "torn", model=tiny_model(dtype=dtype), hooks=[Hook(interrupt, lambda s, n: s == stop)])
    resumed = train_tiny(tmp_path / "torn", model=tiny_model(seed=5, dtype=dtype))
    assert losses(tmp_path / "torn") == losses(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_an_interruption_amid_a_step_loses_nothing_and_repeats_nothing(tmp_path):
    train_tiny(tmp_path / "whole")
    calls = iter(range(1000))

    def interrupted(*parts):
        if next(calls) == 15:  # in the second micro-batch of a step
            raise KeyboardInterrupt
        return next_token(*parts)

    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "torn", objective=interrupted)
    assert max(path.name for path in (tmp_path / "torn/state").iterdir()) == "step-00000007"
    train_tiny(tmp_path / "torn")
    assert losses(tmp_path / "torn") == losses(tmp_path / "whole")


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_step(tmp_path):
    calls = iter(range(1000))

    def spoiled(*parts):
        loss = next_token(*parts)
        return loss._replace(sum=loss.sum * (float("nan") if next(calls) >= 6 else 1.0))

    with pytest.raises(ConfigError, match=r"step 4: the loss is nan.*learning rate"):
        train_tiny(tmp_path, objective=spoiled)


def test_a_gradient_that_is_not_a_number_stops_the_run(tmp_path):
    def spoiled(hidden, head, batch):
        loss = next_token(hidden, head, batch)
        return loss._replace(sum=loss.sum + (hidden * 0).sqrt().sum())

    with pytest.raises(ConfigError, match=r"step 1: the gradient norm is nan"):
        train_tiny(tmp_path, objective=spoiled)


def test_data_in_which_everything_is_masked_is_refused(tmp_path):
    documents = in_memory("a", [[1, 5, 6, 2]] * 20, trained=[[False] * 4] * 20)
    loader = PackedLoader({"a": documents}, [Phase(batch_tokens=64, row_tokens=32, mixture={"a": 1.0})])
    with pytest.raises(DataError, match=r"step 1.*masked"):
        train_tiny(tmp_path, loader=loader)


@pytest.mark.parametrize("document", [[1, 5, 96, 6, 2], [1, 5, 6, 4_000_000_000]])
def test_a_token_that_the_model_has_not_is_one_clear_error_and_the_state_stays(tmp_path, document):
    documents = in_memory("code", [document] * 20)
    loader = PackedLoader({"code": documents}, [Phase(batch_tokens=64, row_tokens=32, mixture={"code": 1.0})])
    with pytest.raises(DataError, match=rf"step 1: source `code` .* {max(document):,}, .* ends with 95: .* pack"):
        train_tiny(tmp_path, loader=loader)


def test_a_warm_up_longer_than_the_run_is_told_of(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    train_tiny(tmp_path / "short", num_steps=3, schedule=ScheduleSettings(warmup_steps=3))
    assert "warm up" not in capsys.readouterr().err
    train_tiny(tmp_path / "long", num_steps=3, schedule=ScheduleSettings(warmup_steps=2000))
    assert "schedule.warmup_steps is 2,000, the run only 3 steps" in capsys.readouterr().err


def test_a_torn_state_falls_back_to_the_one_before(tmp_path, capsys):
    train_tiny(tmp_path / "whole")
    saving = SavingSettings(save_seconds=1e-6)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "torn", saving=saving, hooks=[Hook(_interrupt, lambda s, n: s == 6)])
    states = sorted((tmp_path / "torn/state").iterdir())
    assert [state.name for state in states] == ["step-00000005", "step-00000006"]
    data = next(states[1].glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-100])
    train_tiny(tmp_path / "torn")
    assert losses(tmp_path / "torn") == losses(tmp_path / "whole")


def _interrupt(step):
    raise KeyboardInterrupt


def test_a_state_of_which_nothing_is_whole_is_an_error(tmp_path):
    train_tiny(tmp_path, num_steps=3)
    for manifest in (tmp_path / "state").glob("*/manifest.json"):
        manifest.write_text("{")
    with pytest.raises(CheckpointError, match="all 2 states in it are damaged"):
        train_tiny(tmp_path, num_steps=5)


def test_the_state_of_another_model_is_an_error(tmp_path):
    train_tiny(tmp_path, num_steps=3)
    with pytest.raises(CheckpointError, match="another model"):
        train_tiny(tmp_path, num_steps=5, model=tiny_model(intermediate_size=128))


def test_a_full_disk_is_one_clear_error_and_the_earlier_state_survives(tmp_path):
    train_tiny(tmp_path / "whole")
    path = tmp_path / "torn"
    with pytest.raises(KeyboardInterrupt):
        train_tiny(path, hooks=[Hook(_interrupt, lambda s, n: s == 4)])

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file may grow beyond: as good as a full disk
    try:
        with pytest.raises(CapacityError, match=r"could not be saved.*Earlier states are intact"):
            train_tiny(path, saving=SavingSettings(save_seconds=1e-6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(state.name for state in (path / "state").iterdir()) == ["step-00000002", "step-00000004"]
    train_tiny(path)
    assert losses(path) == losses(tmp_path / "whole")


def test_hooks_run_when_due_in_eval_mode_and_after_the_state_is_saved(tmp_path):
    model, seen = tiny_model(), []

    def note(kind, step):
        saved = (tmp_path / "state" / f"step-{step:08d}").exists()
        seen.append((kind, step, model.training, torch.is_grad_enabled(), saved))

    hooks = [every(5, partial(note, "every")), at_shares([0.25, 1.0], partial(note, "share"))]
    train_tiny(tmp_path, num_steps=12, model=model, hooks=hooks)
    assert [entry[:2] for entry in seen] == [("share", 3), ("every", 5), ("every", 10), ("share", 12)]
    assert {entry[2:] for entry in seen} == {(False, False, True)}


def test_a_run_killed_between_its_save_and_its_snapshot_makes_the_snapshot_when_resumed(tmp_path):
    saving = SavingSettings(save_seconds=1000, snapshot_steps=4)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "snapshots", lambda *parts: _interrupt)
        train_tiny(tmp_path / "torn", num_steps=8, saving=saving)
    train_tiny(tmp_path / "torn", num_steps=8, saving=saving)
    train_tiny(tmp_path / "whole", num_steps=8, saving=saving)
    for step in ("step-00000004", "step-00000008"):
        torn, whole = (load(tmp_path / name / "checkpoints" / step) for name in ("torn", "whole"))
        assert all(torch.equal(a, b) for a, b in zip(torn.parameters(), whole.parameters(), strict=True))


def test_a_number_of_snapshots_lies_evenly_over_the_run_and_holds_its_last_step():
    [hook] = evenly(3, lambda step: None)
    assert [step for step in range(1, 11) if hook.due(step, 10)] == [3, 7, 10]
    assert evenly(0, lambda step: None) == []


def test_the_best_snapshot_is_kept_where_fewer_steps_are_logged_than_kept(tmp_path):
    saving = SavingSettings(snapshot_steps=1, keep_snapshots=1, keep_best=True, log_steps=3)
    train_tiny(tmp_path, num_steps=6, saving=saving)
    assert "step-00000006" in {folder.name for folder in (tmp_path / "checkpoints").iterdir()}


def test_snapshots_are_checkpoints_that_load(tmp_path):
    from_run = train_tiny(tmp_path, num_steps=6, saving=SavingSettings(snapshot_steps=3))
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-00000003", "step-00000006"]
    loaded = load(folders[1])
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), from_run.parameters()))


def test_finishing_leaves_a_checkpoint_and_no_state(tmp_path):
    model = tiny_model()
    with run_folder(tmp_path) as run:
        Trainer(model, next_token, run).fit(tiny_loader(), 2)
        finish(model, run, figures={"loss": 1.0})
    assert not (tmp_path / "state").exists()
    assert json.loads((tmp_path / "run.json").read_text())["figures"] == {"loss": 1.0}
    assert (tmp_path / "checkpoint/model.safetensors").exists()


def test_measuring_the_speed_leaves_the_weights_alone():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    assert tokens_per_second(model, next_token, tiny_loader().batches(0)) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_snapshots_are_kept_by_their_rule(tmp_path):
    saving = SavingSettings(snapshot_steps=2, keep_snapshots=2)
    train_tiny(tmp_path / "last", num_steps=10, saving=saving)
    assert [path.name[-2:] for path in sorted((tmp_path / "last/checkpoints").iterdir())] == ["08", "10"]
    saving = SavingSettings(snapshot_steps=2, keep_snapshots=1, keep_best=True)
    calls = iter(range(1000))

    def worse_later(*parts):
        loss = next_token(*parts)
        return loss._replace(sum=loss.sum * (3.0 if next(calls) >= 8 else 1.0))  # two micro-batches a step

    train_tiny(tmp_path / "best", num_steps=10, saving=saving, objective=worse_later)
    assert [path.name[-2:] for path in sorted((tmp_path / "best/checkpoints").iterdir())] == ["04", "10"]


def test_beside_the_newest_snapshots_those_of_a_multiple_of_steps_stay(tmp_path):
    train_tiny(tmp_path, num_steps=10, saving=SavingSettings(snapshot_steps=1, keep_snapshots=2, keep_every=4))
    assert [path.name[-2:] for path in sorted((tmp_path / "checkpoints").iterdir())] == ["04", "08", "09", "10"]


def test_a_new_run_rehearses_once_how_it_will_be_resumed(tmp_path, monkeypatch):
    train_tiny(tmp_path / "whole")
    loaded = []
    load_state = checkpoint.load_state
    monkeypatch.setattr(trainer, "load_state", lambda *parts: loaded.append(found := load_state(*parts)) or found)
    train_tiny(tmp_path / "run")
    assert loaded == [False, True]  # at the start, and after two steps
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_training_goes_on_while_the_state_is_written(tmp_path, monkeypatch):
    began, may_end, steps = threading.Event(), threading.Event(), []
    save = checkpoint.save_state

    def slow(*what):
        if what[1] == 2:  # the rehearsal is waited for
            return save(*what)
        began.set()
        assert may_end.wait(30)
        return save(*what)

    def objective(*parts):
        if began.is_set():
            steps.append(1)
            may_end.set()
        return next_token(*parts)

    monkeypatch.setattr(checkpoint, "save_state", slow)
    train_tiny(tmp_path, num_steps=4, saving=SavingSettings(save_seconds=1e-6), objective=objective)
    assert steps  # a forward pass ran while a state was being written
    assert [state.name for state in sorted((tmp_path / "state").iterdir())] == ["step-00000003", "step-00000004"]


def test_where_memory_is_short_the_state_is_saved_without_a_copy_and_that_is_said(tmp_path, monkeypatch, capsys):
    threads, save = [], checkpoint.save_state
    monkeypatch.delenv("HERD_QUIET", raising=False)
    monkeypatch.setattr(checkpoint, "save_state", lambda *w: threads.append(threading.current_thread()) or save(*w))
    monkeypatch.setattr(checkpoint, "available_memory", lambda device: 10_000)
    train_tiny(tmp_path, num_steps=4, saving=SavingSettings(save_seconds=1e-6))
    assert set(threads) == {threading.main_thread()}
    assert [state.name for state in sorted((tmp_path / "state").iterdir())] == ["step-00000003", "step-00000004"]
    assert capsys.readouterr().err.count("training pauses for each save") == 1


def test_the_share_of_the_peak_counts_what_is_computed_and_is_left_out_where_it_cannot_be():
    config, [whole, *_] = tiny_model().config, tiny_loader().batches(0)
    unlabelled = replace(whole, labels=torch.full_like(whole.labels, IGNORE))
    head = 6 * config.vocab_size * config.hidden_size * int((whole.labels != IGNORE).sum())
    assert batch_flops(config, whole) - batch_flops(config, unlabelled) == head
    speed = Speed(peak_flops=1.0)
    speed.begin()
    assert "mfu" not in speed.figures(10, flops=1e12)
    assert 0 < Speed(peak_flops=1e30).figures(10, flops=1e12)["mfu"] < 1
