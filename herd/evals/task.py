"""A task is a file: where its rows are, how they become prompts, what is asked, and how answers are scored."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from herd.config import load, settings
from herd.data.rows import read_rows
from herd.errors import ConfigError, DataError
from herd.evals.answers import prompt_of, question_text, reference_of
from herd.evals.scorers import SCORERS
from herd.evals.subject import Prompt

_TEMPLATES = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


@settings
class Task:
    """One task. Texts are Jinja templates over a row's columns: `{{ question }}`; `row` is the whole row."""

    ask: Literal["choices", "generate", "bits_per_byte", "needle"]
    """choices: the likeliest of given answers. generate: a free answer. The other two read a run of `herd pack`."""
    data: Path
    """JSONL, CSV, TSV or Parquet: beside the task's file, in the folder `data=` of `herd evaluate`, or absolute."""
    name: str = ""
    """Its name in tables; default: the file's."""
    source: str = ""
    """Where the data comes from; told where it is missing."""
    columns: list[str] | None = None
    """Names of the columns of a CSV without a header."""
    where: str = ""
    """Only rows for which this Jinja expression holds, such as `subject == 'law'`."""
    limit: int | None = None
    """At most so many rows, drawn with `seed`."""
    seed: int = 0
    """Seed of the rows and of the examples."""
    prompt: str = ""
    """The question; default: the row's own `messages` or `prompt`."""
    system: str = ""
    """System message, where the prompt is a conversation."""
    chat: bool | None = None
    """Whether the prompt is a conversation; default: free answers of a model that speaks chat are."""
    answer: str = ""
    """What is right; of choices: a letter, a number counted from 0, or the text. Default: the row's own reference."""
    choices: list[str] | str = field(default_factory=list)
    """Answers to choose from: a list of templates, or the column that holds the list."""
    before_answer: str = " "
    """What stands between a prompt and its answer."""
    shots: int = 0
    """Solved examples before each question."""
    shots_from: Path | None = None
    """File of the examples, found as `data` is; default: other rows of the data."""
    shots_where: str = ""
    """Only examples for which this expression holds; `row` is the example, `asked` the question's row."""
    shot_answer: str = ""
    """What an example answers; default: `answer`, or the text of the right choice."""
    scorer: str = ""
    """choices: accuracy, accuracy_norm (by bytes), accuracy_pmi. generate: see herd/evals/scorers.py."""
    at_least: float | None = None
    """A score above this counts as 1, any other as 0."""
    metric: str = ""
    """Name of the score; default: the scorer's."""
    pattern: str = ""
    """Regular expression: what its first group finds last in an answer is scored, nothing where it finds nothing."""
    max_tokens: int = 128
    """Longest free answer, in tokens."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a free answer; raw text ends at a new line too if there are none."""
    group: str = ""
    """What belongs together (a passage, a subject): intervals are over whole groups."""
    kind: str = ""
    """Kind of question: each has scores of its own too."""
    baselines: list[Literal["retrieved", "shuffled"]] = field(default_factory=list)
    """Answers that know nothing: of the most similar question of `pool`, and of a random other one of its kind."""
    pool: Path | None = None
    """Rows for the retrieved answer, found as `data` is."""
    max_bytes: int = 250_000
    """bits_per_byte: held-out text per source; whole documents, spread evenly."""
    context_tokens: int | None = None
    """bits_per_byte: context in tokens; default: the model's own."""
    trials: int = 4
    """needle: prompts per cell."""
    lengths: list[int] | None = None
    """needle: lengths of the prompts in tokens; default: doubling from 128 to the model's context."""

    def __post_init__(self):
        known = {"choices": ("accuracy", "accuracy_norm", "accuracy_pmi"), "generate": tuple(SCORERS)}.get(self.ask, ())
        if self.scorer and self.scorer not in known:
            raise ValueError(f"scorer: {self.scorer} is none of {', '.join(known) or 'none'} for `ask: {self.ask}`")
        if self.ask == "choices" and not self.choices:
            raise ValueError("choices: give a list of texts, or the column that holds one")
        if self.pool is None and "retrieved" in self.baselines:
            raise ValueError("pool: the retrieved answer needs rows to retrieve from")
        if min(self.max_tokens, self.max_bytes, self.trials) < 1 or self.shots < 0 or (self.limit or 1) < 1:
            raise ValueError("max_tokens, max_bytes, trials and limit must be at least 1, shots at least 0")
        if any(length < 64 for length in self.lengths or ()):
            raise ValueError("lengths: every length must be at least 64 tokens")


@dataclass(frozen=True)
class Item:
    """One question of a task."""

    number: int
    row: Mapping[str, Any]
    text: str  # the question as it stands in tables
    examples: tuple[tuple[str, str], ...]  # question and answer, in order
    right: tuple[str, ...]  # right answers as texts; of choices the letters or texts are resolved to `best`
    choices: tuple[str, ...] = ()
    best: int = -1  # the right choice
    group: str = ""
    kind: str = ""

    def prompt(self, task: Task, speaks_chat: bool) -> Prompt:
        """What is put to a model: a conversation, or raw text with the examples before it."""
        chat = task.chat if task.chat is not None else speaks_chat and task.ask == "generate"
        if not chat and task.prompt:
            return "".join(f"{q}{task.before_answer}{a}\n\n" for q, a in self.examples) + self.text
        if not chat:
            return "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in self.examples) + _as_question(self.text)
        messages = [{"role": "system", "content": task.system}] if task.system else []
        for question, answer in self.examples:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        own = [{"role": "user", "content": self.text}] if task.prompt else prompt_of(self.row)
        return [*messages, *own]


def _as_question(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def load_task(file: Path, data: Path | None, limit: int | None = None) -> Task:
    """A task with the paths of its data resolved.

    Raises:
        ConfigError: it is no task; all its faults are told.
    """
    task = load(Task, file)
    paths = {name: getattr(task, name) for name in ("data", "shots_from", "pool")}
    found: dict[str, Any] = {name: _found(path, file.parent, data) for name, path in paths.items() if path}
    limits = [one for one in (limit, task.limit) if one]
    return replace(task, name=task.name or file.stem, limit=min(limits, default=None), **found)


def _found(path: Path, beside: Path, data: Path | None) -> Path:
    places = [data / path] if data else []
    places.append(beside / path)
    return next((place for place in places if place.exists()), places[0])


def missing(task: Task) -> str:
    """Why a task cannot be asked: which file it lacks, and whence that comes; nothing where all are there."""
    absent = next((path for path in (task.data, task.shots_from, task.pool) if path and not path.exists()), None)
    origin = f", from {task.source}" if task.source else ""
    if task.data is not None and task.data.is_file() and not task.data.stat().st_size:
        return f"{task.name}: {task.data} is empty, there is nothing to ask"
    return f"{absent} is not there (expected: the rows of {task.name}{origin})" if absent else ""


def rows_of(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of CSV, TSV, JSONL or Parquet.

    Raises:
        DataError: it cannot be read.
    """
    if path.suffix not in (".csv", ".tsv"):
        yield from (row for _, row in read_rows(path))
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, columns, delimiter="\t" if path.suffix == ".tsv" else ",")
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} columns")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None


def items_of(task: Task) -> list[Item]:
    """The questions of a task: filtered, limited, with their examples.

    Raises:
        DataError: a row lacks a column, its answer is none of the choices, or no row is left.
        ConfigError: a template is no Jinja.
    """
    rows = [row for row in rows_of(task.data, task.columns) if not task.where or _holds(task.where, row)]
    if not rows:
        raise DataError(f"{task.data}: no rows for {task.name}{f' where {task.where}' if task.where else ''}")
    asked = rows
    if task.limit and len(rows) > task.limit:
        asked = [rows[place] for place in sorted(random.Random(task.seed).sample(range(len(rows)), task.limit))]
    examples = list(rows_of(task.shots_from, task.columns)) if task.shots_from else rows
    return [_item(task, number, row, examples if task.shots else []) for number, row in enumerate(asked)]


def _item(task: Task, number: int, row: dict[str, Any], examples: list[dict[str, Any]]) -> Item:
    try:
        choices, best, right = _answers(task, row)
        return Item(
            number=number,
            row=row,
            text=_text(task, row),
            examples=tuple(_example(task, one) for one in _chosen(task, number, row, examples)),
            right=right,
            choices=choices,
            best=best,
            group=render(task.group, row),
            kind=render(task.kind, row),
        )
    except DataError as error:
        raise DataError(f"{task.data}, question {number + 1} of {task.name}: {error}") from None


def _text(task: Task, row: Mapping[str, Any]) -> str:
    return render(task.prompt, row) if task.prompt else question_text(row)


def _answers(task: Task, row: Mapping[str, Any]) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """The choices, which is right, and the right answers as texts."""
    if not task.answer and task.ask == "generate":
        return (), -1, (reference_of(row) or "",)
    found = _value(task.answer, row)
    right = tuple(str(one) for one in found) if isinstance(found, list) else (str(found),)
    if task.ask != "choices":
        return (), -1, right
    if isinstance(task.choices, str):
        choices = tuple(str(one) for one in row.get(task.choices) or ())
    else:
        choices = tuple(render(one, row) for one in task.choices)
    letter = right[0].strip()
    if letter in choices:
        best = choices.index(letter)
    elif letter.isdigit():
        best = int(letter)
    else:
        best = ord(letter.upper()) - ord("A") if len(letter) == 1 else -1
    if not 0 <= best < len(choices):
        raise DataError(f"the answer {letter!r} is none of its {len(choices)} choices")
    return choices, best, (choices[best],)


def _value(template: str, row: Mapping[str, Any]) -> Any:
    """A column as it is where the template is just its name in braces: a list stays one."""
    name = template.strip().removeprefix("{{").removesuffix("}}").strip()
    return row[name] if name in row and template.strip().startswith("{{") else render(template, row)


def _example(task: Task, row: Mapping[str, Any]) -> tuple[str, str]:
    answer = render(task.shot_answer, row) if task.shot_answer else _answers(task, row)[2][0]
    return _text(task, row), answer


def _chosen(task: Task, number: int, row: dict, examples: Sequence[dict]) -> list[dict]:
    """The examples of one question: the first of their file, or other rows drawn with the seed."""
    fit = [one for one in examples if one is not row and (not task.shots_where or _fits(task.shots_where, one, row))]
    if len(fit) < task.shots and examples:
        raise DataError(f"{task.shots} examples are wanted, {len(fit)} are there")
    return fit[: task.shots] if task.shots_from else random.Random(f"{task.seed} {number}").sample(fit, task.shots)


def render(template: str, row: Mapping[str, Any]) -> str:
    """A template over a row.

    Raises:
        DataError: the row lacks a column.
        ConfigError: it is no Jinja.
    """
    if "{" not in template:
        return template
    try:
        return _TEMPLATES.from_string(template).render(**{str(key): value for key, value in row.items()}, row=row)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{template!r}: no Jinja template ({error})") from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(f"{template!r}: {error}; the row has {', '.join(map(str, row))}") from None


def _holds(expression: str, row: Mapping[str, Any]) -> bool:
    return render("{{ 1 if (" + expression + ") else 0 }}", row) == "1"


def _fits(expression: str, example: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return _holds(expression, {**example, "asked": asked})
