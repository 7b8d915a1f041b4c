"""Comparing Herd's rendering of conversations with that of a checkpoint's chat template.

The template runs in Jinja's sandbox, as in `transformers`. Text is compared, then ids: a template's output is encoded
as a whole, while Herd encodes content separately from its header, so that ids can differ for the same text (if content
begins with a line break). Templates other than Llama 3's are also what Herd runs: there only ids are compared, which
differ if a message holds special strings, and both refuse the same conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from herd.errors import DataError
from herd.tokenizer import foreign, jinja
from herd.tokenizer.llama3 import DATE, Style, checked_messages, render
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Message

_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_SYSTEM = Message(role="system", content="Be brief.")
_USER = Message(role="user", content="Is it raining in Paris?")
_CALL = Message(role="assistant", content="", tool_calls=[{"name": "get_weather", "arguments": {"city": "Paris"}}])
_RESULT = Message(role="ipython", content='{"rain": true}')
_ANSWER = Message(role="assistant", content="Yes, it is.")


class Talk(NamedTuple):
    """A conversation to compare, and its tools."""

    name: str
    messages: list[Message]
    tools: list[Any] | None = None


TALKS = (
    Talk("a question", [_USER]),
    Talk("a system prompt", [_SYSTEM, _USER]),
    Talk("several turns", [_SYSTEM, _USER, _ANSWER, Message(role="user", content="And tomorrow?")]),
    Talk("whitespace around", [Message(role="user", content="  Is it raining?\n"), _ANSWER, _USER]),
    Talk("a line break first", [Message(role="user", content="\nIs it raining?")]),
    Talk("an empty message", [Message(role="user", content="")]),
    Talk("other scripts", [Message(role="user", content="巴黎在下雨吗? क्या बारिश हो रही है? 🌧️")]),
    Talk("a tool call", [_USER, _CALL, _RESULT]),
    Talk("a tool's answer", [_USER, _CALL, _RESULT, _ANSWER, _USER]),
    Talk("tools offered", [_USER], [_TOOL]),
    Talk("tools, whole story", [_SYSTEM, _USER, _CALL, _RESULT, _ANSWER, _USER], [_TOOL]),
)
"""The compared conversations, each with the header of an answer."""


class Comparison(NamedTuple):
    """The result for one conversation: `same`, `ids differ`, `text differs`, or why one or both sides refuse it."""

    talk: str
    outcome: str
    theirs: str = ""
    ours: str = ""

    @property
    def same(self) -> bool:
        """Whether both sides agree in every id."""
        return self.outcome == "same"


def compare(
    tokenizer: Tokenizer, template: str, style: Style | None, talks: Sequence[Talk] = TALKS, date: str = DATE
) -> list[Comparison]:
    """Compare the template with `render` on each conversation, with the same date.

    With style None the tokenizer's own template is compared with Herd's ids for it.
    """
    if style is None:
        return [_run(tokenizer, talk, date) for talk in talks]
    return [_compared(tokenizer, template, style, talk, date) for talk in talks]


def _run(tokenizer: Tokenizer, talk: Talk, date: str) -> Comparison:
    asked = foreign.Asked(tools=talk.tools, date=date)
    try:
        theirs = foreign.text(tokenizer, talk.messages, asked, generation_prompt=True)
        ours = foreign.render(tokenizer, talk.messages, asked, generation_prompt=True, masked=False).tokens
    except DataError as error:
        return Comparison(talk.name, f"refused by both: {error}")
    same = tokenizer.encode(theirs, allow_special=True) == ours
    return Comparison(talk.name, "same" if same else "ids differ", theirs, tokenizer.decode(ours))


def _compared(tokenizer: Tokenizer, template: str, style: Style, talk: Talk, date: str) -> Comparison:
    its_date = date if style == "hf" else None
    try:
        ours = render(
            tokenizer, talk.messages, style=style, tools=talk.tools, generation_prompt=True, date=its_date
        ).tokens
    except DataError as error:
        return Comparison(talk.name, f"herd refuses: {error}")
    text = tokenizer.decode(ours)
    try:
        theirs = _through_template(tokenizer, template, talk, date)
    except DataError as error:
        return Comparison(talk.name, f"refused: {error}", ours=text)
    if theirs != text:
        return Comparison(talk.name, "text differs", theirs, text)
    same = tokenizer.encode(theirs, allow_special=True) == ours
    return Comparison(talk.name, "same" if same else "ids differ", theirs, text)


def _through_template(tokenizer: Tokenizer, template: str, talk: Talk, date: str) -> str:
    variables = {
        **tokenizer.named_tokens,
        "messages": list(map(_as_openai, checked_messages(talk.messages))),
        "tools": talk.tools,
        "date_string": date,
        "add_generation_prompt": True,
    }
    return jinja.write(template, variables, date=date).text


def _as_openai(message: Message) -> Mapping[str, Any]:
    calls = [{"type": "function", "function": call} for call in message.get("tool_calls", [])]
    return {**message, "tool_calls": calls} if calls else message
