"""Conversations rendered by a checkpoint's own chat template: tokens, loss mask, and what ends a turn.

Ids are those of `transformers`: the whole text is encoded at once, with its special strings as tokens. But special
strings inside a message stay text, so that no message can forge a turn: before the template runs, a Unicode
noncharacter is inserted into them, and removed again before encoding.

The loss mask comes from the template's `{% generation %}` blocks. Without them, the conversation is rendered up to each
of the assistant's messages, with and without it: the difference is the answer.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from herd.errors import DataError
from herd.tokenizer import jinja, toolcalls
from herd.tokenizer.llama3 import Rendered
from herd.tokenizer.tokenizer import Tokenizer

_Span = tuple[int, int]
_TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
_PROBE, _QUESTION = "where-does-an-answer-end", "what-is-asked"


class Ends(NamedTuple):
    """What ends the assistant's turn: tokens, or texts if the format has no token for it."""

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


class Asked(NamedTuple):
    """A template's inputs besides the messages."""

    tools: Sequence[Any] | None = None
    documents: Sequence[Any] | None = None
    date: str | None = None
    variables: Mapping[str, Any] = {}


def text(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    asked: Asked = Asked(),  # noqa: B008
    *,
    generation_prompt: bool = False,
    continue_final: bool = False,
) -> str:
    """A conversation as the template renders it; `continue_final` leaves the last message open, to be continued.

    Raises:
        DataError: there is no template, or it refuses the conversation or fails.
    """
    talk = _as_openai(messages)
    if not continue_final:
        return _write(tokenizer, asked, talk, generation_prompt=generation_prompt).text
    if not talk or not isinstance(talk[-1].get("content"), str):
        raise DataError("the last message cannot be continued: its content is not text")
    (tag,) = jinja.free_characters(talk, 1)
    talk[-1] = {**talk[-1], "content": f"{talk[-1]['content']}{tag} "}
    before, found, after = _write(tokenizer, asked, talk, generation_prompt=False).text.rpartition(tag)
    if not found:
        raise DataError("the last message cannot be continued: the chat template changes its text")
    return before if after.startswith(" ") else before.rstrip()


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    asked: Asked = Asked(),  # noqa: B008
    *,
    generation_prompt: bool = False,
    continue_final: bool = False,
    masked: bool = True,
    read_special: bool = False,
) -> Rendered:
    """Tokens and loss mask of a conversation; `masked=False` skips the mask. `read_special` reads special strings in
    messages as special tokens.

    Raises:
        DataError: there is no template, it refuses or fails, or the assistant's messages are not in its output.
    """
    talk = _as_openai(messages)
    (mark,) = jinja.free_characters([talk, asked.tools, asked.documents], 1)
    special = None if read_special else tokenizer.special_strings
    talk, tools, documents = (_guarded(special, mark, one) for one in (talk, asked.tools, asked.documents))
    asked = asked._replace(tools=tools, documents=documents)
    if continue_final:
        written = jinja.Written(text(tokenizer, talk, asked, continue_final=True), [])
    else:
        written = _write(tokenizer, asked, talk, generation_prompt=generation_prompt)
    spans: Sequence[_Span] = []
    if masked and not continue_final:
        write = partial(_write, tokenizer, asked)
        spans = written.generated or list(_spans_by_prefixes(tokenizer, write, talk, written.text))
        _check_calls(talk, "".join(written.text[begin:end] for begin, end in spans))
    ids, places = _encode(tokenizer, written.text, mark)
    mask = [False] * len(ids)
    for begin, end in spans:
        _mark(tokenizer, mask, ids, places, begin, end, whole=bool(written.generated))
    return Rendered(ids, mask)


def _mark(
    tokenizer: Tokenizer, mask: list[bool], ids: list[int], places: list[_Span], begin: int, end: int, *, whole: bool
) -> None:
    """Set the mask for a span; one that was found by prefixes, up to the token that ends the turn."""
    inside = [i for i, (first, last) in enumerate(places) if first < end and last > begin]
    if not whole:
        stops = ends(tokenizer).ids or tokenizer.stop_ids
        last = max((i for i in inside if ids[i] in stops), default=None)
        inside = inside if last is None else [i for i in inside if i <= last]
    for i in inside:
        mask[i] = True


def _check_calls(talk: Sequence[Mapping[str, Any]], learned: str) -> None:
    """Refuse templates that ignore tool calls, because an empty answer would be learned instead."""
    for number, message in enumerate(talk):
        for call in message.get("tool_calls") or ():
            if (name := call["function"]["name"]) not in learned:
                raise DataError(
                    f"message {number}: the chat template does not write its call of {name!r}; choose a format that "
                    "writes tool calls (template=FILE.jinja), or leave such conversations out"
                )


def _spans_by_prefixes(
    tokenizer: Tokenizer, write: Callable[..., jinja.Written], talk: Sequence[Mapping[str, Any]], whole: str
) -> Iterator[_Span]:
    for number, message in enumerate(talk):
        if message["role"] != "assistant":
            continue
        before = write(talk[:number], generation_prompt=True).text if number else ""
        through = write(talk[: number + 1], generation_prompt=False).text
        if (common := _agreed(tokenizer, whole, through)) is None:
            raise DataError(
                f"message {number}: the chat template writes it differently when others follow, so that the loss mask "
                "is unclear; put {% generation %} and {% endgeneration %} around the assistant's part of the "
                "template, or train on conversations that end with this message"
            )
        if not whole.startswith(before):  # the generation prompt has more than a past answer, such as <think>
            before = write(talk[:number], generation_prompt=False).text
            content = message.get("content")
            place = through.find(content, len(before)) if content and through.startswith(before) else -1
            if place < 0:
                raise DataError(
                    f"message {number}: the chat template's generation prompt differs from how it begins an answer; "
                    "put {% generation %} and {% endgeneration %} around the assistant's part of the template"
                )
            before = through[:place]
        yield len(before), max(common, len(before))


def _agreed(tokenizer: Tokenizer, whole: str, through: str) -> int | None:
    """The length of the common prefix of `through`, which ends with an answer, and the whole; None if text is missing.

    Special strings at the end, which some templates write after every text, do not count.
    """
    if whole.startswith(through):
        return len(through)
    common = next(i for i, (one, other) in enumerate(zip(through, whole + "\0")) if one != other)
    special = tokenizer.special_strings
    if special is None:
        return None
    common = min([common, *(hit.start() for hit in special.finditer(through) if hit.start() < common < hit.end())])
    return None if special.sub("", through[common:]).strip() else common


# ---- the template ----------------------------------------------------------------------------------------------------


def _write(
    tokenizer: Tokenizer, asked: Asked, talk: Sequence[Mapping[str, Any]], *, generation_prompt: bool
) -> jinja.Written:
    template = tokenizer.template_for(bool(asked.tools))
    if template is None:
        raise DataError(
            "this checkpoint has no chat template, as is usual for base models; choose a format, such as "
            "template=llama3, template=chatml or a .jinja file"
        )
    dated = {} if asked.date is None else {"date_string": jinja.as_date(asked.date).strftime("%d %b %Y")}
    variables = {
        **tokenizer.named_tokens,
        **dated,
        "messages": talk,
        "tools": [dict(tool) if isinstance(tool, Mapping) else tool for tool in asked.tools] if asked.tools else None,
        "documents": asked.documents,
        "add_generation_prompt": generation_prompt,
        **asked.variables,
    }
    return jinja.write(template, variables, date=asked.date)


def _as_openai(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates expect them: OpenAI's form, with the arguments of calls as objects."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise DataError(f"the conversation is {type(messages).__name__}, expected a list of messages")
    if not messages:
        raise DataError("the conversation has no messages")
    return [_one_as_openai(message, number) for number, message in enumerate(messages)]


def _one_as_openai(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(f"message {number} is not a message: expected an object with role and content")
    worded = dict(message)
    worded["role"] = "tool" if message["role"] == "ipython" else message["role"]
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        worded["content"] = "".join(str(part["text"]) for part in content)
    elif content is not None and not isinstance(content, str):
        raise DataError(f"message {number}: content is {type(content).__name__}, expected text")
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list | tuple):
            raise DataError(f"message {number}: tool_calls is {type(calls).__name__}, expected a list of calls")
        worded["tool_calls"] = [_call(call, number) for call in calls]
    return worded


def _call(call: Any, number: int) -> dict[str, Any]:
    function = toolcalls.checked(call, f"message {number}")
    kept = {key: value for key, value in call.items() if key not in ("name", "arguments", "function", "type")}
    return {"type": "function", "function": dict(function), **kept}


# ---- text to ids -----------------------------------------------------------------------------------------------------


def _guarded(special: re.Pattern[str] | None, mark: str, value: Any) -> Any:
    """The value with a mark inside every special string of its texts, except roles."""
    if isinstance(value, str):
        return special.sub(lambda hit: f"{hit[0][0]}{mark}{hit[0][1:]}", value) if special else value
    if isinstance(value, Mapping):
        return {key: one if key == "role" else _guarded(special, mark, one) for key, one in value.items()}
    return [_guarded(special, mark, one) for one in value] if isinstance(value, list | tuple) else value


def _encode(tokenizer: Tokenizer, text: str, mark: str) -> tuple[list[int], list[_Span]]:
    """The ids of a text and their character ranges; a part with a mark in it is plain text."""
    if mark not in text:
        return tokenizer.encode_places(text)
    ids: list[int] = []
    places: list[_Span] = []
    begin = 0
    for part in _parts(tokenizer.special_strings, text, mark):
        plain = mark in part
        found, where = tokenizer.encode_places(part.replace(mark, ""), allow_special=not plain)
        shifts = [i for i, character in enumerate(part) if character == mark]
        ids += found
        places += [(begin + _back(first, shifts), begin + _back(last, shifts)) for first, last in where]
        begin += len(part)
    return ids, places


def _parts(special: re.Pattern[str] | None, text: str, mark: str) -> Iterator[str]:
    """The text split at special strings, so that marks are in parts without any."""
    pieces = re.split(f"({special.pattern})", text) if special else [text]
    held = ""
    for piece in pieces:
        if mark in piece:
            if held:
                yield held
            yield piece
            held = ""
        else:
            held += piece
    if held:
        yield held


def _back(place: int, shifts: Sequence[int]) -> int:
    """Translate a position in the text without marks to the text with them."""
    for shift in shifts:
        if shift <= place:
            place += 1
    return place


# ---- the end of a turn -----------------------------------------------------------------------------------------------

_known_ends: weakref.WeakKeyDictionary[Tokenizer, Ends] = weakref.WeakKeyDictionary()


def ends(tokenizer: Tokenizer) -> Ends:
    """What the template writes after an answer: the token that ends the turn, or else the text."""
    if tokenizer not in _known_ends:
        _known_ends[tokenizer] = _ends(tokenizer) if tokenizer.chat_template is not None else Ends()
    return _known_ends[tokenizer]


def _ends(tokenizer: Tokenizer) -> Ends:
    question = {"role": "user", "content": _QUESTION}
    talk = [question, {"role": "assistant", "content": _PROBE}]
    for asked in (Asked(), Asked(tools=[_TOOL])):  # some templates require tools
        try:
            answered = _write(tokenizer, asked, talk, generation_prompt=False).text.rpartition(_PROBE)[2]
            followed = _write(tokenizer, asked, [*talk, question], generation_prompt=False).text.rpartition(_PROBE)[2]
            break
        except DataError:
            continue
    else:
        return Ends()
    special = tokenizer.special_ids
    for tail in (answered, followed):
        if ids := [i for i in tokenizer.encode(tail, allow_special=True) if i in special]:
            return Ends((ids[0],))
    suffix = answered.strip() or followed.partition(_QUESTION)[0].strip()
    return Ends((), (suffix,)) if suffix else Ends()
