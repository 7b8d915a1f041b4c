"""Outliers are found, passed over or rolled back, the same way in a run that is killed; NaN has a name."""

import json
import shutil

import pytest
import torch

from herd.data.loader import PackedLoader, Phase
from herd.errors import CheckpointError, ConfigError, DataError
from herd.run import Run, read_metrics
from herd.train import trainer
from herd.train.hooks import Hook
from herd.train.objectives import next_token
from herd.train.optimizer import FlatAdamW, OptimizerSettings
from herd.train.saving import SavingSettings
from herd.train.stability import Monitor, Skips, StabilitySettings
from herd.train.trainer import Trainer
from tests.train.tiny import corpus, run_folder, tiny_loader, tiny_model

NEVER = SavingSettings(save_seconds=1e6)


class Watched:
    """A loader that notes which steps of its schedule were asked for."""

    def __init__(self, loader):
        self.loader, self.asked, self.row_tokens, self.names = loader, [], loader.row_tokens, loader.names

    def batches(self, step):
        self.asked.append(step)
        return self.loader.batches(step)

    def tokens_before(self, step):
        return self.loader.tokens_before(step)


def spoiled(loader, steps, factor):
    """An objective whose loss on the batches of some steps of the data is multiplied."""
    bad = {batch.tokens.sum().item() for step in steps for batch in loader.batches(step)}

    def objective(hidden, head, batch):
        loss = next_token(hidden, head, batch)
        return loss._replace(sum=loss.sum * (factor if batch.tokens.sum().item() in bad else 1.0))

    return objective


def run_tiny(path, objective=next_token, num_steps=30, loader=None, **options):
    loader = Watched(loader or tiny_loader())
    options = {"optimizer": OptimizerSettings(learning_rate=1e-3), "saving": NEVER} | options
    with run_folder(path) as run:
        Trainer(model := tiny_model(), objective, run, **options).fit(loader, num_steps)
    return model, loader.asked


def test_a_spike_is_passed_over_and_every_other_sample_stays_where_it_was(tmp_path):
    objective = spoiled(tiny_loader(), [20], 8.0)
    stability = StabilitySettings(deviations=20, action="skip")
    model, asked = run_tiny(tmp_path / "spike", objective, stability=stability)
    assert asked == [*range(31)]  # one more than steps: the step of the spike taught nothing
    assert len(read_metrics(tmp_path / "spike")) == 30
    told, _ = run_tiny(tmp_path / "told", skipped=["21"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), told.parameters()))
    [skip] = json.loads((tmp_path / "spike/skips.json").read_text())
    assert (skip["first"], skip["last"]) == (20, 21) and "deviations above" in skip["reason"]
    rows = [read_metrics(tmp_path / name) for name in ("spike", "told")]
    assert (
        [row["tokens"] for row in rows[0]] == [row["tokens"] for row in rows[1]] == [256 * (n + 1) for n in range(30)]
    )


def test_a_roll_back_goes_to_the_step_kept_for_it_and_leaves_out_the_data_since(tmp_path):
    objective = spoiled(tiny_loader(), [20], float("nan"))
    stability = StabilitySettings(action="rollback", rollback_steps=9)
    model, asked = run_tiny(tmp_path / "back", objective, stability=stability)
    assert asked == [*range(33)]
    told, _ = run_tiny(tmp_path / "told", skipped=["19-21"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), told.parameters()))
    found = [[(row["step"], row["loss"]) for row in read_metrics(tmp_path / name)] for name in ("back", "told")]
    assert found[0] == found[1]


def test_progress_ends_with_all_of_it_where_what_was_passed_over_is_made_up_for_by_larger_steps(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    phases = [
        Phase(step=step, batch_tokens=tokens, row_tokens=32, mixture={"a": 1.0}) for step, tokens in ((0, 64), (9, 256))
    ]
    loader = PackedLoader({"a": corpus()}, phases)
    run_tiny(tmp_path, spoiled(loader, [3, 4], float("nan")), 9, loader, stability=StabilitySettings(action="skip"))
    assert "100% of 960 tokens" in capsys.readouterr().err


def test_before_the_first_kept_state_a_roll_back_begins_anew(tmp_path):
    objective = spoiled(tiny_loader(), [3], float("nan"))
    _, asked = run_tiny(tmp_path, objective, num_steps=5, stability=StabilitySettings(action="rollback"))
    assert asked == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_interrupted_after_a_skip_ends_like_one_that_was_not(tmp_path):
    objective = spoiled(tiny_loader(), [20], 8.0)
    stability = StabilitySettings(deviations=20, action="skip")
    run_tiny(tmp_path / "whole", objective, stability=stability)

    def interrupt(step):
        raise KeyboardInterrupt

    for stop in (17, 22):
        with pytest.raises(KeyboardInterrupt):
            hooks = [Hook(interrupt, lambda step, num_steps, stop=stop: step == stop)]
            run_tiny(tmp_path / "torn", objective, stability=stability, hooks=hooks)
    run_tiny(tmp_path / "torn", objective, stability=stability)
    found = [[(row["step"], row["loss"]) for row in read_metrics(tmp_path / name)] for name in ("whole", "torn")]
    assert found[0] == found[1]


def test_a_run_that_rolls_back_is_the_same_whenever_its_state_was_saved_and_wherever_it_was_interrupted(tmp_path):
    objective = spoiled(tiny_loader(), [13, 20, 26], float("nan"))
    options = {"stability": StabilitySettings(action="rollback", rollback_steps=6)}
    whole, _ = run_tiny(tmp_path / "whole", objective, **options)

    def interrupt(step):
        raise KeyboardInterrupt

    often = SavingSettings(save_seconds=1e-6)
    for stop in (7, 13, 14, 19, 22):
        hooks = [Hook(interrupt, lambda step, num_steps, stop=stop: step == stop)]
        with pytest.raises(KeyboardInterrupt):
            run_tiny(tmp_path / "torn", objective, hooks=hooks, saving=often, **options)
    torn, _ = run_tiny(tmp_path / "torn", objective, saving=often, **options)
    found = [[(row["step"], row["loss"]) for row in read_metrics(tmp_path / name)] for name in ("whole", "torn")]
    assert found[0] == found[1]
    skips = [json.loads((tmp_path / name / "skips.json").read_text()) for name in ("whole", "torn")]
    assert skips[0] == skips[1] and len(skips[0]) > 2
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), torn.parameters()))


@pytest.mark.parametrize("place", ["discard_after", "load_state", "rewind"])
def test_a_run_interrupted_amid_a_roll_back_ends_like_one_that_was_not(tmp_path, monkeypatch, place):
    objective = spoiled(tiny_loader(), [20], float("nan"))
    options = {"stability": StabilitySettings(action="rollback", rollback_steps=9)}
    whole, _ = run_tiny(tmp_path / "whole", objective, **options)
    owner = Run if place == "rewind" else trainer
    act, calls = getattr(owner, place), []

    def torn(*parts):
        calls.append(place)
        if len(calls) == {"discard_after": 1, "load_state": 3, "rewind": 2}[place]:  # others: the start, the rehearsal
            if place == "load_state":  # some weights are read, others not yet
                next(tensor for name, tensor in parts[1].items() if name.startswith("master/")).data.zero_()
            raise KeyboardInterrupt
        return act(*parts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, place, torn)
        run_tiny(tmp_path / "torn", objective, **options)
    torn_model, _ = run_tiny(tmp_path / "torn", objective, **options)
    found = [[(row["step"], row["loss"]) for row in read_metrics(tmp_path / name)] for name in ("whole", "torn")]
    assert found[0] == found[1]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), torn_model.parameters()))


def test_a_state_to_roll_back_to_that_is_missing_is_named(tmp_path):
    objective = spoiled(tiny_loader(), [20], float("nan"))
    stability = StabilitySettings(action="rollback", rollback_steps=9)
    lost = [Hook(lambda step: shutil.rmtree(tmp_path / "state/step-00000018"), lambda step, num_steps: step == 19)]
    with pytest.raises(CheckpointError, match=r"after step 18.*is missing"):
        run_tiny(tmp_path, objective, stability=stability, hooks=lost)


def test_a_run_that_cannot_be_rolled_back_keeps_its_states(tmp_path):
    objective = spoiled(tiny_loader(), [20], float("nan"))
    stability = StabilitySettings(action="rollback", rollback_steps=9)
    often = SavingSettings(save_seconds=1e-6)
    lost = [Hook(lambda step: shutil.rmtree(tmp_path / "state/step-00000018"), lambda step, num_steps: step == 20)]
    with pytest.raises(CheckpointError, match=r"stability\.action=skip"):
        run_tiny(tmp_path, objective, stability=stability, hooks=lost, saving=often)
    assert (tmp_path / "state/step-00000020").is_dir()
    _, asked = run_tiny(tmp_path, objective, stability=StabilitySettings(action="skip"))
    assert asked == [*range(20, 31)]


def test_outliers_and_lines_of_only_some_steps_are_refused_together(tmp_path):
    with pytest.raises(ConfigError, match="log_steps to 1"):
        run_tiny(tmp_path, stability=StabilitySettings(deviations=6), saving=SavingSettings(log_steps=2))


def test_change_of_mixture_and_length_with_a_skipped_range_gives_each_sample_as_scheduled(tmp_path):
    sources = {"library": corpus(), "pydoc": corpus(30, seed=1, source="pydoc")}
    phases = [
        Phase(batch_tokens=128, row_tokens=32, mixture={"library": 2.0, "pydoc": 1.0}),
        Phase(step=6, batch_tokens=256, row_tokens=64, mixture={"library": 1.0, "pydoc": 3.0}),
    ]
    loader = PackedLoader(sources, phases)
    skips = Skips(tmp_path, ["5-8"])
    seen = [loader.batches(skips.place(step))[0].tokens for step in range(8)]
    scheduled = [loader.batches(place)[0].tokens for place in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert all(torch.equal(a, b) for a, b in zip(seen, scheduled))


def test_too_many_outliers_end_the_run(tmp_path):
    objective = spoiled(tiny_loader(), [2, 3, 4], float("nan"))
    stability = StabilitySettings(action="skip", most=2)
    with pytest.raises(ConfigError, match="outlier number 3"):
        run_tiny(tmp_path, objective, stability=stability)


def test_a_rising_loss_is_no_outlier_but_a_jump_is():
    monitor = Monitor(StabilitySettings(deviations=6))
    for step in range(40):
        assert monitor.fault(3.0 - 0.01 * step, 1.0 + 0.1 * (step % 3)) is None
        monitor.accept(3.0 - 0.01 * step, 1.0 + 0.1 * (step % 3))
    assert monitor.fault(2.6, 1.2) is None
    assert "gradient norm is 30" in monitor.fault(2.6, 30.0)
    assert "loss is 5" in monitor.fault(5.0, 1.0)


@pytest.mark.parametrize(
    "name, place",
    [
        ("model.layers.1.mlp.down_proj.weight", "the output of model.layers.1.mlp.down_proj"),
        ("model.embed_tokens.weight", "the output of model.embed_tokens"),
    ],
)
def test_a_number_that_is_none_is_named_by_its_layer(tmp_path, name, place):
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(name)[0, 0:8] = float("nan")
    if "embed" in name:
        with torch.no_grad():
            model.get_parameter(name).fill_(float("nan"))
    with run_folder(tmp_path) as run, pytest.raises(ConfigError, match=place):
        Trainer(model, next_token, run).fit(tiny_loader(), 2)


def test_what_is_no_range_of_steps_is_refused(tmp_path):
    for text in ("x", "5-3", "0", "1-2-3"):
        with pytest.raises(DataError, match="is no range of steps"):
            Skips(tmp_path, [text])


@pytest.mark.parametrize("content", ["", "\0" * 40, '[{"first": 1, '])
def test_a_damaged_record_of_what_was_passed_over_is_one_clear_error(tmp_path, content):
    (tmp_path / "skips.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"skips\.json: damaged"):
        Skips(tmp_path)


def test_weight_decay_at_each_step_is_a_tenth_of_that_steps_learning_rate():
    model = tiny_model()
    adamw = FlatAdamW(model, OptimizerSettings(weight_decay=0.1, clip_norm=0))
    weight = model.model.layers[0].mlp.up_proj.weight
    for rate in (3e-4, 1e-4):
        before = weight.detach().clone()
        adamw.step(rate, 1.0, 1.0)  # no gradient: what is left is the decay
        torch.testing.assert_close(weight, before * (1 - 0.1 * rate))
