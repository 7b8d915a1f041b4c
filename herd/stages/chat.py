"""Chat with a model here in the terminal.

Answers stream as they are made. `/system TEXT` sets the system prompt, `/reset` forgets the conversation, `/quit` (or
Ctrl-D) leaves; Ctrl-C stops an answer. When standard input is not a terminal, each line is answered and the program
exits; `json=true` writes one JSON string a line. A base model goes on with the text it is given.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from herd.config import settings
from herd.errors import UserError
from herd.infer.engine import Engine, Input
from herd.infer.request import check_params
from herd.log import say
from herd.types import Conversation, Message, SamplingParams

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


@settings
class ChatSettings:
    """Talk to one model."""

    path: Path
    """Checkpoint or run folder."""
    system: str | None = None
    """System prompt."""
    temperature: float = 0.6
    """Randomness; 0 always takes the likeliest token."""
    top_p: float = 0.9
    """Keep the likeliest tokens up to this total probability."""
    max_tokens: int = 512
    """Longest answer, in tokens."""
    seed: int | None = None
    """The same seed gives the same answers."""
    json: bool = False
    """Where standard input is not a terminal: one JSON string a line, so that answers may hold line breaks."""
    device: str = "cpu"
    """Where the model runs: cpu or cuda."""
    quantize: Literal["int8"] | None = None
    """Round the weights on loading."""


def run(settings: ChatSettings) -> None:
    """Answer lines until they end."""
    params = SamplingParams(
        temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=settings.seed
    )
    check_params(params)
    engine = Engine(settings.path, device=settings.device, quantize=settings.quantize, max_sequences=1)
    talk = Talk(engine, params, settings.system)
    if sys.stdin.isatty():
        _converse(talk, settings.path)
    else:
        _answer_lines(talk, as_json=settings.json)


@dataclass
class Talk:
    """A conversation with one model, or single completions where it is a base model."""

    engine: Engine
    params: SamplingParams
    system: str | None = None
    messages: Conversation = field(default_factory=list)

    def answer(self, line: str) -> Iterator[str]:
        """The pieces of the answer to a line. What was answered, even in part, becomes part of the conversation."""
        said, parts = Message(role="user", content=line), []
        stream = self.engine.stream(self._input(said, line), self.params)
        try:
            for piece in stream:
                parts.append(piece.text)
                yield piece.text
        finally:
            stream.close()
            if self.engine.speaks_chat and parts:
                self.messages += [said, Message(role="assistant", content="".join(parts))]

    def _input(self, said: Message, line: str) -> Input:
        if not self.engine.speaks_chat:
            return line
        before = [Message(role="system", content=self.system)] if self.system else []
        return [*before, *self.messages, said]


# ---- from a pipe -----------------------------------------------------------------------------------------------------


def _answer_lines(talk: Talk, *, as_json: bool) -> None:
    """Answer each line by itself (a pipe is a list of questions, not a conversation)."""
    for line in sys.stdin:
        if text := line.rstrip("\n"):
            talk.messages = []
            answer = "".join(talk.answer(text))
            print(json.dumps(answer, ensure_ascii=False) if as_json else answer, flush=True)


# ---- in a terminal ---------------------------------------------------------------------------------------------------


def _converse(talk: Talk, path: Path) -> None:
    _enable_line_editing()
    kind = "" if talk.engine.speaks_chat else ": a base model, it goes on with your text"
    say(f"{_BOLD}{path}{_PLAIN}{kind}   {_DIM}/help shows the commands{_PLAIN}\n")
    while (line := _read_line()) is not None:
        if line.startswith("/"):
            if _command(talk, line) == "quit":
                return
        elif line.strip():
            _print_answer(talk, line)


def _enable_line_editing() -> None:
    """Arrow keys and history for `input`, where this Python has them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


def _read_line() -> str | None:
    try:
        return input("\x01" + _BOLD + "\x02> \x01" + _PLAIN + "\x02")
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return ""


def _print_answer(talk: Talk, line: str) -> None:
    began, num_pieces = time.monotonic(), 0
    try:
        for text in talk.answer(line):
            num_pieces += 1
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        print(f" {_DIM}[stopped]{_PLAIN}", end="")
    except UserError as error:
        say(f"{error}\n{_DIM}/reset begins a new conversation{_PLAIN}")
        return
    seconds = max(time.monotonic() - began, 1e-9)
    print(f"\n{_DIM}{num_pieces} tokens, {num_pieces / seconds:.0f} tokens/s{_PLAIN}\n")


def _command(talk: Talk, line: str) -> str:
    """Run a slash command; its name."""
    name, _, argument = line[1:].partition(" ")
    commands: dict[str, Callable[[str], None]] = {
        "reset": lambda _: _reset(talk),
        "system": lambda text: _set_system(talk, text),
        "help": lambda _: _help(),
        "quit": lambda _: None,
    }
    if name in commands:
        commands[name](argument.strip())
    else:
        say(f"There is no command /{name}.")
        _help()
    return name


def _reset(talk: Talk) -> None:
    talk.messages = []
    say("The conversation is forgotten.")


def _set_system(talk: Talk, text: str) -> None:
    talk.system, talk.messages = text or None, []
    say("System prompt set; a new conversation begins." if text else "No system prompt; a new conversation begins.")


def _help() -> None:
    say("  /system TEXT  set the system prompt    /reset  forget the conversation    /quit  leave")
