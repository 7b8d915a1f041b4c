"""Evaluate: checkpoints on the same held-out text, needles and questions, beside baselines that know nothing."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from herd.config import settings
from herd.data.rows import read_rows
from herd.data.shards import Documents, open_heldout, open_shards
from herd.evals import answers as qa
from herd.evals import baselines, needle, perplexity, retrieval, statistics
from herd.formats.checkpoint import open_checkpoint
from herd.log import say
from herd.post.sampling import sample_answers
from herd.run import Run, atomic_write, open_run
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import SamplingParams, Score

Task = Literal["perplexity", "needle", "answers"]

SPLITS = {"trained": "trained modules", "heldout": "held-out modules", "unknown": "invented names"}
"""Files `eval_<split>.jsonl` of a questions run, and what they ask about."""

RETRIEVED, SHUFFLED = "retrieved answer of another question", "random answer of its kind"


@settings
class NeedleSettings:
    """The needle grid."""

    trials: int = 4
    """Prompts per cell."""
    lengths: list[int] | None = None
    """Lengths of the prompts, in tokens; default: doubling from 128 to the model's context."""

    def __post_init__(self):
        if self.trials < 1 or any(length < 64 for length in self.lengths or ()):
            raise ValueError("trials must be at least 1 and every length at least 64 tokens")


@settings
class EvaluateSettings:
    """Judge checkpoints by bits per byte, needles in long contexts, and answers to questions."""

    out: Path
    """Run folder to write."""
    models: dict[str, Path]
    """Checkpoints or run folders by the name they get in the tables, in the order they were made."""
    shards: Path
    """Run folder of `herd pack`: bits per byte and needles are measured on its held-out side."""
    questions: Path | None = None
    """Run folder of `herd questions`; without it nothing is asked."""
    tasks: list[Task] = field(default_factory=lambda: ["perplexity", "needle", "answers"])
    """What to measure."""
    text_models: list[str] | None = None
    """Models judged on bits per byte and needles; default: the first and the last."""
    base_models: list[str] | None = None
    """Models that know no chat format and are asked by `Question: ... Answer:`; default: the first."""
    max_bytes: int = 250_000
    """Held-out text per source for bits per byte, in bytes; whole documents, spread evenly."""
    context_tokens: int | None = None
    """Context for bits per byte, in tokens; default: the model's own."""
    answer_tokens: int = 40
    """Longest answer, in tokens."""
    needle: NeedleSettings = field(default_factory=NeedleSettings)
    """The needle grid."""

    def __post_init__(self):
        if not self.models:
            raise ValueError("models: name at least one checkpoint")
        if unknown := {*(self.text_models or ()), *(self.base_models or ())} - set(self.models):
            raise ValueError(f"text_models and base_models may only name models; {min(unknown)} is not one of them")
        if self.max_bytes < 1 or self.answer_tokens < 1:
            raise ValueError("max_bytes and answer_tokens must be at least 1")


def run(settings: EvaluateSettings) -> Path:
    """Write `scores.jsonl`, `samples.jsonl` and `needle.json`, and show the scores as tables."""
    inputs = {f"model {name}": path for name, path in settings.models.items()}
    inputs |= {"shards": settings.shards, "questions": settings.questions}
    with open_run(settings.out, stage="evaluate", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=20e6)
        scores: list[Score] = []
        figures: dict[str, Any] = {}
        heldout = open_heldout(settings.shards)
        if not heldout:
            say("  nothing was held out (too few documents): bits per byte and needles are left out")
        if "perplexity" in settings.tasks and heldout:
            scores += _judge_text(run, settings, heldout)
        if "needle" in settings.tasks and heldout:
            scores += _judge_needles(run, settings, heldout)
        if "answers" in settings.tasks and settings.questions:
            answered, figures = _judge_answers(run, settings)
            scores += answered
        atomic_write(run.path / "scores.jsonl", "".join(json.dumps(asdict(score)) + "\n" for score in scores))
        run.finish(_headlines(scores, _text_models(settings)[0], figures.get("best", "")) | figures)
    return run.path


def _kept(run: Run, name: str, make: Callable[[], Any]) -> Any:
    """A part of the work: read back where an interrupted run had finished it, else made and kept."""
    file = run.path / "state" / f"{name}.json"
    if not file.exists():
        atomic_write(file, json.dumps(make()))
        gc.collect()  # a model's caches, before the next one is loaded
    return json.loads(file.read_text(encoding="utf-8"))


# ---- bits per byte ---------------------------------------------------------------------------------------------------


def _judge_text(run: Run, settings: EvaluateSettings, heldout: Mapping[str, Documents]) -> list[Score]:
    chosen = {source: perplexity.sample_documents(found, settings.max_bytes) for source, found in heldout.items()}
    scores = []
    known = _kept(run, "text-baselines", partial(_baseline_bits, settings, heldout, chosen))
    for source, documents in heldout.items():
        size = int(documents.num_bytes[chosen[source]].sum())
        say(f"  held-out {source}: {len(chosen[source])} of {len(documents)} documents, {size:,} bytes")
        score = partial(Score, task=f"held-out {source}", metric="bits_per_byte", n=len(chosen[source]))
        for name in _text_models(settings):
            part = f"text-{_key(name)}-{source}"
            scores.append(
                score(model=name, **_kept(run, part, partial(_bits, settings, name, documents, chosen[source])))
            )
        scores += [score(model=name, value=value) for name, value in known[source].items()]
    _show_table("bits per byte", scores)
    return scores


def _bits(settings: EvaluateSettings, name: str, documents: Documents, chosen: Sequence[int]) -> dict[str, float]:
    model = open_checkpoint(settings.models[name]).load()
    length = perplexity.code_length(
        model,
        [documents.tokens(index) for index in chosen],
        documents.num_bytes[chosen],
        context_tokens=settings.context_tokens or model.config.max_position_embeddings,
    )
    error = length.stderr if math.isfinite(length.stderr) else 0.0
    value = length.bits_per_byte
    return {"value": value, "stderr": error, "low": value - 1.96 * error, "high": value + 1.96 * error}


def _baseline_bits(
    settings: EvaluateSettings, heldout: Mapping[str, Documents], chosen: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """By source, the trigram and `xz` on the documents the models are judged on.

    The trigram has counted all training tokens of all sources; `xz` is shown alone and with all training text in view.
    """
    tokenizer = open_checkpoint(next(iter(settings.models.values()))).tokenizer
    training = open_shards(settings.shards / "train").values()
    train = [documents.tokens(index)[1:] for documents in training for index in range(len(documents))]
    trigram = baselines.Trigram(train, tokenizer.vocab_size, tokenizer.bos_id)
    tests = {  # without begin-of-text, which is given
        source: [documents.tokens(index)[1:] for index in chosen[source]] for source, documents in heldout.items()
    }
    texts = {source: [_text(tokenizer, tokens) for tokens in test] for source, test in tests.items()}
    given = baselines.xz_bits_per_byte_given([_text(tokenizer, tokens) for tokens in train], texts)
    return {
        source: {
            "trigram": trigram.bits_per_byte(tests[source], int(documents.num_bytes[chosen[source]].sum())),
            "xz": baselines.xz_bits_per_byte(texts[source]),
            "xz given the training text": given[source],
        }
        for source, documents in heldout.items()
    }


def _text(tokenizer: Tokenizer, tokens: np.ndarray) -> bytes:
    """The bytes of a document, whose last token is end-of-text."""
    return tokenizer.decode_bytes(tokens[:-1])


def _text_models(settings: EvaluateSettings) -> list[str]:
    names = list(settings.models)
    return settings.text_models or list(dict.fromkeys([names[0], names[-1]]))


# ---- needles ---------------------------------------------------------------------------------------------------------


def _judge_needles(run: Run, settings: EvaluateSettings, heldout: Mapping[str, Documents]) -> list[Score]:
    largest = max(heldout.values(), key=lambda documents: int(documents.num_tokens.sum()))
    haystack = np.concatenate([largest.tokens(index)[1:-1] for index in range(len(largest))])
    grids, scores = {}, []
    for name in _text_models(settings):
        grid = _kept(run, f"needle-{_key(name)}", partial(_grid, settings, name, haystack))
        if not grid:
            continue
        grids[name] = grid | {"accuracy": grid["copied"]}
        count = grid["trials"] * len(grid["depths"]) * len(grid["lengths"])
        for metric in ("copied", "chosen"):
            value = float(np.mean(grid[metric]))
            error = math.sqrt(value * (1 - value) / count)
            scores.append(Score(task="needle", metric=metric, model=name, value=value, stderr=error, n=count))
        cells = ", ".join(
            f"{length}: {share:.0%}" for length, share in zip(grid["lengths"], np.mean(grid["copied"], axis=0))
        )
        say(f"  needle, {name}: word copied in {scores[-2].value:.0%} of {count} prompts (by length in tokens {cells})")
    note = (
        "A line KEY_742 = 'word' is planted in held-out text; the prompt ends with KEY_742 = '. Share of prompts after "
        f"which the word is the likeliest token of all. Among {needle.NUM_CHOICES} words that could have been planted: "
        + ", ".join(f"{name} {np.mean(grid['chosen']):.0%}" for name, grid in grids.items())
        + f" (chance {1 / needle.NUM_CHOICES:.0%})."
    )
    atomic_write(run.path / "needle.json", json.dumps({"models": grids, "note": note}))
    return scores


def _grid(settings: EvaluateSettings, name: str, haystack: np.ndarray) -> dict | None:
    checkpoint = open_checkpoint(settings.models[name])
    model = checkpoint.load()
    context = model.config.max_position_embeddings
    lengths = [length for length in settings.needle.lengths or needle.grid_lengths(context) if length <= context]
    lengths = [length for length in lengths if length <= len(haystack)]
    if not lengths:
        say(f"  needle: {len(haystack)} tokens of held-out text are too few, left out")
        return None
    ask = needle.model_next_logits(model)
    return needle.needle_grid(
        ask, checkpoint.tokenizer, haystack, lengths=lengths, trials=settings.needle.trials
    ).to_json()


# ---- answers ---------------------------------------------------------------------------------------------------------


def _judge_answers(run: Run, settings: EvaluateSettings) -> tuple[list[Score], dict[str, Any]]:
    """Scores of every model and baseline on every split, and the headline figures: the best model, the verdict."""
    questions = {split: _rows(settings.questions / f"eval_{split}.jsonl") for split in SPLITS}
    pool = [row for row in _rows(settings.questions / "train.jsonl") if row["kind"] in qa_kinds(questions)]
    answers: dict[str, dict[str, list[str]]] = {name: _ask(run, settings, name, questions) for name in settings.models}
    scores: list[Score] = []
    f1: dict[str, dict[str, list[float]]] = {}
    for split in ("trained", "heldout"):
        asked = questions[split]
        given = {name: answers[name][split] for name in settings.models}
        given |= {RETRIEVED: retrieval.retrieved_answers(asked, pool), SHUFFLED: retrieval.shuffled_answers(asked)}
        f1[split] = {name: qa.f1_scores(texts, asked) for name, texts in given.items()}
        scores += _f1_scores(f1[split], asked, SPLITS[split])
    for name in settings.models:
        refused = [
            qa.token_f1(text, row["answer"]) > 0.8 for text, row in zip(answers[name]["unknown"], questions["unknown"])
        ]
        scores.append(_score(f"questions about {SPLITS['unknown']}", "refused", name, refused))
    _show_table("answers", scores)
    verdict = _verdict(list(settings.models), f1["trained"])
    say(f"  {verdict}")
    _write_samples(run, settings, questions, answers, f1)
    best = max(list(settings.models), key=lambda name: float(np.mean(f1["trained"][name])))
    return scores, {"best": best, "verdict": verdict}


def qa_kinds(questions: dict[str, list[dict]]) -> set[str]:
    """The kinds of question that are asked: what the retrieving baseline may answer from."""
    return {row["kind"] for rows in questions.values() for row in rows}


def completion_prompt(question: qa.Question) -> str:
    """The question as raw text for a base model, which knows no chat format."""
    return f"Question: {qa.question_text(question)}\nAnswer:"


def _ask(run: Run, settings: EvaluateSettings, name: str, questions: dict[str, list[dict]]) -> dict[str, list[str]]:
    """A model's greedy answers to every split."""
    rows = [row for split in SPLITS for row in questions[split]]
    if name in (settings.base_models or list(settings.models)[:1]):
        prompts: list = [completion_prompt(row) for row in rows]
        stop: tuple[str, ...] = ("\n",)
    else:
        prompts, stop = [qa.prompt_of(row) for row in rows], ()
    params = SamplingParams(temperature=0.0, max_tokens=settings.answer_tokens, stop=stop)
    folder = run.path / "state" / f"answers-{_key(name)}"
    texts = [one for (one,) in sample_answers(settings.models[name], prompts, params, folder, label=f"ask {name}")]
    given, start = {}, 0
    for split in SPLITS:
        given[split] = texts[start : start + len(questions[split])]
        start += len(questions[split])
    return given


def _f1_scores(f1: dict[str, list[float]], asked: Sequence[dict], what: str) -> list[Score]:
    """F1 of each model over all questions, its difference to the retrieving baseline, and F1 of each kind."""
    scores = []
    for name, values in f1.items():
        scores.append(_score(f"questions about {what}", "token_f1", name, values))
        if name not in (RETRIEVED, SHUFFLED):
            gain = np.subtract(values, f1[RETRIEVED])
            scores.append(_score(f"questions about {what}", "gain_over_retrieved", name, gain))
        for kind in sorted({row["kind"] for row in asked}):
            of_kind = [value for value, row in zip(values, asked) if row["kind"] == kind]
            scores.append(_score(f"{kind} questions about {what}", "token_f1", name, of_kind))
    return scores


def _score(task: str, metric: str, model: str, values: Sequence[float]) -> Score:
    found = statistics.bootstrap(values)
    interval = {"low": found.low, "high": found.high} if found.n else {}
    value, stderr = (found.value, found.stderr) if found.n else (0.0, None)
    return Score(task=task, metric=metric, model=model, value=value, stderr=stderr, n=found.n, **interval)


def _verdict(models: Sequence[str], f1: dict[str, list[float]]) -> str:
    """Which step changed the answers about trained modules, judged by paired 95 % intervals."""
    parts = []
    for before, after in pairwise(models):
        change = statistics.paired_difference(f1[after], f1[before])
        word = "better" if change.low > 0 else "worse" if change.high < 0 else "no clear change"
        parts.append(f"{after} after {before}: {word} ({change.value:+.3f}, {change.low:+.3f} to {change.high:+.3f})")
    last = statistics.paired_difference(f1[models[-1]], f1[RETRIEVED])
    word = "above" if last.low > 0 else "below" if last.high < 0 else "not clearly different from"
    parts.append(f"{models[-1]}: {word} the {RETRIEVED} ({last.value:+.3f}, {last.low:+.3f} to {last.high:+.3f})")
    return "; ".join(parts)


def _write_samples(run: Run, settings: EvaluateSettings, questions: dict, answers: dict, f1: dict) -> None:
    """Every answer of every model, unedited: one line each."""
    lines = []
    for split in SPLITS:
        for place, row in enumerate(questions[split]):
            for name in settings.models:
                line = {
                    "task": f"questions about {SPLITS[split]}",
                    "model": name,
                    "kind": row["kind"],
                    "name": row["name"],
                    "question": qa.question_text(row),
                    "answer": answers[name][split][place],
                    "reference": row["messages"][-1]["content"],
                }
                line |= {"f1": round(f1[split][name][place], 4)} if split in f1 else {}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    atomic_write(run.path / "samples.jsonl", "".join(lines))


def _rows(file: Path) -> list[dict]:
    """The rows of a file of questions; an empty file has none."""
    return [row for _, row in read_rows(file)]


# ---- what is shown ---------------------------------------------------------------------------------------------------


def _show_table(title: str, scores: Sequence[Score]) -> None:
    """One line per model, one column per task and metric, values with their interval."""
    columns = list(
        dict.fromkeys((score.task, score.metric) for score in scores if " questions about" not in score.task)
    )
    models = list(dict.fromkeys(score.model for score in scores))
    found = {(score.model, score.task, score.metric): score for score in scores}
    heads = [f"{task.removeprefix('questions about ')}, {metric.replace('_', ' ')}" for task, metric in columns]
    width = max(len(name) for name in models)
    say(f"  {title}: " + " | ".join(heads))
    for name in models:
        cells = [_cell(found.get((name, task, metric))) for task, metric in columns]
        say(f"    {name:<{width}}  " + "  ".join(f"{cell:<22}" for cell in cells).rstrip())


def _cell(score: Score | None) -> str:
    if score is None or not score.n:
        return "-"
    interval = f" ({score.low:.3f} to {score.high:.3f})" if score.low is not None and score.high is not None else ""
    return f"{score.value:.3f}{interval}"


def _headlines(scores: Sequence[Score], first: str, best: str) -> dict[str, float]:
    """Figures for the manifest: text and needles of the model that was made for text, answers of the best."""
    figures = {}
    for score in scores:
        asked = score.task.startswith("questions about ")
        if score.model == (best if asked else first) and " questions about" not in score.task:
            name = f"{score.task.removeprefix('questions about ')} {score.metric}".replace(" ", "_")
            figures[name] = round(score.value, 4)
    return figures


def _key(name: str) -> str:
    """A model's name as a part of a file name."""
    plain = "".join(character if character.isalnum() or character in "-_" else "-" for character in name)
    return f"{plain}-{blake2b(name.encode(), digest_size=3).hexdigest()}"
