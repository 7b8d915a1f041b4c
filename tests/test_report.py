from __future__ import annotations

import json
from pathlib import Path

import pytest

from herd.config import settings
from herd.errors import DataError
from herd.report import render
from herd.run import atomic_write, open_run


@settings
class StageSettings:
    """A stage."""

    out: Path
    """Run folder."""
    rate: float = 1.0
    """A setting."""


def finished(folder: Path, stage: str, files: dict[str, str], steps: int = 30, rate: float = 1.0, **figures) -> None:
    with open_run(folder, stage=stage, settings=StageSettings(out=folder, rate=rate), inputs={}) as run:
        for name, text in files.items():
            atomic_write(run.path / name, text)
        for step in range(1, steps + 1):
            run.log(step=step, tokens=step * 100, loss=9 / step, learning_rate=1e-3)
        run.finish(figures)


def test_the_page_holds_every_section_and_escapes_what_pages_contained(tmp_path):
    example = {"url": "x", "reason": "short", "detail": "3 words", "text": "<script>alert(1)</script>"}
    step = {"name": "heuristics", "documents_in": 9, "documents_out": 4, "bytes_out": 100, "reasons": {"short": 5}}
    score = {"task": "held-out web", "metric": "bits_per_byte", "model": "base", "value": 1.5, "low": 1.4, "high": 1.6}
    question = {"model": "sft", "question": "What?", "answer": "<b>That</b>", "reference": "That."}
    finished(tmp_path / "a", "curate", {"funnel.json": json.dumps({"steps": [step | {"examples": [example]}]})})
    finished(tmp_path / "b", "pretrain", {}, heldout_bits_per_byte=1.5)
    files = {"scores.jsonl": json.dumps(score) + "\n", "samples.jsonl": json.dumps(question) + "\n"}
    finished(tmp_path / "c", "evaluate", files, verdict="sft after base: better; dpo after sft: no clear change")
    page = render(tmp_path)
    for section in (
        "Dialogues",
        "What each step gained",
        "Figures by stage",
        "The funnel",
        "Losses",
        "Bits per byte",
        "Answers",
        "Repeat it",
    ):
        assert section in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>That</b>" not in page
    assert (
        page.count("<svg") == 1 and page.count("<title>b: loss ") == 30 and "src=" not in page and "<link" not in page
    )  # nothing is fetched
    assert page == render(tmp_path)


def test_an_empty_folder_has_nothing_to_report(tmp_path):
    with pytest.raises(DataError, match="no finished run"):
        render(tmp_path)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 100])
def test_a_run_of_any_length_is_drawn(tmp_path, steps):
    finished(tmp_path / "a", "pretrain", {}, steps=steps)
    finished(tmp_path / "b", "sft", {}, steps=steps)
    assert "Figures by stage" in render(tmp_path)


def test_names_of_figures_are_words_and_a_figure_that_cannot_be_is_left_out(tmp_path):
    finished(tmp_path / "a", "demo questions", {}, enough=1, eval_trained=400, mfu=1.33, heldout_bits_per_byte=1.5)
    page = render(tmp_path)
    assert (
        "enough facts to ask about</dt><dd>yes" in page
        and "held-out questions about trained modules</dt><dd>400" in page
    )
    assert "MFU" not in page and "1.33" not in page and "held-out: bits per byte" in page.replace("heldout", "held-out")


def test_a_loss_that_climbs_is_said_and_validation_stands_beside_training(tmp_path):
    kept_aside = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.5}, {"step": 30, "loss": 2.5}]
    finished(tmp_path / "a", "sft", {"validation.jsonl": "".join(json.dumps(row) + "\n" for row in kept_aside)})
    finished(tmp_path / "b", "dpo", {})
    with open(tmp_path / "b" / "metrics.jsonl", "w") as file:
        file.writelines(json.dumps({"step": step, "loss": 1 + step / 30}) + "\n" for step in range(1, 31))
    page = render(tmp_path)
    assert "a: the validation loss was lowest after step 20 (1.500) and is 2.500" in page
    assert "b: the loss rises at the end" in page and "a: the loss rises" not in page
    assert page.count("<title>a: validation loss ") == 3


def test_runs_stand_side_by_side_with_what_differs(tmp_path):
    for name, rate in (("one", 0.25), ("two", 0.5)):
        finished(tmp_path / name / "sft", "sft", {}, rate=rate, accuracy=rate + 0.125)
    page = render(tmp_path / "one", tmp_path / "two")
    compared = page[page.index("Runs side by side") :]
    assert "one/sft" in compared and "<code>rate</code><td>0.25<td>0.5" in compared and "0.625" in compared
    assert compared.count("<svg") == 1
    with pytest.raises(DataError, match="nothing to report"):
        render(tmp_path / "one", tmp_path)
