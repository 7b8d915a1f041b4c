"""What the lines of a chat that begin with a slash do."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from herd.errors import RequestError
from herd.log import say
from herd.run import atomic_write
from herd.serve.terminal.screen import DIM, shown, styled
from herd.serve.terminal.talk import Talk
from herd.types import Conversation, Message, SamplingParams

QUOTES = '"""'
HELP = {
    "system": ("TEXT", "set the system prompt and begin anew; without a text: none"),
    "reset": ("", "forget the conversation"),
    "retry": ("", "answer the last question again"),
    "undo": ("", "forget the last question and its answer"),
    "set": ("NAME VALUE", "change a setting: temperature 0.8; without a name: show them"),
    "history": ("", "show the conversation"),
    "save": ("FILE", "write the conversation as a line of JSON, as `herd sft` reads it"),
    "load": ("FILE", "go on with a saved conversation"),
    "help": ("", "show this"),
    "quit": ("", "leave (Ctrl-D too)"),
}
_ALIASES = {"exit": "quit", "bye": "quit", "clear": "reset", "new": "reset", "regenerate": "retry", "?": "help"}
_SETTABLE = (
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


class Commands:
    """What the lines that begin with a slash do."""

    def __init__(self, talk: Talk) -> None:
        self.talk, self.again = talk, ""

    def find(self, line: str) -> tuple[str, str] | None:
        """The command of a line and its argument; None where the line is for the model.

        Raises:
            RequestError: it looks like a command, and there is none of that name.
        """
        word, _, argument = line.strip().partition(" ")
        name = _ALIASES.get(word[1:], word[1:])
        if not word.startswith("/") or word.startswith("//") or "/" in name:  # a path is no command
            return None
        if name not in HELP:
            nearest = difflib.get_close_matches(name, HELP, n=1)
            hint = f"did you mean /{nearest[0]}?" if nearest else "/help shows those there are"
            raise RequestError(f"There is no command {word}; {hint} (to send it as text, write /{word} ...)")
        return name, argument.strip()

    def run(self, name: str, argument: str) -> str:
        """Do what a command says; its name.

        Raises:
            UserError: its argument is missing or wrong.
        """
        action: Callable[[str], None] = getattr(self, f"_{name}")
        action(argument)
        return name

    def _system(self, text: str) -> None:
        self.talk.system, self.talk.messages = text or None, []
        say("System prompt set; a new conversation begins." if text else "No system prompt; a new conversation begins.")

    def _reset(self, _: str) -> None:
        self.talk.messages = []
        say("The conversation is forgotten.")

    def _retry(self, _: str) -> None:
        if not self.talk.messages:
            raise RequestError("There is no question yet.")
        self.again = self.talk.messages[-2]["content"]
        del self.talk.messages[-2:]

    def _undo(self, _: str) -> None:
        if not self.talk.messages:
            raise RequestError("There is nothing to forget.")
        del self.talk.messages[-2:]
        say("The last question and its answer are forgotten.")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if not name:
            say("  " + "  ".join(f"{name} {getattr(self.talk.params, name)}" for name in _SETTABLE))
            return
        if name not in _SETTABLE:
            nearest = difflib.get_close_matches(name, _SETTABLE, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; there are: {', '.join(_SETTABLE)}"
            raise RequestError(f"There is no setting {name}{hint}")
        changed = _changed(self.talk.params, name, value.strip())
        self.talk.speaker.check(changed)
        self.talk.params = changed
        say(f"{name} is {getattr(self.talk.params, name)} now.")

    def _history(self, _: str) -> None:
        if self.talk.system:
            say(f"{styled(DIM, 'system')} {shown(self.talk.system)}")
        for message in self.talk.messages:
            say(f"{styled(DIM, message['role'])} {shown(message['content'])}")

    def _save(self, file: str) -> None:
        if not file:
            raise RequestError("Where to? /save FILE")
        before = [Message(role="system", content=self.talk.system)] if self.talk.system else []
        line = json.dumps({"messages": [*before, *self.talk.messages]}, ensure_ascii=False)
        try:
            atomic_write(Path(os.path.expanduser(file)), line + "\n")
        except OSError as error:
            raise RequestError(f"{file} cannot be written ({error.strerror})") from None
        say(f"Saved to {file}.")

    def _load(self, file: str) -> None:
        if not file:
            raise RequestError("Which one? /load FILE")
        messages = _saved(Path(os.path.expanduser(file)))
        is_system = messages[0]["role"] == "system"
        self.talk.system = messages[0]["content"] if is_system else None
        self.talk.messages = messages[is_system:]
        say(f"Going on with {len(self.talk.messages) // 2} questions and answers.")

    def _help(self, _: str) -> None:
        for name, (argument, text) in HELP.items():
            say(f"  {f'/{name} {argument}':<20} {text}")
        say(f'  {"//text":<20} send "/text" to the model')
        say(f"  {QUOTES:<20} begin and end a text of several lines (or end a line with \\)")

    def _quit(self, _: str) -> None:
        pass


def _changed(params: SamplingParams, name: str, value: str) -> SamplingParams:
    """The sampling settings with one changed."""
    try:
        parsed: Any = None if value in ("", "none") and name == "seed" else json.loads(value)
    except ValueError:
        parsed = value
    given: dict[str, Any] = {name: parsed}
    return dataclasses.replace(params, **given)


def _saved(file: Path) -> Conversation:
    try:
        messages = json.loads(file.read_text(encoding="utf-8").splitlines()[0])["messages"]
        right = all(isinstance(m["content"], str) and m["role"] in ("system", "user", "assistant") for m in messages)
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError):
        right, messages = False, []
    roles = [message["role"] for message in messages] if right else []
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not right or not messages or turns != ["user", "assistant"] * (len(turns) // 2):
        raise RequestError(f"{file} holds no conversation as /save writes it (a line of JSON with `messages`)")
    return messages
