"""The published formats of preference data, as one table: a prompt, and a better and a worse response."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from herd.data.shapes import (
    LISTS,
    PROMPTS,
    SYSTEMS,
    Row,
    asking_keys,
    before_answer,
    count_unread,
    rank_of,
    with_system,
)
from herd.data.talks import LeftOut, Notes, Talk, as_text, asked, dialogue_of, refuse_media, said, tools_of, turns_of
from herd.errors import DataError
from herd.types import Message

RANKS = ("edited", "chosen", "rejected")
"""The responses of a pair, best first."""


class Choice(NamedTuple):
    """A prompt and its responses, each one or more messages, by their rank."""

    prompt: list[Message]
    responses: dict[str, list[Message]]
    tools: list[Any] | None = None
    group: str | None = None  # what belongs together beyond the prompt
    gap: float | None = (
        None  # by how much the chosen response's score is above the rejected one's, where both are known
    )


class _Shape(NamedTuple):
    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row, Notes], Iterable[Choice]]
    keys: Callable[[Row], Iterable[str]]


def choices_of(row: Row, notes: Notes) -> list[Choice]:
    """The pairs of a row; none if it is left out, which `notes` counts.

    Raises:
        DataError: the row has no known shape, or is damaged.
    """
    shape = next((shape for shape in _SHAPES if shape.fits(row)), None)
    if shape is None:
        raise DataError(_unknown(row))
    try:
        refuse_media(row)
        found = list(shape.read(row, notes))
    except LeftOut as reason:
        notes.left_out[str(reason)] += 1
        return []
    told = [Talk([*one.prompt, *response], []) for one in found for response in one.responses.values()]
    count_unread(row, (*shape.keys(row), "strength"), told, notes)
    return found


def choice_shape_of(row: Row) -> str | None:
    """The name of a row's format, None if it is not a preference."""
    return next((shape.name for shape in _SHAPES if shape.fits(row)), None)


def _unknown(row: Row) -> str:
    if "label" in row and "completion" in row:
        return (
            "not a preference pair: one response with its `label` (KTO's form); pair a good and a bad one of a prompt"
        )
    return (
        f"not a preference pair: it lacks `{'rejected' if row.get('chosen') is not None else 'chosen'}`; expected "
        f"`prompt`, `chosen`, `rejected` or a form that docs/tuning.md lists; the row has {', '.join(map(str, row))}"
    )


def _chosen(row: Row, notes: Notes) -> Iterable[Choice]:
    responses = {name: _response(row[name], name, notes) for name in RANKS if row.get(name) is not None}
    yield joined(_prompt(row, notes), responses, tools_of(row))._replace(gap=_gap(row))


_SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"))


def _gap(row: Row) -> float | None:
    """How much the chosen response's own score is above the rejected one's, None where either has none."""
    pairs = ((row.get(chosen), row.get(rejected)) for chosen, rejected in _SCORES)
    known = ((one, other) for one, other in pairs if isinstance(one, int | float) and isinstance(other, int | float))
    return next((float(one) - float(other) for one, other in known if math.isfinite(one - other)), None)


def _prompt(row: Row, notes: Notes) -> list[Message]:
    """The prompt, from its key or from the messages beside; empty if only the responses contain it."""
    name = next((name for name in LISTS if row.get(name)), None)
    if any(row.get(name) for name in PROMPTS):
        turns = before_answer(row, notes)
    elif isinstance(row.get("context"), list):  # HelpSteer3's
        turns = with_system(row, turns_of(row["context"], "context", notes))
    else:
        turns = with_system(row, turns_of(row[name], name, notes) if name else [])
    return [message for message, _ in turns]


def _response(value: Any, name: str, notes: Notes) -> list[Message]:
    value = None if value != value else value  # NaN, as tables write nothing
    if value is None or isinstance(value, str):
        messages = dialogue_of(value or "") or [said("assistant", value or "")]
        if messages[-1]["role"] != "assistant":
            raise LeftOut("pairs with an empty response")
        return messages
    turns = []
    if value and isinstance(value, Mapping | list):
        turns = turns_of([value] if isinstance(value, Mapping) else value, name, notes)
    if not turns or turns[-1][0]["role"] != "assistant":
        raise DataError(f"`{name}` must be a text, or messages of which the last is the assistant's")
    if not all(on for _, on in turns):
        notes.unread["`weight` or `train` of messages in pairs"] += 1
    return [message for message, _ in turns]


def joined(prompt: list[Message], responses: Mapping[str, list[Message]], tools: list[Any] | None = None) -> Choice:
    """The choice of a prompt (perhaps empty) and responses that may repeat it.

    Without a prompt, it is what the conversations of the responses have in common.

    Raises:
        DataError: there is no prompt.
        LeftOut: the prompts of the responses differ, or two responses are the same.
    """
    wholes = {name: _whole(prompt, response) for name, response in responses.items()}
    length = len(prompt) if all(whole[: len(prompt)] == prompt for whole in wholes.values()) else 0
    if not length or any(_is_asked(whole[length:]) for whole in wholes.values()):
        length = _common(list(wholes.values()))
    tails = {name: whole[length:] for name, whole in wholes.items()}
    if any(_is_asked(tail) for tail in tails.values()):
        raise LeftOut("pairs whose prompts differ")
    if not length:
        raise DataError(
            "`prompt` must be a text or a list of messages, not empty, or the responses whole conversations"
        )
    if any(tail == other for name, tail in tails.items() for rank, other in tails.items() if name != rank):
        raise LeftOut("pairs whose responses are the same")
    return Choice(next(iter(wholes.values()))[:length], tails, tools)


def _whole(prompt: list[Message], response: list[Message]) -> list[Message]:
    """A response with its prompt before it, once."""
    if not _is_asked(response) or not prompt:
        return [*prompt, *response]
    if response[: len(prompt)] == prompt:
        return response
    system, rest = (prompt[:1], prompt[1:]) if prompt[0]["role"] == "system" else ([], prompt)
    if response[0]["role"] != "system":
        response = [*system, *response]
    if all(message in response for message in rest):  # the last question of several, or nothing but a system prompt
        return response
    raise LeftOut("pairs whose prompts differ")


def _is_asked(messages: Sequence[Message]) -> bool:
    return any(message["role"] in ("user", "system") for message in messages)


def _common(wholes: Sequence[list[Message]]) -> int:
    """How many messages the conversations have in common, such that the assistant speaks next in each."""
    length = 0
    while all(length < len(whole) for whole in wholes) and all(whole[length] == wholes[0][length] for whole in wholes):
        length += 1
    while length and not all(length < len(whole) and whole[length]["role"] == "assistant" for whole in wholes):
        length -= 1
    return length


def _openai(row: Row, notes: Notes) -> Iterable[Choice]:
    given = row["input"]
    prompt = [message for message, _ in turns_of(given.get("messages"), "input.messages", notes)]
    names = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
    responses = {rank: _response(row[name], name, notes) for rank, name in names.items()}
    yield joined(prompt, responses, tools_of(given))


def _two(row: Row, notes: Notes) -> Iterable[Choice]:
    """Two responses, and which is the better one."""
    names, better = next((names, better) for *names, better in _TWO if all(name in row for name in names))
    first = better(row)
    if first is None:
        raise LeftOut("pairs of which none is preferred")
    answers = {"chosen": names[0 if first else 1], "rejected": names[1 if first else 0]}
    asks_itself = isinstance(row.get("history"), str)
    prompt = [message for message, _ in asked(row["history"], "history", notes)] if asks_itself else _prompt(row, notes)
    texts = {rank: as_text(row[name], notes) for rank, name in answers.items()}
    yield joined(prompt, {rank: _response(text, answers[rank], notes) for rank, text in texts.items()}, tools_of(row))


def _by_vote(row: Row) -> bool | None:
    if isinstance(row.get("overall_preference"), int | float):  # HelpSteer3's, -3 to 3
        return _by_sign("overall_preference")(row)
    votes = Counter(str(value) for key, value in row.items() if key.startswith("annotator"))
    return None if votes["1"] == votes["2"] or votes["0"] > max(votes["1"], votes["2"]) else votes["1"] > votes["2"]


def _one_of(key: str, first: str, second: str) -> Callable[[Row], bool | None]:
    return lambda row: {first: True, second: False}.get(str(row.get(key)))


def _by_sign(key: str) -> Callable[[Row], bool | None]:
    """HelpSteer's scale: below 0 the first is better."""
    return lambda row: None if not row.get(key) else row[key] < 0


_TWO: tuple[tuple[str, str, Callable[[Row], bool | None]], ...] = (
    ("output_1", "output_2", _one_of("label", "1", "2")),
    ("response1", "response2", _by_vote),
    ("response_0", "response_1", _one_of("better_response_id", "0", "1")),
    ("response_1", "response_2", _by_sign("preference_strength")),
    ("conversation_a", "conversation_b", _one_of("winner", "model_a", "model_b")),
    ("human_ref_A", "human_ref_B", _one_of("labels", "1", "0")),
    ("response_j", "response_k", lambda row: True),
    ("chosen_response", "rejected_response", lambda row: True),
    ("preferred", "dispreferred", lambda row: True),
    ("accepted", "rejected", lambda row: True),
)
_LISTED = (("generations", "ratings"), ("responses", "scores"))  # responses, and their scores in the same order


def _is_two(row: Row) -> bool:
    return any(first in row and second in row for first, second, _ in _TWO)


def _two_keys(row: Row) -> Iterable[str]:
    read = ("history", "label", "labels", "winner", "overall_preference", "preference_strength", "better_response_id")
    return (*read, *(name for names in _TWO for name in names[:2]), *_asking_keys(row))


def _ranked(row: Row, notes: Notes) -> Iterable[Choice]:
    """Several responses with scores (UltraFeedback) or ranks (Nectar): the best against the worst."""
    if names := _listed(row):
        pairs = zip(row[names[0]], row[names[1]], strict=True)
        row = {**row, "completions": [{"response": text, "overall_score": score} for text, score in pairs]}
    by_score = row.get("completions") is not None
    several = [one for one in row["completions" if by_score else "answers"] if isinstance(one, Mapping)]
    values = [(one.get("overall_score") if by_score else one.get("rank"), one) for one in several]
    known = sorted(((float(value), i) for i, (value, _) in enumerate(values) if value is not None), reverse=by_score)
    if len(known) < 2 or known[0][0] == known[-1][0]:
        raise LeftOut("pairs of which none is preferred")
    notes.left_out["responses between the best and the worst"] += len(several) - 2
    name, heard = ("response", "overall_score") if by_score else ("answer", "rank")
    ends = {"chosen": several[known[0][1]], "rejected": several[known[-1][1]]}
    for one in ends.values():
        notes.count_texts({key: value for key, value in one.items() if key not in (name, heard)}, " of responses")
    found = joined(_prompt(row, notes), {rank: _response(one[name], name, notes) for rank, one in ends.items()})
    yield found._replace(gap=known[0][0] - known[-1][0] if by_score else None)


def _listed(row: Row) -> tuple[str, str] | None:
    """The keys of responses and of their scores, where these are two lists."""
    for names in _LISTED:
        texts, scores = (row.get(name) for name in names)
        if isinstance(texts, list) and isinstance(scores, list) and len(texts) == len(scores) > 1:
            return names
    return None


def _is_ranked(row: Row) -> bool:
    if _listed(row):
        return True
    several = row.get("completions") or row.get("answers")
    return isinstance(several, list) and any(
        isinstance(one, Mapping) and ("overall_score" in one or "rank" in one) for one in several
    )


_REJECTED = ("rejected_response", "rejected_messages")


def _has_other_answer(row: Row) -> bool:
    return bool(row.get("messages")) and any(row.get(name) for name in _REJECTED)


def _answered_otherwise(row: Row, notes: Notes) -> Iterable[Choice]:
    """A conversation, and what else its last answer might have been (ms-swift's)."""
    whole = _prompt({**row, "prompt": None}, notes)
    name = next(name for name in _REJECTED if row.get(name))
    if not whole or whole[-1]["role"] != "assistant":
        raise LeftOut("pairs with an empty response")
    yield joined(whole[:-1], {"chosen": whole[-1:], "rejected": _response(row[name], name, notes)}, tools_of(row))


def _tree(row: Row, notes: Notes) -> Iterable[Choice]:
    """For each question with ranked replies: the best against the worst."""
    open_paths: list[list[Row]] = [[row["prompt"]]]
    while open_paths:
        path = open_paths.pop()
        replies = [reply for reply in path[-1].get("replies") or [] if reply.get("text")]
        open_paths += [[*path, reply] for reply in reversed(replies)]
        ranked = sorted((reply for reply in replies if reply.get("rank") is not None), key=rank_of)
        if path[-1]["role"] == "assistant" or len(ranked) < 2 or ranked[0]["text"] == ranked[-1]["text"]:
            continue
        roles = ("assistant" if node["role"] == "assistant" else "user" for node in path)
        prompt = [said(role, node["text"]) for role, node in zip(roles, path, strict=True)]
        notes.left_out["replies between the best and the worst"] += len(ranked) - 2
        ends = {"chosen": [said("assistant", ranked[0]["text"])], "rejected": [said("assistant", ranked[-1]["text"])]}
        yield Choice(prompt, ends, None, str(row.get("message_tree_id") or prompt[0]["content"]))


def _asking_keys(row: Row) -> tuple[str, ...]:
    lists = next((name for name in LISTS if row.get(name)), "messages")
    if any(row.get(name) for name in PROMPTS):
        return asking_keys(row)
    return (lists if row.get(lists) or not isinstance(row.get("context"), list) else "context", *SYSTEMS, "tools")


_SHAPES = (
    _Shape("OpenAI's", lambda row: isinstance(row.get("input"), Mapping) and "preferred_output" in row, _openai,
           lambda row: ("input", "preferred_output", "non_preferred_output")),
    _Shape("chosen and rejected", lambda row: row.get("chosen") is not None and row.get("rejected") is not None,
           _chosen, lambda row: (*RANKS, *_asking_keys(row), *(name for pair in _SCORES for name in pair))),
    _Shape("message tree", lambda row: isinstance(row.get("prompt"), Mapping) and "replies" in row["prompt"], _tree,
           lambda row: ("prompt", "message_tree_id")),
    _Shape("two responses", _is_two, _two, _two_keys),
    _Shape("ranked responses", _is_ranked, _ranked,
           lambda row: ("completions", "answers", *(_listed(row) or ()), *_asking_keys(row))),
    _Shape("messages and a rejected answer", _has_other_answer, _answered_otherwise,
           lambda row: ("messages", *_REJECTED, *_asking_keys(row))),
)  # fmt: skip
"""The table, in the order in which formats are tried."""
