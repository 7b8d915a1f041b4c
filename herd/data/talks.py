"""Messages of other formats in Herd's own form: everything a message contains is used, or counted and reported once.

Roles and keys of OpenAI, ShareGPT and its dialects, OpenAssistant, Anthropic's dialogues and Taskmaster are known.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from herd.data.dialects import plain_tools, plain_turns
from herd.errors import DataError
from herd.log import say
from herd.types import Message

_SPEAKERS = {
    "user": ("user", "human", "prompter", "usr", "customer", "benutzer", "nutzer", "utilisateur", "usuario", "usuário",
             "utente", "用户", "ผู้ใช้", "उपयोगकर्ता"),
    "assistant": ("assistant", "gpt", "model", "bot", "agent", "ai", "chatgpt", "bing", "bard", "claude", "chatbot",
                  "assistent", "asistente", "assistente", "助手", "ผู้ช่วย", "सहायक"),
    "system": ("system", "developer"),
    "ipython": ("tool", "ipython", "observation", "function", "function_response", "tool_response"),
    "call": ("function_call", "tool_call"),
}  # fmt: skip
ROLES = {name: role for role, names in _SPEAKERS.items() for name in names}
"""A role or speaker in somebody's data -> Herd's; `call` is the assistant's message that is a call in JSON."""

_ROLE_KEYS, _TEXT_KEYS = ("role", "from", "speaker", "user"), ("content", "value", "text", "utterance", "message")
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"),
          ("prompt", "response"), ("instruction", "output"))  # fmt: skip
_REASONING = ("reasoning_content", "reasoning", "thinking")
_SWITCHES = ("train", "training", "trainable", "loss")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_KEPT = ("name", "tool_call_id")
_PARTLY = ("train_detail", "training_detail")  # axolotl's stretches of a message
_HEARD = {*_ROLE_KEYS, *_TEXT_KEYS, *_REASONING, *_SWITCHES, *_KEPT, "id", "weight", "refusal"}
_HEARD |= {"tool_calls", "function_call", "api", "tool_results"}
_RENDERED = re.compile(
    r"\s*(<s>|<\|begin_of_text\|>|<bos>)?\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|\[INST\]|<start_of_turn>|<\|(user|system|assistant|prompter)\|>"
    r"|### ?Instruction|Below is an instruction that describes a task)"
)
_HELPSTEER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n?")
_GRADES = re.compile(r"(?i)score|rating|reward|grade|quality|weight|margin|helpful|correct|coheren|complex|verbos")
_SPOKEN = re.compile(r"(?:^|\n\n)\s*(Human|Assistant): ?|\s*### (Human|Assistant): ?")


class LeftOut(Exception):
    """A row that is read rightly and not learned from; the text is the reason."""


class Notes:
    """Counts of what was left out, changed or ignored while reading rows."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()

    def count_texts(self, values: Mapping[str, Any], of: str = "") -> None:
        """Count those of somebody's values that hold text, or are a grade: nobody reads them."""
        for key, value in values.items():
            if has_text(value) or (isinstance(value, int | float) and value is not True and _GRADES.search(key)):
                self.unread[f"`{key}`{of}"] += 1

    def tell(self) -> None:
        """Print each kind once, with its count."""
        for title, counts in (("left out", self.left_out), ("changed", self.changed), ("not read", self.unread)):
            if told := ", ".join(f"{what} ({count:,})" for what, count in (+counts).most_common()):
                say(f"  {title}: {told}")


@dataclass(frozen=True)
class Talk:
    """A conversation, its tools, and for each of the assistant's messages whether it is trained on."""

    messages: list[Message]
    trained: list[bool]
    tools: list[Any] | None = None


def talk_of(turns: Sequence[tuple[Message, bool]], tools: list[Any] | None = None) -> Talk:
    """The conversation of messages with their switches.

    Raises:
        LeftOut: it has no message of the assistant's, or they are all switched off.
    """
    trained = [on for message, on in turns if message.get("role") == "assistant"]
    if not trained:
        raise LeftOut("conversations without an answer")
    if not any(trained):
        raise LeftOut("conversations with nothing switched on to learn")
    return Talk([message for message, _ in turns], trained, tools)


def turns_of(value: Any, name: str, notes: Notes) -> list[tuple[Message, bool]]:
    """The messages of a list (objects, pairs of user and assistant, or texts in turn), each with whether it is learned.

    Raises:
        DataError: it is no such list.
    """
    value = _unpacked(value)
    if not isinstance(value, list):
        raise DataError(f"`{name}` must be a list of messages, not a {type(value).__name__}")
    if not value:
        raise LeftOut("conversations without messages")
    if all(isinstance(one, str) for one in value):
        return [(said("user" if i % 2 == 0 else "assistant", text), True) for i, text in enumerate(value)]
    turns: list[tuple[Message, bool]] = []
    for one in value:
        if isinstance(one, Mapping) and (pair := _pair(one)):
            notes.count_texts({key: text for key, text in one.items() if key not in pair}, " of messages")
            if one[pair[1]] is None:  # the last question, whose answers stand elsewhere
                turns.append((said("user", one[pair[0]]), True))
                continue
            one = [one[key] for key in pair]
        if isinstance(one, Sequence) and len(one) == 2 and all(isinstance(text, str) for text in one):
            turns += [(said("user", one[0]), True), (said("assistant", one[1]), True)]
        elif not isinstance(one, Mapping):
            raise DataError(f"`{name}` holds a {type(one).__name__}, expected messages with role and content")
        else:
            turns += [_message(turn, name, notes) for turn in plain_turns(one)]
    return turns


def _pair(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """The keys of a question and its answer, where one object has both."""
    if any(isinstance(turn.get(key), str) for key in _ROLE_KEYS if key != "user"):
        return None
    found = (pair for pair in _PAIRS if isinstance(turn.get(pair[0]), str) and pair[1] in turn)
    return next((pair for pair in found if isinstance(turn[pair[1]], str | None)), None)


def said(role: str, text: str) -> Message:
    """A message of plain text.

    Raises:
        DataError: the text is a conversation that a chat template has written already.
        LeftOut: it is an empty answer.
    """
    if (hit := _RENDERED.match(text)) and role != "system":
        raise DataError(
            f"the text is rendered already (it begins with {hit[0].strip()!r}): give the messages themselves, the "
            "checkpoint's own template writes them"
        )
    if role == "assistant" and not text.strip():
        raise LeftOut("rows with an empty answer")
    return Message(role=role, content=text)


def refuse_media(row: Mapping[str, Any]) -> None:
    """What a text stands beside in vision and speech data.

    Raises:
        DataError: the row has a picture, film or sound.
    """
    if name := next((name for name in _MEDIA if row.get(name) and row[name] == row[name]), None):
        raise DataError(f"has `{name}`, and only text is learned: leave such rows out, or the column where it is empty")


def rendered_mark(text: str) -> str | None:
    """The marker by which a text is recognised as a conversation rendered by a template; None if it is not."""
    hit = _RENDERED.match(text)
    if hit is None or ("nstruction" in hit[0] and "### Response" not in text):  # a heading of a manual
        return None
    return hit[0].strip()


def dialogue_of(text: str) -> list[Message] | None:
    """The messages of a dialogue in one text (`Human:` and `Assistant:`, `### Human:`), or None."""
    if "<extra_id_1>" in text:  # HelpSteer's: the first question has no mark
        first, *rest = _HELPSTEER.split(text)
        turns = [("User", first), *zip(rest[::2], rest[1::2])]
        told = [Message(role=ROLES[role.lower()], content=content.strip()) for role, content in turns]
        return told[:-1] if told[-1] == {"role": "assistant", "content": ""} else told
    marks = list(_SPOKEN.finditer(text))
    if not marks or text[: marks[0].start()].strip() or marks[0][1] != "Human" != marks[0][2]:
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    roles = [ROLES[(mark[1] or mark[2]).lower()] for mark in marks]
    spoken = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    messages = [Message(role=role, content=content) for role, content in zip(roles, spoken, strict=True)]
    while len(messages) > 1 and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()  # the opening of an answer that stands elsewhere
    return messages


def asked(value: Any, name: str, notes: Notes) -> list[tuple[Message, bool]]:
    """The messages of a prompt: a text, a dialogue in one text, or a list."""
    if isinstance(value, str):
        return [(message, False) for message in dialogue_of(value) or [said("user", value)]]
    return turns_of(value, name, notes)


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools that a conversation offers: its `tools` or `functions`, as a list or as the JSON of one.

    Raises:
        DataError: it is neither.
    """
    tools = row.get("tools") or row.get("functions")
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools else tools or None
    except ValueError as error:
        raise DataError(f"`tools` is no JSON ({error})") from None
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"`tools` is {type(tools).__name__}, expected a list")
    return plain_tools([without_nulls(tool)[0] for tool in tools]) if tools else None


def without_nulls(value: Any) -> tuple[Any, int]:
    """The value without the keys that are null, as Parquet gives every object all keys of the column; and how many."""
    if isinstance(value, Mapping):
        inner = {key: without_nulls(one) for key, one in value.items() if one is not None}
        nulls = sum(one is None for one in value.values()) + sum(count for _, count in inner.values())
        return {key: one for key, (one, _) in inner.items()}, nulls
    if isinstance(value, list):
        parts = [without_nulls(one) for one in value]
        return [one for one, _ in parts], sum(count for _, count in parts)
    return value, 0


def as_text(value: Any, notes: Notes) -> Any:
    """A response, one that a table has made a number or a truth value as text again."""
    if not isinstance(value, bool | int | float) or value != value:
        return value
    notes.changed["responses stored as a number or truth value, taken as text"] += 1
    return str(value)


def has_text(value: Any) -> bool:
    """Whether there is text in a value or anywhere below it."""
    if isinstance(value, Mapping | list):
        return any(has_text(one) for one in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, str) and bool(value.strip())


def _unpacked(value: Any) -> Any:
    """A list that a table holds as JSON, or as Python writes it (`pandas.to_csv`)."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise DataError(f"a list of messages is no JSON ({error})") from None


def _message(turn: Mapping[str, Any], name: str, notes: Notes) -> tuple[Message, bool]:
    key = next((key for key in _ROLE_KEYS if isinstance(turn.get(key), str)), None)
    if key is None:
        raise DataError(f"a message of `{name}` has no role; expected role and content, or from and value")
    role = ROLES.get(turn[key].lower(), turn[key] if key == "role" else None)
    if role is None:
        raise DataError(f"unknown speaker {turn[key]!r}; expected one of {', '.join(ROLES)}")
    content, calls = _content(turn, name), _calls(turn, notes)
    if role == "call":
        role, calls, content = "assistant", calls_in(content or "", notes), ""
    if content is None and isinstance(turn.get("refusal"), str):
        content = turn["refusal"]
    if role == "assistant" and not calls and not (content or "").strip():
        raise LeftOut("conversations with an empty answer")
    if role == "user" and not (content or "").strip():
        notes.changed["messages of users without a text, kept"] += 1
    message: dict[str, Any] = {"role": role, "content": content or ""}
    if calls:
        message["tool_calls"] = calls
    message |= {key: turn[key] for key in _KEPT if turn.get(key)}
    if reasoning := next((turn[key] for key in _REASONING if isinstance(turn.get(key), str) and turn[key]), None):
        message["reasoning_content"] = reasoning
    notes.count_texts({key: one for key, one in turn.items() if key not in _HEARD}, " of messages")
    return cast(Message, message), _is_on(turn, notes)


def _is_on(turn: Mapping[str, Any], notes: Notes) -> bool:
    weight = turn.get("weight")
    if any(turn.get(key) for key in _PARTLY):
        notes.changed["messages of which only stretches were to be learned (`train_detail`), learned whole"] += 1
    if isinstance(weight, int | float) and weight not in (0, 1):
        notes.changed["weights of messages that are neither 0 nor 1, taken as 1"] += 1
    return weight != 0 and not any(turn.get(name) in (False, "false", "False") for name in _SWITCHES)


def _content(turn: Mapping[str, Any], name: str) -> str | None:
    content = next((turn[key] for key in _TEXT_KEYS if turn.get(key) is not None), None)
    if isinstance(content, list):
        texts: list[Any] = [_part(part) for part in content]
        if not all(isinstance(text, str) for text in texts):
            kind = next((_kind(part) for part, text in zip(content, texts) if not isinstance(text, str)), "")
            raise DataError(f"a message of `{name}` holds a part that is no text ({kind}); only text is learned from")
        return "".join(texts)
    if isinstance(content, Mapping):  # what a tool answered, as an object
        return json.dumps(content, ensure_ascii=False)
    if content is not None and not isinstance(content, str):
        raise DataError(f"a message of `{name}` has content of {type(content).__name__}, expected text")
    if content and _RENDERED.match(content):
        said("user", content)
    return content


def _kind(part: Any) -> str:
    """What a part says that it is: an `image_url`, an `input_audio`, ..."""
    return str(part.get("type") or ", ".join(map(str, part))) if isinstance(part, Mapping) else type(part).__name__


def _part(part: Any) -> Any:
    return part.get("text") or part.get("refusal") if isinstance(part, Mapping) else part


def _calls(turn: Mapping[str, Any], notes: Notes) -> list[Any]:
    """Calls of functions, OpenAI's legacy `function_call` and Taskmaster's `api` among them."""
    calls = list(turn.get("tool_calls") or [])
    if isinstance(turn.get("function_call"), Mapping) and turn["function_call"].get("name"):
        calls.append(turn["function_call"])
    if isinstance(turn.get("api"), Mapping):
        calls += [{"name": name, "arguments": arguments or {}} for name, arguments in turn["api"].items()]
    return [_call(call, notes) for call in calls]


def _call(call: Any, notes: Notes) -> Any:
    plain, nulls = without_nulls(call)
    if isinstance(plain, dict) and "function" not in plain and "arguments" not in plain and "parameters" in plain:
        plain["arguments"] = plain.pop("parameters")  # Cohere's
    if nulls:
        notes.changed["null arguments of calls, as tables add them, taken out"] += nulls
    return plain


def calls_in(text: str, notes: Notes) -> list[Any]:
    """Calls written as JSON in a text: one object with name and arguments, or a list of them.

    Raises:
        DataError: they do not.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"a function call is no JSON ({error})") from None
    return [_call(call, notes) for call in (found if isinstance(found, list) else [found])]
