"""Quality: train a small classifier of documents from labels, from examples, or from a model's grades by a rubric."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import field
from pathlib import Path

from herd.config import find_recipe, settings
from herd.curate.judge.calibration import plot_calibration
from herd.curate.judge.classifier import Training, measured, split, train
from herd.curate.judge.grades import grade, read_rubric, sample_documents
from herd.curate.judge.labels import Labelled, by_examples, by_rows, by_urls
from herd.data.rows import read_rows
from herd.errors import DataError
from herd.formats.encoder import open_encoder, save_head
from herd.infer.judge import JudgeModel, asking
from herd.log import say
from herd.model.encoder import train_head
from herd.run import Run, atomic_write, open_run


@settings
class QualitySettings:
    """Train a small classifier from labels, from examples, or from the grades of a large model."""

    out: Path
    """Run folder to write."""
    positives: list[Path] | None = None
    """Good texts: curated documents, or any pages that `herd curate` reads."""
    negatives: list[Path] | None = None
    """Texts to distinguish them from, such as a sample of the crawl."""
    positive_urls: Path | None = None
    """A list of URLs, one per line (such as Wikipedia's references): documents at them are good, the others not."""
    labelled: Path | None = None
    """JSONL or Parquet with `text` and `score` (0 to 1) or `label` (a class)."""
    documents: list[Path] | None = None
    """Documents to sample: for the judge, or to look up in `positive_urls`."""
    rubric: Path | None = None
    """The judge's rubric (YAML); shipped: rubrics/quality.yaml, code, reasoning, and knowledge for classes."""
    judge: JudgeModel = field(default_factory=JudgeModel)
    training: Training = field(default_factory=Training)
    encoder: Path | None = None
    """An encoder's folder (BERT, MiniLM, RoBERTa): a classifier on its embeddings is trained beside the linear one."""

    def __post_init__(self):
        ways = [
            bool(self.positives or self.negatives),
            bool(self.labelled),
            bool(self.positive_urls),
            bool(self.rubric),
        ]
        if sum(ways) != 1:
            raise ValueError("give one of: positives with negatives; positive_urls with documents; labelled; rubric")
        if bool(self.positives) != bool(self.negatives):
            raise ValueError("give both positives and negatives")
        if both := {path.resolve() for path in self.positives or ()} & {
            path.resolve() for path in self.negatives or ()
        }:
            raise ValueError(f"positives and negatives: {min(both)} is in both; a text is one or the other")
        if (self.positive_urls or self.rubric) and not self.documents:
            raise ValueError("documents: give the documents to sample")
        if self.rubric and not (self.judge.endpoint or self.judge.checkpoint):
            raise ValueError("rubric: needs a judge; give judge.endpoint or judge.checkpoint")


def run(settings: QualitySettings) -> Path:
    """Write `classifier.npz`, `calibration.json` and `calibration.svg`; with a judge also `grades.jsonl`.

    Raises:
        DataError: too few texts or labels, or the judge's answers contain no grades.
    """
    inputs = {
        "positives": settings.positives,
        "negatives": settings.negatives,
        "positive_urls": settings.positive_urls,
        "labelled": settings.labelled,
        "documents": settings.documents,
        "rubric": find_recipe(settings.rubric) if settings.rubric else None,
        "checkpoint": settings.judge.checkpoint,
        "encoder": settings.encoder,
    }
    with open_run(settings.out, stage="quality", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=2.0e7)
        texts, targets = _labelled(run, settings)
        model, report = train(texts, targets, settings.training)
        model.save(run.path / "classifier.npz", texts=len(texts))
        atomic_write(run.path / "calibration.json", json.dumps(report, indent=1))
        plot_calibration(report, run.path / "calibration.svg")
        _tell(report)
        if settings.encoder:
            _beside(run, settings.encoder, settings.training, texts, targets, report)
        run.finish({name: value for name, value in report.items() if not isinstance(value, list | dict)})
    return run.path


def _beside(run: Run, folder: Path, options: Training, texts: list, targets: list, linear: dict) -> None:
    """Train a classifier on an encoder's embeddings and the same labels; write it, its calibration and its gain."""
    encoder = open_encoder(folder)
    vectors = encoder.embed(texts, label="embed")
    is_score = not isinstance(targets[0], str)
    names = ["good" if target >= 0.5 else "bad" for target in targets] if is_score else list(map(str, targets))
    training = split(len(texts), options)[2].tolist()
    some = [names[i] for i in training]
    if len(set(some)) < len(set(names)) or len(set(names)) < 2:
        raise DataError(f"{folder}: every class (score below and above 0.5) is needed among the training texts")
    head = train_head(encoder, [texts[i] for i in training], some, vectors=vectors[training])
    outputs = (vectors @ head.weight.T + head.bias).numpy()
    scale, report = measured(outputs[:, 1:] - outputs[:, :1] if is_score else outputs, targets, options)
    measure = "auc" if is_score else "accuracy"
    report["gain"] = round(report[measure] - linear[measure], 4)
    save_head(head, run.path / "encoder", scale=scale.tolist())
    atomic_write(run.path / "calibration-encoder.json", json.dumps(report, indent=1))
    plot_calibration(report, run.path / "calibration-encoder.svg")
    say("  with the encoder's vectors:")
    _tell(report)
    say(f"  {report['gain']:+.3f} of {'area under the curve' if is_score else measure} beside the linear classifier")


def _labelled(run: Run, settings: QualitySettings) -> Labelled:
    if settings.rubric:
        return _graded(run, settings)
    if settings.labelled:
        return by_rows(settings.labelled, read_rows(settings.labelled))
    if settings.positive_urls:
        return by_urls(settings.positive_urls, settings.documents or [], settings.training.seed)
    return by_examples(settings.positives or [], settings.negatives or [])


def _graded(run: Run, settings: QualitySettings) -> Labelled:
    """Let the judge grade a sample; answers without a grade are left out."""
    assert settings.rubric is not None
    rubric = read_rubric(find_recipe(settings.rubric))
    documents = sample_documents(settings.documents or [], settings.judge.sample, settings.training.seed)
    path = run.path / "grades.jsonl"
    with asking(settings.judge) as ask:
        rows = grade(documents, rubric, ask, path, settings.judge.characters)
    texts = [document["text"] for document, row in zip(documents, rows, strict=True) if row["grade"] is not None]
    targets = [row["grade"] for row in rows if row["grade"] is not None]
    if len(texts) < len(rows) / 2:
        problem = f"only {len(texts)} of {len(rows)} answers hold a grade"
        raise DataError(f"{path}: {problem}; the first answer: {rows[0]['answer'][:200]!r}")
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(Counter(map(_name, targets)).items()))
    say(f"  {len(texts):,} of {len(rows):,} documents graded: {counts}")
    return texts, targets


def _name(target: float | str) -> str:
    return target if isinstance(target, str) else f"{target:.2f}"


def _tell(report: dict) -> None:
    if "auc" in report:
        say(
            f"  on {report['held_out']:,} held-out texts: area under the curve {report['auc']:.3f}, rank correlation "
            f"{report['rank_correlation']:.3f}, calibration gap {report['calibration_gap']:.3f}"
        )
    else:
        say(
            f"  on {report['held_out']:,} held-out texts: accuracy {report['accuracy']:.3f}, mean F1 "
            f"{report['macro_f1']:.3f}, calibration gap {report['calibration_gap']:.3f}"
        )
