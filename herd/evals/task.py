"""A task is a file: where its rows are, how they become prompts, what is asked, and how answers are scored."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from herd.config import load, settings, to_dict
from herd.errors import DataError
from herd.evals.answers import prompt_of, question_text, reference_of
from herd.evals.forms import chosen, derived, found, gathered, is_there, joined, say_lacking
from herd.evals.graders import GRADERS
from herd.evals.imported import harness_task, is_harness_task
from herd.evals.rows import files_of, rows_of
from herd.evals.scorers import SCORERS, is_letter, last_number_of
from herd.evals.services import services_folder
from herd.evals.subject import Prompt
from herd.evals.templates import expression_of, holds, render, value_of
from herd.log import say
from herd.sandbox import languages

_CHOICE_SCORERS = ("accuracy", "accuracy_norm", "accuracy_pmi", "mass")


@settings
class Task:
    """One task. Texts are Jinja templates over a row's columns: `{{ question }}`; `row` is the whole row."""

    ask: Literal["choices", "generate", "text", "cache", "bits_per_byte", "needle"]
    """choices: the likeliest of given answers. generate: a free answer. text: how likely `answer` is after `prompt`.
    cache: what an int8 cache changes about `prompt`'s text. The other two read a run of `herd pack`."""
    data: Path
    """JSONL, JSON, CSV, TSV or Parquet: beside the task's file, in the folder `data=` of `herd evaluate`, or absolute.
    The name may hold `*`, or alternatives in braces: rows of several files have their file's name as `file`."""
    name: str = ""
    """Its name in tables; default: the file's."""
    source: str = ""
    """Where the data comes from; told where it is missing."""
    published: dict[str, float] | None = None
    """Figures that others published for this protocol, by model; shown in a column of their own."""
    columns: list[str] | None = None
    """Names of the columns of a CSV without a header."""
    unfold: list[str] = field(default_factory=list)
    """Nested lists whose entries are the rows, from the outermost in: `[data, paragraphs, qas]`; see evals/rows.py."""
    tables: dict[str, Path] = field(default_factory=dict)
    """Further files, whose rows templates reach as lists by these names; found as `data` is."""
    join: dict[str, str] = field(default_factory=dict)
    """Of tables by name: the column by which each row gets the columns of the table's row with the same value."""
    derive: dict[str, str] = field(default_factory=dict)
    """Columns made of a row's others before all else, each by an expression: `{label: "choices.label.index(key)"}`."""
    gather: dict[str, str] = field(default_factory=dict)
    """Lists of the rows that share a value, by an expression: `{qas: context}`; `place` is a row's place in it."""
    forms: list[dict[str, Any]] = field(default_factory=list)
    """Other forms in which the same rows are published: what of the task is otherwise then. The columns that `has`
    lists tell one in the task's own file; where that is absent, the form's own `data` is taken."""
    where: str = ""
    """Only rows for which this Jinja expression holds, such as `subject == 'law'`."""
    limit: int | None = None
    """At most so many rows, drawn with `seed`; spread evenly over `kind`, or else `group`, where given."""
    seed: int = 0
    """Seed of the rows and of the examples."""
    prompt: str = ""
    """The question; default: the row's own `messages` or `prompt`."""
    system: str = ""
    """System message, where the prompt is a conversation."""
    preamble: str = ""
    """What stands before the examples and the question in raw text."""
    chat: bool | None = None
    """Whether the prompt is a conversation; default: free answers of a model that speaks chat are."""
    answer: str = ""
    """What is right; of choices: a letter, a number counted from 0, or the text. Default: the row's own reference."""
    choices: list[str] | str = field(default_factory=list)
    """Answers to choose from: a list of templates, or an expression that gives the list, such as a column."""
    before_choices: list[str] = field(default_factory=list)
    """What stands between the prompt and each choice and is not scored: templates, one for each choice."""
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
    drop_shots: bool = False
    """Whether a prompt beyond a model's context loses examples, the last first, until it fits; else its question is
    left out."""
    scorer: str = ""
    """choices: accuracy, accuracy_norm (by bytes), accuracy_pmi, mass (of probability on right choices).
    generate: see herd/evals/scorers.py and herd/evals/graders.py."""
    at_least: float | None = None
    """A score above this counts as 1, any other as 0."""
    metric: str = ""
    """Name of the score; default: the scorer's."""
    pattern: str = ""
    """Regular expression: what its first group finds last in an answer is scored, nothing where it finds nothing."""
    program: str = ""
    """Of code: the program that is run, a template over the row and the answer's code, `answer`; it must end well."""
    tests: str = ""
    """Of code: a template of what is run after the program."""
    language: str = "python"
    """What the program is written in; see docs/sandbox.md."""
    sandbox: str = "full"
    """Level of the sandbox in which programs run (docs/sandbox.md)."""
    functions: str = ""
    """Of function calls: an expression that gives the functions' JSON schemas."""
    services: Path | None = None
    """Of function calls over several turns: the package bfcl-eval, unpacked there or installed, in whose simulated
    services they are made; every turn must leave these as the right calls do."""
    samples: int = 1
    """Answers drawn for each question; the score is their mean."""
    temperature: float = 0.0
    """How answers are drawn; 0 takes the likeliest token."""
    pass_at: list[int] = field(default_factory=list)
    """Of several samples: how likely one of so many is right."""
    average: Literal["items", "kinds"] = "items"
    """Whether the score is the mean of all questions, or of the means of the kinds."""
    max_tokens: int = 128
    """Longest free answer, in tokens."""
    min_tokens: int = 0
    """Tokens before which no answer ends."""
    turns: str = ""
    """What the user says after each answer: an expression that gives a list of messages, or a template that writes one
    as JSON. Every answer is scored."""
    output_language: str = ""
    """Of a translation: a template of the ISO 639-1 code of the language that is wanted."""
    map: list[str] = field(default_factory=list)
    """Two templates: the row and the column of a heat map of scores in the page, such as depth and length."""
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
    """bits_per_byte, cache: context in tokens; default: the model's own."""
    trials: int = 4
    """needle: prompts per cell."""
    lengths: list[int] | None = None
    """needle: lengths of the prompts in tokens; default: doubling from 128 to the model's context."""

    def __post_init__(self):
        known = {"choices": _CHOICE_SCORERS, "generate": (*SCORERS, *GRADERS)}.get(self.ask, ())
        if self.scorer and self.scorer not in known:
            raise ValueError(f"scorer: {self.scorer} is none of {', '.join(known) or 'none'} for `ask: {self.ask}`")
        if self.ask == "choices" and not self.choices:
            raise ValueError("choices: give a list of texts, or the column that holds one")
        if self.before_choices and (isinstance(self.choices, str) or len(self.before_choices) != len(self.choices)):
            raise ValueError("before_choices: give one for each of a list of choices")
        if self.ask in ("text", "cache") and not (self.answer if self.ask == "text" else self.prompt):
            raise ValueError(
                "text: give `answer`, the text that is scored; cache: give `prompt`, the text that is read"
            )
        if self.turns and self.chat is not True:
            raise ValueError("turns: needs `chat: true`, for they are those of a conversation")
        if self.services and (self.scorer != "calls" or not self.turns):
            raise ValueError("services: needs `scorer: calls` and `turns`")
        if self.map and len(self.map) != 2:
            raise ValueError("map: two templates, of the rows and of the columns")
        if self.scorer == "translation" and not self.output_language:
            raise ValueError("output_language: say in which language a translation is to be")
        if self.scorer == "program" and not self.program:
            raise ValueError("program: say which program is run, such as '{{ answer }}\\n{{ test }}'")
        if self.samples > 1 and not self.temperature:
            raise ValueError("temperature: several samples at temperature 0 are the same one")
        if self.average == "kinds" and not self.kind:
            raise ValueError("kind: the mean of kinds needs a `kind`")
        if max(self.pass_at, default=1) > self.samples or min(self.pass_at, default=1) < 1:
            raise ValueError("pass_at: at least 1 and at most as many as `samples`")
        if self.pool is None and "retrieved" in self.baselines:
            raise ValueError("pool: the retrieved answer needs rows to retrieve from")
        if (
            min(self.max_tokens, self.max_bytes, self.trials, self.samples) < 1
            or self.shots < 0
            or (self.limit or 1) < 1
        ):
            raise ValueError("max_tokens, max_bytes, trials, samples and limit must be at least 1, shots at least 0")
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
    before: tuple[str, ...] = ()  # what stands before each choice
    best: int = -1  # the right choice, the first of them
    rights: frozenset[int] = frozenset()  # all right choices
    preamble: str = ""
    system: str = ""
    group: str = ""
    kind: str = ""

    def prompt(self, task: Task, speaks_chat: bool) -> Prompt:
        """What is put to a model: a conversation, or raw text with the examples before it."""
        chat = task.chat if task.chat is not None else speaks_chat and task.ask == "generate"
        if not chat and (task.prompt or task.before_choices or task.ask == "text"):
            shown = "".join(f"{q}{task.before_answer}{a}\n\n" for q, a in self.examples)
            return self.preamble + shown + self.text
        if not chat:
            shown = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in self.examples)
            return self.preamble + shown + _as_question(self.text)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.examples:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        own = [{"role": "user", "content": self.text}] if task.prompt else prompt_of(self.row)
        return [*messages, *own]


def _as_question(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def load_task(file: Path, data: Path | None, limit: int | None = None) -> Task:
    """A task, ours or one of lm-evaluation-harness's, with the paths of its data resolved.

    Raises:
        ConfigError: it is no task; all its faults are told.
        DataError: its file is no table of rows.
    """
    task = load(Task, values=harness_task(file), where=str(file)) if is_harness_task(file) else load(Task, file)
    if form := chosen(task.forms, task.data, (file.parent, data)):
        task = _in_form(task, form, str(file))
        say(f"  {task.name or file.stem}: its rows are read as those of {task.source}")
    paths = {name: getattr(task, name) for name in ("data", "shots_from", "pool")}
    where: dict[str, Any] = {name: found(path, file.parent, data) for name, path in paths.items() if path}
    where["tables"] = {name: found(path, file.parent, data) for name, path in task.tables.items()}
    if task.services:
        named = found(task.services, file.parent, data)
        where["services"] = services_folder(named) or named
    limits = [one for one in (limit, task.limit) if one]
    return replace(task, name=task.name or file.stem, limit=min(limits, default=None), **where)


def _in_form(task: Task, form: dict[str, Any], where: str) -> Task:
    """The task as one of its forms changes it; `derive` and `tables` are put over its own."""
    plain = to_dict(task)
    for name in ("derive", "tables"):
        form = form | {name: form.get(name, {}) | {k: v for k, v in plain[name].items() if k not in form.get(name, {})}}
    changed = {name: value for name, value in form.items() if name != "has"}
    return load(Task, values=plain | to_dict(changed) | {"forms": []}, where=f"{where}, forms")


def paths_of(task: Task) -> list[Path]:
    """All files that a task reads."""
    named = (task.data, task.shots_from, task.pool, *task.tables.values())
    return [file for path in named if path for file in files_of(path)]


def missing(task: Task) -> str:
    """Why a task cannot be asked: which file it lacks, and whence that comes, or which language's programs; nothing
    where all are there."""
    wanted = [path for path in (task.data, task.shots_from, task.pool, *task.tables.values()) if path]
    absent = next((path for path in wanted if not is_there(path)), None)
    origin = f", from {task.source}" if task.source else ""
    if task.data is not None and task.data.is_file() and not task.data.stat().st_size:
        return f"{task.name}: {task.data} is empty, there is nothing to ask"
    if absent is not None:
        others = "".join(f"; or {one['data']}, from {one['source']}" for one in task.forms if "data" in one)
        return f"{absent} is not there (expected: the rows of {task.name}{origin}{others})"
    if task.services and services_folder(task.services) is None:
        how = "unpack its wheel beside the data (pip download --no-deps bfcl-eval)"
        return f"{task.name}: {task.services} is not there (expected: the simulated services of bfcl-eval; {how})"
    if task.scorer == "program" and task.language not in languages.LANGUAGES:
        return f"{task.name}: the sandbox runs no {task.language}"
    programs = languages.missing(task.language) if task.scorer == "program" else []
    return f"{task.name}: {task.language} needs {', '.join(programs)}, not found on the PATH" if programs else ""


def items_of(task: Task) -> list[Item]:
    """The questions of a task: filtered, limited, with their examples.

    Raises:
        DataError: a row lacks a column, its answer is none of the choices, or no row is left.
        ConfigError: a template is no Jinja.
    """
    tables = {name: list(rows_of(path)) for name, path in task.tables.items()}
    say_lacking(task.name, task.data)
    rows = list(_rows(task, task.data, tables))
    rows = [row for number, row in enumerate(rows, 1) if not task.where or _told(task, number, holds, task.where, row)]
    if not rows:
        raise DataError(f"{task.data}: no rows for {task.name}{f' where {task.where}' if task.where else ''}")
    examples = rows if task.shots else []
    if task.shots and task.shots_from:
        examples = _rows(task, task.shots_from, tables)
    items, faults = list[Item](), list[str]()
    for number, row in enumerate(_limited(task, rows)):
        try:
            items.append(_item(task, number, row, examples))
        except DataError as error:
            faults.append(f"question {number + 1} of {task.name}: {error}")
    if faults:
        more = f"; and {len(faults) - 1} more of its questions have faults" if len(faults) > 1 else ""
        raise DataError(f"{task.data}, {faults[0]}{more}")
    return items


def _told(task: Task, number: int, what: Callable[..., Any], expression: str, row: dict[str, Any]) -> Any:
    """What an expression is over a row; a fault tells which row of which file it is."""
    try:
        return what(expression, row)
    except DataError as error:
        raise DataError(f"{task.data}, row {number} of {task.name}: {error}") from None


def _rows(task: Task, path: Path, tables: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a file with all that the task adds to them."""
    rows = joined(list(rows_of(path, task.columns, task.unfold)), tables, task.join)
    rows = derived([tables | row for row in rows], task.derive, path)
    return gathered(rows, task.gather)


def _limited(task: Task, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are asked, in their order: as many of each part as of any other, as far as they go."""
    if not task.limit or len(rows) <= task.limit:
        return rows
    parts: dict[str, list[int]] = {}
    part = task.kind or task.group
    for place, row in enumerate(rows):
        parts.setdefault(_told(task, place + 1, render, part, row), []).append(place)
    draw = random.Random(task.seed)
    drawn = [draw.sample(places, len(places)) for _, places in sorted(parts.items())]
    draw.shuffle(drawn)  # a limit below the number of parts takes any of them
    spread = [place for layer in zip_longest(*drawn) for place in layer if place is not None]
    return [rows[place] for place in sorted(spread[: task.limit])]


def _item(task: Task, number: int, row: dict[str, Any], examples: list[dict[str, Any]]) -> Item:
    text = _text(task, row)
    choices, rights, right = _answers(task, row)
    if len(choices) == 1:
        raise DataError(f"one choice alone ({choices[0]!r}) is always right; give at least two")
    return Item(
        number=number,
        row=row,
        text=text,
        examples=tuple(_example(task, one) for one in _chosen(task, number, row, examples)),
        right=right,
        choices=choices,
        before=tuple(render(one, row) for one in task.before_choices),
        best=rights[0] if rights else -1,
        rights=frozenset(rights),
        preamble=render(task.preamble, row),
        system=render(task.system, row),
        group=render(task.group, row),
        kind=render(task.kind, row),
    )


def _text(task: Task, row: Mapping[str, Any]) -> str:
    own = task.prompt or task.before_choices or task.ask == "text"
    return render(task.prompt, row) if own else question_text(row)


def _answers(task: Task, row: Mapping[str, Any]) -> tuple[tuple[str, ...], list[int], tuple[str, ...]]:
    """The choices, which are right, and the right answers as texts."""
    if not task.answer and task.ask in ("generate", "cache"):
        reference = reference_of(row) or ""
        _check_right(task, (reference,))
        return (), [], (reference,)
    given = value_of(task.answer, row)
    several = given if isinstance(given, list) else [given]
    if None in several:
        raise DataError(f"its right answer, {task.answer}, is null")
    right = tuple(str(one) for one in several)
    if task.ask != "choices":
        _check_right(task, right)
        return (), [], right
    listed = expression_of(task.choices, row) or () if isinstance(task.choices, str) else ()
    if isinstance(listed, str):
        raise DataError(f"its choices, {task.choices}, are no list but the text {listed[:60]!r}")
    numbers = bool(listed) and all(isinstance(one, int | float) for one in listed)
    choices = tuple(map(str, listed)) or tuple(render(one, row) for one in task.choices)
    places = [_place(one, choices, numbers) for one in several]
    if not task.before_choices:  # a text that stands there twice is right both times
        right = tuple(choices[place] for place in places)
        places += [place for place, one in enumerate(choices) if one in right and place not in places]
    return choices, places, tuple(choices[place] for place in places)


def _check_right(task: Task, right: Sequence[str]) -> None:
    """Refuse a right answer that no answer could meet.

    Raises:
        DataError: it is empty, or is not of the kind that the scorer looks for.
    """
    scorer = task.scorer or "exact_words"
    if task.ask != "generate" or scorer not in SCORERS or scorer == "fresh":
        return
    if not any(one.strip() for one in right):
        raise DataError("it has no right answer; give `answer:` in the task's file, or fill the row's own")
    if scorer == "number" and all(last_number_of(one) is None for one in right):
        raise DataError(f"the scorer `number` looks for a number, but the right answer is {right[0]!r}")
    if scorer == "letter" and not any(is_letter(one) for one in right):
        raise DataError(f"the scorer `letter` looks for one capital letter, but the right answer is {right[0]!r}")


def _place(given: Any, choices: Sequence[str], numbers: bool) -> int:
    """Which choice is meant: by its place, where that is a number and the choices are none; by its text; by its number
    from 0 as text; by its letter."""
    if isinstance(given, int) and not isinstance(given, bool) and not numbers and 0 <= given < len(choices):
        return int(given)
    text = str(given).strip()
    if text in choices:
        return choices.index(text)
    if text.isdigit():
        place = int(text)
    else:
        place = ord(text.upper()) - ord("A") if len(text) == 1 else -1
    if not 0 <= place < len(choices):
        raise DataError(f"the answer {text!r} is none of its {len(choices)} choices")
    return place


def _example(task: Task, row: Mapping[str, Any]) -> tuple[str, str]:
    _, rights, right = _answers(task, row)
    before = render(task.before_choices[rights[0]], row) if task.before_choices else ""
    answer = render(task.shot_answer, row) if task.shot_answer else right[0]
    return _text(task, row) + before, answer


def _chosen(task: Task, number: int, row: dict, examples: Sequence[dict]) -> list[dict]:
    """The examples of one question: the first of their file, or other rows drawn with the seed."""
    asked = {"asked": row}
    fit = [one for one in examples if one is not row and (not task.shots_where or holds(task.shots_where, one | asked))]
    if len(fit) < task.shots and examples:
        raise DataError(f"{task.shots} examples are wanted, {len(fit)} are there")
    return fit[: task.shots] if task.shots_from else random.Random(f"{task.seed} {number}").sample(fit, task.shots)
