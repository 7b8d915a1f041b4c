"""Fits, forecasts and mixtures from run folders, and what is said of those that do not belong together."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from herd import cli, config
from herd.errors import CheckpointError, ConfigError, DataError
from herd.model.sizes import model_of_size
from herd.report import render
from herd.run import open_run, read_manifest
from herd.stages import find, pretrain
from herd.stages.scaling import compare, fit, mix, predict, worth
from herd.story import StorySettings, plan
from tests.scaling.test_law import ladder

ROOT = Path(__file__).parents[2]
SOURCES = {"a": {"sha256": "1", "share": 1.0, "tokens": 1e15, "epochs": 0.5}}


def a_run(
    folder: Path,
    figures: dict,
    *,
    sources=SOURCES,
    tokenizer="t",
    losses=(3.0, 2.0),
    inputs=None,
    heldout=None,
    **settings,
) -> Path:
    """A finished pre-training as `herd pretrain` leaves it, with the figures that it might have had."""
    wanted = pretrain.PretrainSettings(out=folder, shards=Path("s"), tokenizer=Path("t"), **settings)
    with open_run(folder, stage="pretrain", settings=wanted, inputs=inputs or {}) as run:
        for step, loss in enumerate(losses):
            run.log(step=step + 1, loss=loss)
        held = {"sha256": {"a": "h"}, "bits_per_byte": heldout or {"a": 1.0}}
        record = {"tokenizer": tokenizer, "row_tokens": 256, "sources": sources, "heldout": held}
        (folder / "sources.json").write_text(json.dumps(record))
        run.finish(figures)
    return folder


def figures_of(point) -> dict:
    told = {"parameters": point.parameters, "tokens": point.tokens, "flops": point.flops}
    return told | {"heldout_bits_per_byte": point.loss}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    for number, point in enumerate(ladder(budgets=(1e12, 1e13, 1e14), noise=0.001)):
        a_run(folder / f"run{number:02d}", figures_of(point))
    a_run(folder / "wild", figures_of(point) | {"heldout_bits_per_byte": 9.0}, losses=(5.0, 2.0, 7.0))
    a_run(folder / "again", {"parameters": 5, "left_out": "it would go through `a` 9.0 times"})
    return folder


@pytest.fixture(scope="module")
def fitted(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fit") / "fit"
    return fit.run(fit.FitSettings(runs=[runs], out=out, draws=40))


def test_a_fit_is_kept_and_drawn_with_who_was_left_out(fitted):
    record = json.loads((fitted / "fit.json").read_text())
    assert set(record["left_out"]) == {"wild", "again"} and "ended at 7.000" in record["left_out"]["wild"]
    assert read_manifest(fitted)["figures"]["budgets"] == 3
    page = render(fitted)
    assert "wild (left out)" in page and "loss of the best" in page


def test_a_forecast_is_written_before_and_held_against_the_run_after(fitted, tmp_path, capsys):
    foreseen = predict.run(predict.PredictSettings(flops=1e15, fit=fitted, out=tmp_path / "forecast"))
    record = json.loads((foreseen / "forecast.json").read_text())
    (best,) = [
        one
        for one in ladder(budgets=(1e15,), sizes=3)
        if one.parameters == sorted(point.parameters for point in ladder(budgets=(1e15,), sizes=3))[1]
    ]
    assert record["loss"]["low"] < best.loss < record["loss"]["high"]
    assert record["loss"]["value"] == pytest.approx(best.loss, rel=0.02)
    held = a_run(tmp_path / "held", figures_of(best))
    environment = json.loads((held / "environment.json").read_text())
    (held / "environment.json").write_text(json.dumps(environment | {"time": "2999-01-01T00:00:00Z"}))
    wanted = compare.CompareSettings(forecast=foreseen, runs=[held], fit=fitted, out=tmp_path / "compared")
    figures = read_manifest(compare.run(wanted))["figures"]
    assert figures["before"] is True and abs(figures["loss_error"]) < 0.02

    early = a_run(tmp_path / "early", figures_of(best) | {"tokens": 1.0})
    (early / "environment.json").write_text(json.dumps(environment | {"time": "1999-01-01T00:00:00Z"}))
    late = compare.CompareSettings(forecast=foreseen, runs=[early], fit=fitted, out=tmp_path / "late")
    assert read_manifest(compare.run(late))["figures"]["before"] is False

    def refused(match, folder, kind=DataError, forecast=foreseen):
        with pytest.raises(kind, match=match):
            compare.run(compare.CompareSettings(forecast=forecast, runs=[folder], fit=fitted, out=tmp_path / "no"))

    refused("take|took 1e\\+12 FLOPs", a_run(tmp_path / "small", figures_of(best) | {"flops": 1e12}))
    refused("differ in their tokenizer", a_run(tmp_path / "other", figures_of(best), tokenizer="u"))
    (foreseen / "forecast.json").write_text(json.dumps(record | {"flops": 2e15}))
    refused("forecast", held, CheckpointError)


def test_what_does_not_belong_into_one_fit_is_refused_by_name(runs, tmp_path):
    def refused(match, *folders):
        with pytest.raises(DataError, match=match):
            fit.run(fit.FitSettings(runs=list(folders), out=tmp_path / "fit"))

    figures = figures_of(ladder()[0])
    refused("run00 and x differ in their tokenizer", runs, a_run(tmp_path / "x", figures, tokenizer="u"))
    changed = {"a": SOURCES["a"] | {"sha256": "2"}}
    refused("the content or the shares", runs, a_run(tmp_path / "y", figures, sources=changed))
    often = {"a": SOURCES["a"] | {"epochs": 4.5}}
    refused("went through `a` 4.5 times", a_run(tmp_path / "z", figures, sources=often))
    refused(
        "diverged: its heldout_bits_per_byte is nan",
        a_run(tmp_path / "n", figures | {"heldout_bits_per_byte": math.nan}),
    )
    refused("a law needs two budgets", a_run(tmp_path / "one", figures))


def test_a_far_forecast_is_told_and_the_papers_law_too(fitted, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HERD_QUIET", "")
    far = predict.run(predict.PredictSettings(flops=1e25, fit=fitted, out=tmp_path / "far"))
    assert any("11.0 decades beyond" in one for one in json.loads((far / "forecast.json").read_text())["notes"])
    words = ["scaling", "predict", "exponent=0.537", "factor=0.299", "flops=3.8e25", f"out={tmp_path / 'paper'}"]
    assert cli.main(words) == 0
    notes = json.loads((tmp_path / "paper" / "forecast.json").read_text())["notes"]
    assert any("402B parameters on 16.55T tokens" in one and "389" in one and "16.3T" in one for one in notes)
    with pytest.raises(ConfigError, match="exponent"):
        config.load(predict.PredictSettings, None, ["flops=1e9", "exponent=1.5"])


def test_the_size_dial_follows_a_fitted_law(fitted, tmp_path):
    words = [f"shards={tmp_path}", f"tokenizer={tmp_path}", f"out={tmp_path / 'o'}", "size=15M"]
    usual = config.load(pretrain.PretrainSettings, None, words)
    ours = config.load(pretrain.PretrainSettings, None, [*words, f"scaling={fitted}"])
    law = json.loads((fitted / "fit.json").read_text())["law"]
    count = 15.6e6
    flops = (count / law["parameters"]["factor"]) ** (1 / law["parameters"]["exponent"])
    assert ours.tokens == pytest.approx(law["tokens"]["factor"] * flops ** law["tokens"]["exponent"], rel=0.2)
    assert ours.model == usual.model and ours.tokens != usual.tokens
    assert ours.optimizer.learning_rate == pytest.approx(3e-4) and model_of_size("15M").num_hidden_layers == 6
    with pytest.raises(ConfigError, match="no finished run folder of `herd scaling fit`"):
        config.load(pretrain.PretrainSettings, None, [*words, f"scaling={tmp_path}"])


def mixed(folder: Path, count: int = 9) -> Path:
    """Runs whose losses follow a law of mixing: text `a` wants source a, text `b` source b, c is noise."""
    for number in range(count):
        a = 0.1 + 0.8 * (number % 3) / 2
        b = (1 - a) * (0.2 + 0.6 * (number // 3) / 2)
        shares = {"a": a, "b": b, "c": 1 - a - b}
        sources = {
            name: {"sha256": name, "share": share, "tokens": 1e6, "epochs": 0.1} for name, share in shares.items()
        }
        heldout = {"a": 0.8 + math.exp(-1.5 * a), "b": 0.8 + math.exp(-1.5 * b)}
        figures = {"parameters": 1e5, "tokens": 1e6, "flops": 1e12, "heldout_bits_per_byte": 1.0 + number}
        a_run(folder / f"mix{number}", figures, sources=sources, heldout=heldout)
    return folder


def test_a_mixture_is_recommended_with_how_sure_it_is_and_holds_for_its_sources_alone(tmp_path):
    found = mix.run(mix.MixtureSettings(runs=[mixed(tmp_path / "runs")], out=tmp_path / "mix", draws=40))
    record = json.loads((found / "mix.json").read_text())
    shares = record["recommended"]["shares"]
    assert shares["a"] == pytest.approx(0.5, abs=0.1) and shares["b"] == pytest.approx(0.5, abs=0.1)
    assert record["uniform"]["gain"][1] > 0 and record["recommended"]["ends"]["c"][1] < 0.2
    assert "recommended" in render(found)

    from herd.scaling.mixing import recommended

    assert recommended(found, {"a": "a", "b": "b", "c": "c"}, "t").keys() <= {"a", "b", "c"}
    with pytest.raises(ConfigError, match="other content of b"):
        recommended(found, {"a": "a", "b": "new", "c": "c"}, "t")
    with pytest.raises(DataError, match="3 different mixtures of 3 sources"):
        mix.run(mix.MixtureSettings(runs=[mixed(tmp_path / "few", 3)], out=tmp_path / "mix2"))
    scarce = mix.run(mix.MixtureSettings(runs=[tmp_path / "runs"], out=tmp_path / "mix3", draws=40, tokens=1e7))
    assert max(json.loads((scarce / "mix.json").read_text())["recommended"]["shares"].values()) <= 0.4


def test_a_sources_worth_is_told_with_its_interval_over_seeds(tmp_path):
    start = tmp_path / "start"
    start.write_text("checkpoint")

    def annealed(name, seed, share, nats, accuracy, **more):
        sources = {"old": {"share": 1 - share}, "new": {"share": share}}
        sources = {key: one | {"sha256": key, "tokens": 1e6, "epochs": 0.1} for key, one in sources.items()}
        figures = {"tokens": 1e6, "loss": 2.0, "task_right_nats": nats, "task_accuracy": accuracy}
        return a_run(tmp_path / name, figures, sources=sources, inputs={"checkpoint": start}, seed=seed, **more)

    defaults = [annealed(f"d{seed}", seed, 0.0, 3.0 + 0.1 * seed, 0.5) for seed in range(3)]
    probes = [
        annealed(f"p{seed}", seed, 0.3, 2.5 + 0.1 * seed + 0.01 * seed, 0.5 + 0.1 * (seed - 1)) for seed in range(3)
    ]
    found = worth.run(worth.WorthSettings(default=defaults, runs=probes, out=tmp_path / "worth"))
    rows = {row["evaluation"]: row for row in json.loads((found / "worth.json").read_text())["rows"]}
    assert rows["task_right_nats"]["says"] == "helps" and rows["task_right_nats"]["gain"] == pytest.approx(0.49)
    assert rows["task_accuracy"]["says"] == "no difference shown"
    assert "new" in render(found)
    with pytest.raises(DataError, match="no default run has its seed"):
        worth.run(worth.WorthSettings(default=defaults[:1], runs=probes, out=tmp_path / "no"))


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes/scaling").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_experiments_can_be_planned(recipe):
    if recipe.stem.startswith("pretrain"):
        assert config.load(pretrain.PretrainSettings, recipe).max_epochs == 4
    else:
        assert plan(config.load(StorySettings, recipe), find)
