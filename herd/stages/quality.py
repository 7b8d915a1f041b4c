"""Quality: label texts, or let a model label them by a rubric, and train the small classifier that judges all."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from herd.config import find_recipe, settings
from herd.curate.dedup.duplicates import normal_url
from herd.curate.filters.addresses import list_lines
from herd.curate.judge.classifier import Training, train
from herd.curate.judge.grades import Ask, grade, read_documents, read_rubric, sample_documents
from herd.data.rows import read_rows
from herd.errors import CheckpointError, ConfigError, DataError
from herd.log import say
from herd.run import Run, atomic_write, open_run

_MAX_LISTED = 100_000  # documents at listed addresses that are learned from
_LEAST_OTHERS = 1000
Labelled = tuple[list[str], list[float] | list[str]]


@settings
class Judge:
    """The model that grades."""

    endpoint: str | None = None
    """An OpenAI-compatible server to ask, such as http://localhost:8000/v1 (vLLM, SGLang, `herd serve`)."""
    model: str = "default"
    """The model's name at that server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key, if it wants one."""
    checkpoint: Path | None = None
    """A local chat checkpoint to ask instead."""
    sample: int = 2000
    """Documents that are graded."""
    characters: int = 4000
    """Of a document the judge sees so many characters."""
    answer_tokens: int = 200
    """Longest answer, in tokens."""
    concurrency: int = 16
    """Questions under way at the same time at a server."""

    def __post_init__(self):
        if self.endpoint and self.checkpoint:
            raise ValueError("endpoint and checkpoint exclude each other")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: expected an address such as http://localhost:8000/v1, got {self.endpoint!r}")
        if min(self.sample, self.characters, self.answer_tokens, self.concurrency) < 1:
            raise ValueError("sample, characters, answer_tokens and concurrency must be at least 1")


@settings
class QualitySettings:
    """Train a small classifier from labels, from examples, or from the grades of a large model."""

    out: Path
    """Run folder to write."""
    positives: list[Path] | None = None
    """Good texts: curated documents, or any pages that `herd curate` reads."""
    negatives: list[Path] | None = None
    """Texts to tell them from, such as a sample of the crawl."""
    positive_urls: Path | None = None
    """A list of addresses (what Wikipedia references, one a line): documents at them are good, the others not."""
    labelled: Path | None = None
    """JSONL or Parquet with `text` and `score` (0 to 1) or `label` (a class)."""
    documents: list[Path] | None = None
    """Documents that a sample is drawn from: for the judge, or to look up in `positive_urls`."""
    rubric: Path | None = None
    """What the judge grades by (YAML); shipped: rubrics/quality.yaml, code, reasoning, and knowledge for classes."""
    judge: Judge = field(default_factory=Judge)
    training: Training = field(default_factory=Training)

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
            raise ValueError("positives and negatives belong together")
        if (self.positive_urls or self.rubric) and not self.documents:
            raise ValueError("documents: which documents are sampled?")
        if self.rubric and not (self.judge.endpoint or self.judge.checkpoint):
            raise ValueError("rubric: needs a judge; give judge.endpoint or judge.checkpoint")


def run(settings: QualitySettings) -> Path:
    """Write `classifier.npz`, `calibration.json` and `calibration.svg`; with a judge also `grades.jsonl`.

    Raises:
        DataError: too few texts or labels, or the judge's answers hold no grades.
    """
    inputs = {
        "positives": settings.positives,
        "negatives": settings.negatives,
        "positive_urls": settings.positive_urls,
        "labelled": settings.labelled,
        "documents": settings.documents,
        "rubric": find_recipe(settings.rubric) if settings.rubric else None,
        "checkpoint": settings.judge.checkpoint,
    }
    with open_run(settings.out, stage="quality", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=2.0e7)
        texts, targets = _labelled(run, settings)
        model, report = train(texts, targets, settings.training)
        model.save(run.path / "classifier.npz", texts=len(texts))
        atomic_write(run.path / "calibration.json", json.dumps(report, indent=1))
        _plot(report, run.path / "calibration.svg")
        _tell(report)
        run.finish({name: value for name, value in report.items() if not isinstance(value, list | dict)})
    return run.path


# ---- labels ----------------------------------------------------------------------------------------------------------


def _labelled(run: Run, settings: QualitySettings) -> Labelled:
    if settings.rubric:
        return _graded(run, settings)
    if settings.labelled:
        return _read_labels(settings.labelled)
    if settings.positive_urls:
        return _by_urls(settings)
    texts, targets = [], []
    for paths, target in ((settings.positives, 1.0), (settings.negatives, 0.0)):
        found = [document["text"] for document in read_documents(paths)]
        texts += found
        targets += [target] * len(found)
    return texts, targets


def _by_urls(settings: QualitySettings) -> Labelled:
    """Documents at listed addresses are good; of the others as many again are drawn."""
    listed = {normal_url(line) for _, line in list_lines(settings.positive_urls)}

    def is_listed(document: dict[str, str]) -> bool:
        return normal_url(document["url"]) in listed

    seed = settings.training.seed
    try:
        good = [d["text"] for d in sample_documents(settings.documents, _MAX_LISTED, seed, is_listed)]
    except DataError:
        raise DataError(f"{settings.positive_urls}: none of the documents is at a listed address") from None
    number = max(len(good), _LEAST_OTHERS)
    others = sample_documents(settings.documents, number, seed, lambda document: not is_listed(document))
    others = [document["text"] for document in others]
    say(f"  {len(good):,} documents at listed addresses, {len(others):,} others")
    return [*good, *others], [1.0] * len(good) + [0.0] * len(others)


def _read_labels(path: Path) -> Labelled:
    texts, targets = [], []
    for place, row in read_rows(path):
        target = row.get("score", row.get("label"))
        if not isinstance(row.get("text"), str) or not _is_target(target):
            raise DataError(f"{place}: expected `text` with `score` (0 to 1) or `label` (a name), got {sorted(row)}")
        texts.append(row["text"])
        targets.append(target)
    numbers = [isinstance(target, int | float) for target in targets]
    if any(numbers) and not all(numbers):
        raise DataError(f"{path}: holds scores and labels; a classifier learns one or the other")
    if all(numbers) and targets and not all(0 <= target <= 1 for target in targets):
        raise DataError(f"{path}: scores from {min(targets)} to {max(targets)}; expected 0 to 1")
    return texts, targets if all(numbers) else [str(target) for target in targets]


def _is_target(target: object) -> bool:
    return isinstance(target, str | int | float) and not isinstance(target, bool)


def _graded(run: Run, settings: QualitySettings) -> Labelled:
    """Let the judge grade a sample; answers without a grade are left out."""
    rubric = read_rubric(find_recipe(settings.rubric))
    documents = sample_documents(settings.documents, settings.judge.sample, settings.training.seed)
    path = run.path / "grades.jsonl"
    rows = grade(documents, rubric, _ask(settings.judge), path, settings.judge.characters)
    texts = [document["text"] for document, row in zip(documents, rows, strict=True) if row["grade"] is not None]
    targets = [row["grade"] for row in rows if row["grade"] is not None]
    if len(texts) < len(rows) / 2:
        told = f"only {len(texts)} of {len(rows)} answers hold a grade"
        raise DataError(f"{path}: {told}; the first answer: {rows[0]['answer'][:200]!r}")
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(Counter(map(_name, targets)).items()))
    say(f"  {len(texts):,} of {len(rows):,} documents graded: {counts}")
    return texts, targets


def _name(target: float | str) -> str:
    return target if isinstance(target, str) else f"{target:.2f}"


# ---- the judge -------------------------------------------------------------------------------------------------------


def _ask(judge: Judge) -> Ask:
    return _ask_checkpoint(judge) if judge.checkpoint else _ask_server(judge)


def _ask_checkpoint(judge: Judge) -> Ask:
    from herd.infer.engine import Engine
    from herd.types import SamplingParams

    engine = Engine(judge.checkpoint)
    params = SamplingParams(temperature=0.0, max_tokens=judge.answer_tokens)

    def ask(prompts: list[str]) -> list[str]:
        answers = engine.generate([[{"role": "user", "content": prompt}] for prompt in prompts], params)
        return [answer.text for answer in answers]

    return ask


def _ask_server(judge: Judge) -> Ask:
    """Ask an OpenAI-compatible server; a busy one is asked again, a fault is told with what the server said."""
    import time
    import urllib.error
    import urllib.request
    from concurrent.futures import ThreadPoolExecutor
    from http.client import HTTPException

    url = judge.endpoint.rstrip("/") + "/chat/completions"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(judge.key_variable):
        headers["Authorization"] = f"Bearer {key}"

    def ask_one(prompt: str) -> str:
        body = {"model": judge.model, "messages": [{"role": "user", "content": prompt}]}
        body |= {"temperature": 0, "max_tokens": judge.answer_tokens}
        for attempt in range(6):
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=600) as response:
                    answer = json.load(response)["choices"][0]["message"]["content"] or ""
                if not isinstance(answer, str):
                    raise TypeError("its answer is no text")
                return answer
            except urllib.error.HTTPError as error:
                if error.code not in (429, 500, 502, 503, 504) or attempt == 5:
                    said = error.read().decode(errors="replace")[:300]
                    raise ConfigError(f"{url}: the judge answered {error.code}: {said}") from None
            except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
                if attempt == 5:
                    raise ConfigError(f"{url}: the judge cannot be asked: {error}; is the server running?") from None
            time.sleep(min(30, 0.5 * 2**attempt))
        raise CheckpointError(f"{url}: the judge did not answer")

    pool = ThreadPoolExecutor(judge.concurrency)
    return lambda prompts: list(pool.map(ask_one, prompts))


# ---- what came of it -------------------------------------------------------------------------------------------------


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


def _plot(report: dict, path: Path) -> None:
    """Calibration: what was predicted against what was, by bins of held-out texts."""
    rows = report["calibration"]
    figure, axes = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1)
    axes.plot([row["predicted"] for row in rows], [row["wanted"] for row in rows], marker="o", color="#1f6f8b")
    axes.set(xlabel="predicted", ylabel="labelled", xlim=(0, 1), ylim=(0, 1), title="Calibration on held-out texts")
    figure.savefig(path.with_suffix(".tmp.svg"), metadata={"Date": None})
    plt.close(figure)
    os.replace(path.with_suffix(".tmp.svg"), path)
