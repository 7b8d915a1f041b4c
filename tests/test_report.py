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


def finished(folder: Path, stage: str, files: dict[str, str], steps: int = 30, **figures) -> None:
    with open_run(folder, stage=stage, settings=StageSettings(out=folder), inputs={}) as run:
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
        "What was done",
        "The funnel",
        "Losses",
        "Bits per byte",
        "What improved",
        "Answers",
        "Do it again",
    ):
        assert section in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>That</b>" not in page
    assert page.count("<svg") == 1 and "src=" not in page and "<link" not in page  # nothing is fetched
    assert page == render(tmp_path)


def test_an_empty_folder_has_nothing_to_report(tmp_path):
    with pytest.raises(DataError, match="no finished run"):
        render(tmp_path)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 100])
def test_a_run_of_any_length_is_drawn(tmp_path, steps):
    finished(tmp_path / "a", "pretrain", {}, steps=steps)
    finished(tmp_path / "b", "sft", {}, steps=steps)
    assert "What was done" in render(tmp_path)
