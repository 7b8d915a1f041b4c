"""The shapes in which conversations are published, as one table: what a row needs to be of a shape, and how it is read.

The first shape that fits is taken. Keys with text that it does not read are counted and named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from herd.data.dialects import glaive_turns, plain_text
from herd.data.talks import (
    LeftOut,
    Notes,
    Talk,
    as_text,
    asked,
    calls_in,
    dialogue_of,
    refuse_media,
    said,
    talk_of,
    tools_of,
    turns_of,
)
from herd.errors import DataError
from herd.types import Message

Row = Mapping[str, Any]
_Turns = list[tuple[Message, bool]]

LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "utterances", "data", "contents")
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input", "inputs")
ANSWERS = ("completion", "response", "output", "answer", "answers", "solution", "targets", "generation")
SYSTEMS = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
EXTRAS = ("input", "context", "passage", "article")
_ALSO_LISTS = ("turns", "chat", "items")  # of messages, where objects are in them
ABOUT = ("source", "group", "name", "kind")  # what other parts of Herd read
_OFFERED = ("tools", "functions")


class Shape(NamedTuple):
    """A published format of conversations."""

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row, Notes], Iterable[Talk]]
    keys: Callable[[Row], Iterable[str]]  # those that it reads


def talks_of(row: Row, notes: Notes) -> list[Talk]:
    """The conversations of a row; none if it is left out, which `notes` counts.

    Raises:
        DataError: the row has no known shape, or is damaged.
    """
    shape = next((shape for shape in SHAPES if shape.fits(row)), None)
    if shape is None:
        raise DataError(_unknown(row))
    try:
        refuse_media(row)
        if _is_bad(row):
            raise LeftOut("answers that are labelled as bad")
        talks = list(shape.read(row, notes))
    except LeftOut as reason:
        notes.left_out[str(reason)] += 1
        return []
    count_unread(row, shape.keys(row), talks, notes)
    return talks


def asked_in(row: Row) -> list[Message]:
    """What a row asks, in whichever shape: its messages before the answer, system prompt and history among them.

    Raises:
        DataError: nothing is asked in it.
    """
    notes = Notes()
    try:
        if name := next((name for name in LISTS if row.get(name)), None):
            turns = with_system(row, turns_of(row[name], name, notes))
        elif any(isinstance(row.get(name), str | list) and row[name] for name in PROMPTS):
            turns = before_answer(row, notes)
        else:
            turns = [(message, False) for talk in talks_of(row, notes)[:1] for message in talk.messages]
    except LeftOut as reason:
        raise DataError(str(reason)) from None
    while turns and turns[-1][0]["role"] == "assistant":
        turns = turns[:-1]
    if not turns:
        raise DataError("all its messages are the assistant's" if row else "the row is empty")
    return [message for message, _ in turns]


def shape_of(row: Row) -> str | None:
    """The name of a row's format, None if it is not a conversation."""
    return next((shape.name for shape in SHAPES if shape.fits(row)), None)


def count_unread(row: Row, keys: Iterable[str], talks: Iterable[Talk], notes: Notes) -> None:
    """Count the row's keys with text that are not among `keys`, but for a copy of what a message says."""
    told, read = {message.get("content") for talk in talks for message in talk.messages}, {*keys, *ABOUT}
    copied = {key for key, value in row.items() if isinstance(value, str) and value in told}
    notes.count_texts({key: value for key, value in row.items() if key not in read | copied})


def _unknown(row: Row) -> str:
    has = f"the row has {', '.join(map(str, row)) or 'nothing'}"
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return f"not a conversation but a preference pair, for `herd reward` and `herd dpo`; {has}"
    if "parent_id" in row and "message_id" in row:
        return f"not a conversation: one message of a tree; export whole trees (`prompt` with its `replies`); {has}"
    hint = " (raw text is for `herd pack` and `herd pretrain`)" if row.get("text") else ""
    return (
        "not a conversation: expected `messages` [{role, content}], `conversations` [{from, value}], or a prompt "
        f"({'/'.join(PROMPTS)}) and its answer ({'/'.join(ANSWERS)}); {has}{hint}"
    )


def _is_bad(row: Row) -> bool:
    """Whether a response is labelled as bad (KTO's `label`, `kto_tag`), or has a reward of 0 or less."""
    if "generation" in row:
        return isinstance(row.get("reward"), int | float) and row["reward"] <= 0
    of_kto = "completion" in row or any(row.get(name) is not None for name in LISTS)
    return of_kto and any(row.get(name) in (False, "False", "false") for name in ("label", "kto_tag"))


def system_of(row: Row) -> str | None:
    """The system prompt that stands beside the messages.

    Raises:
        DataError: it is no text.
    """
    name = next((name for name in SYSTEMS if row.get(name) and row[name] == row[name]), None)
    text = "" if name is None else plain_text(row[name], name)
    return text if text.strip() else None


def with_system(row: Row, turns: _Turns) -> _Turns:
    """The messages behind the row's system prompt.

    Raises:
        DataError: they have another one.
    """
    system = system_of(row)
    own = next((message["content"] for message, _ in turns[:1] if message["role"] == "system"), None)
    if system is None or own == system:
        return turns
    if own is not None:
        raise DataError("two system prompts, one beside the messages and one in them; keep one")
    return [(said("system", system), False), *turns]


def before_answer(row: Row, notes: Notes) -> _Turns:
    """System prompt, history and what is asked. Of them only the history's answers are learned."""
    name, extra = _asking(row)
    more = "" if extra is None else row[extra] if isinstance(row[extra], str) else "\n\n".join(row[extra])
    prompt = row[name] if extra is None else f"{row[name]}\n\n{more}"
    history = turns_of(row["history"], "history", notes) if row.get("history") else []
    return with_system(row, [*history, *((message, False) for message, _ in asked(prompt, name, notes))])


def _asking(row: Row) -> tuple[str, str | None]:
    """The key that asks, and the one with what the question is about."""
    name = next(name for name in PROMPTS if row.get(name))
    extras = (key for key in EXTRAS if key != name and _is_passage(row.get(key)))
    return name, next(extras, None) if isinstance(row[name], str) else None


def _is_passage(value: Any) -> bool:
    """Whether it is a text, or a list of passages."""
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) for text in texts) and any(text.strip() for text in texts)


def asking_keys(row: Row) -> tuple[str, ...]:
    """The keys that `before_answer` and `tools_of` read."""
    name, extra = _asking(row)
    return name, extra or name, "history", *SYSTEMS, *_OFFERED


def _list_name(row: Row) -> str | None:
    """The key with the messages."""
    found = next((name for name in LISTS if row.get(name) is not None), None)
    objects = (name for name in _ALSO_LISTS if isinstance(row.get(name), list) and row[name])
    return found or next((name for name in objects if all(isinstance(one, Mapping) for one in row[name])), None)


def _messages(row: Row, notes: Notes) -> Iterable[Talk]:
    name = _list_name(row)
    assert name is not None
    turns, tools = with_system(row, turns_of(row[name], name, notes)), tools_of(row)
    first = turns[0][0]
    if tools and first["role"] == "system" and "<tools>" in first["content"]:  # Hermes'
        notes.changed["`tools` that the system prompt tells already, not told twice"] += 1
        tools = None
    yield talk_of(turns, tools)


def _glaive(row: Row, notes: Notes) -> Iterable[Talk]:
    system = {"system": row["system"].removeprefix("SYSTEM:").strip()} if isinstance(row.get("system"), str) else {}
    yield talk_of(with_system(system, turns_of(glaive_turns(row["chat"]), "chat", notes)))


def _prompt_and_answer(row: Row, notes: Notes) -> Iterable[Talk]:
    turns, name = before_answer(row, notes), _answering(row)
    if row.get(name) in (None, "", [], {}):
        raise LeftOut("rows with an empty answer")
    if choices := next((key for key in ("choices", "options") if isinstance(row.get(key), list | Mapping)), None):
        raise DataError(
            f"a question with `{choices}`, which nobody reads: write them into the question, and the right one as the "
            "answer"
        )
    answer = as_text(row[name], notes)
    if isinstance(answer, list) and all(isinstance(one, str) for one in answer):  # the best first, or by other words
        notes.left_out["further answers of a list"] += len(answer) - 1
        answer = answer[0]
    if name == "answers" and isinstance(answer, str) and row.get("tools"):
        answer = {"tool_calls": calls_in(answer, notes), "role": "assistant"}
    elif isinstance(answer, str):
        answer = {"content": said("assistant", answer)["content"], "role": "assistant"}
    elif isinstance(answer, Mapping) and isinstance(answer.get("text"), list):  # SQuAD's
        texts = [text for text in answer["text"] if isinstance(text, str)] or [""]
        answer = said("assistant", texts[0])
    turns = turns + turns_of(answer if isinstance(answer, list) else [answer], name, notes)
    yield talk_of(turns, tools_of(row))


def _answering(row: Row) -> str:
    """The key that answers: the first with something in it."""
    names = [name for name in ANSWERS if name in row and name != _asking(row)[0]]
    return next((name for name in names if row[name]), names[0])


def _instances(row: Row, notes: Notes) -> Iterable[Talk]:
    for instance in row["instances"]:
        yield from _prompt_and_answer({**row, **instance}, notes)


def _rewarded(row: Row, notes: Notes) -> Iterable[Talk]:
    turns = []
    for turn in [*row["context"], row["generation"]]:
        if isinstance(turn.get("response"), Mapping):
            turn = {"role": "tool", "content": json.dumps(turn["response"], ensure_ascii=False)}
        turns += turns_of([turn], "context", notes)
    yield talk_of([(message, number == len(turns) - 1) for number, (message, _) in enumerate(turns)], tools_of(row))


def _asked_in_turn(row: Row, notes: Notes) -> Iterable[Talk]:
    answers = row.get("reference_answer") or row.get("reference")
    if not answers or len(answers) != len(row["turns"]):
        raise LeftOut("questions without an answer")
    pairs = [[question, answer] for question, answer in zip(row["turns"], answers, strict=True)]
    yield talk_of(turns_of(pairs, "turns", notes))


def _dialogue(row: Row, notes: Notes) -> Iterable[Talk]:
    yield talk_of(with_system(row, [(message, True) for message in dialogue_of(row["text"]) or []]))


def rank_of(node: Row) -> float:
    """The place of a reply among its sisters; one without comes last."""
    return float("inf") if node.get("rank") is None else float(node["rank"])


def _tree(row: Row, notes: Notes) -> Iterable[Talk]:
    """Of the assistant's replies the best, of the user's every one."""
    open_paths: list[list[Row]] = [[row["prompt"]]]
    while open_paths:
        path = open_paths.pop()
        replies = [reply for reply in path[-1].get("replies") or [] if reply.get("text")]
        if path[-1]["role"] == "prompter" and replies:
            notes.left_out["lower ranked replies of trees"] += len(replies) - 1
            replies = [min(replies, key=rank_of)]
        open_paths += [[*path, reply] for reply in reversed(replies)]
        if replies:
            continue
        spoken = path if path[-1]["role"] == "assistant" else path[:-1]
        if spoken:
            yield talk_of([(said(_role(node), node["text"]), True) for node in spoken])
        else:
            notes.left_out["questions without an answer"] += 1


def _role(node: Row) -> str:
    return "assistant" if node["role"] == "assistant" else "user"


def _has_answer_key(row: Row) -> bool:
    prompts = [name for name in PROMPTS if row.get(name)]
    return bool(prompts) and any(name in row and name != prompts[0] for name in ANSWERS)


SHAPES = (
    Shape("messages", lambda row: _list_name(row) is not None, _messages,
          lambda row: (str(_list_name(row)), *SYSTEMS, *_OFFERED)),
    Shape("message tree", lambda row: isinstance(row.get("prompt"), Mapping) and "replies" in row["prompt"], _tree,
          lambda row: ("prompt", "message_tree_id")),
    Shape("tasks with instances", lambda row: isinstance(row.get("instances"), list), _instances,
          lambda row: ("instances", *asking_keys(row))),
    Shape("rewarded turn", lambda row: isinstance(row.get("context"), list) and "generation" in row, _rewarded,
          lambda row: ("context", "generation", "reward", *_OFFERED)),
    Shape("questions in turn", lambda row: isinstance(row.get("turns"), list), _asked_in_turn,
          lambda row: ("turns", "reference_answer", "reference")),
    Shape("prompt and answer", _has_answer_key, _prompt_and_answer,
          lambda row: (*asking_keys(row), _answering(row))),
    Shape("dialogue in one text", lambda row: isinstance(row.get("text"), str) and bool(dialogue_of(row["text"])),
          _dialogue, lambda row: ("text", *SYSTEMS)),
    Shape("glaive's chat", lambda row: isinstance(row.get("chat"), str), _glaive, lambda row: ("chat", "system")),
)  # fmt: skip
"""The table, in the order in which formats are tried."""
