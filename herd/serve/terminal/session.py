"""The chat itself: lines come from a person at a terminal, or from a pipe."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from herd.environment import user_folder
from herd.errors import UserError
from herd.log import say
from herd.serve.terminal.commands import HELP, QUOTES, Commands
from herd.serve.terminal.screen import BOLD, DIM, shown, styled
from herd.serve.terminal.talk import Talk, check_text, unescaped

_HISTORY_LINES = 2000
_ONE_LINE_FAILED = 2  # the exit status of a pipe of which not every line could be answered


def answer_lines(talk: Talk, *, as_json: bool) -> int:
    """Answer each line by itself (a pipe is a list of questions, not a conversation); an answer for every question."""
    status, commands = 0, Commands(talk)
    for number, line in enumerate(sys.stdin, 1):
        text, answer = line.rstrip("\r\n"), None
        if not text:
            continue
        try:
            check_text(text)
            if (command := commands.find(text)) is not None:
                if commands.run(*command) == "quit":
                    break
                continue
            talk.messages = []
            answer = "".join(piece for piece, _ in talk.answer(unescaped(text)))
        except UserError as error:
            print(f"error: line {number}: {error}", file=sys.stderr, flush=True)
            status = _ONE_LINE_FAILED
        print(json.dumps(answer, ensure_ascii=False) if as_json else answer or "", flush=True)
    return status


def converse(talk: Talk, name: str) -> None:
    kind = "" if talk.speaker.speaks_chat else ": a base model, it goes on with your text"
    say(f"{styled(BOLD, name)}{kind}   {styled(DIM, '/help shows the commands, Ctrl-D leaves')}\n")
    commands = Commands(talk)
    while (text := _read()) is not None:
        try:
            check_text(text)
            command = commands.find(text)
            done = commands.run(*command) if command else None
        except UserError as error:
            say(str(error))
            continue
        if done == "quit":
            return
        if done == "retry":
            text = commands.again
        if text.strip() and (command is None or done == "retry"):
            print_answer(talk, text if done == "retry" else unescaped(text))


def leave_when_told() -> None:
    """SIGTERM, and a terminal that is closed, end the chat and keep what was typed; Ctrl-C only stops an answer."""
    for name in ("SIGTERM", "SIGHUP"):
        if (sig := getattr(signal, name, None)) is not None:
            signal.signal(sig, lambda number, _: sys.exit(128 + number))


def history_file() -> Path | None:
    """Where what is typed is kept; None, said once, for a user without a home."""
    folder = user_folder("XDG_STATE_HOME", ".local/state", "what is typed is not kept")
    return folder and folder / "chat_history"


@contextlib.contextmanager
def line_editing(history: Path | None) -> Iterator[None]:
    """Arrow keys and history for `input`, where this Python has them."""
    try:
        import readline
    except ImportError:
        yield
        return
    readline.set_history_length(_HISTORY_LINES)
    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    if history is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
    try:
        yield
    finally:
        if history is not None:
            with contextlib.suppress(OSError):
                history.parent.mkdir(parents=True, exist_ok=True)
                history.touch(mode=0o600)
                readline.write_history_file(history)


def complete(text: str, state: int) -> str | None:
    words = [f"/{name}" for name in HELP if text.startswith("/") and f"/{name}".startswith(text)]
    return words[state] if state < len(words) else None


def _read() -> str | None:
    """What was typed, over several lines where it says so; None at the end, nothing after Ctrl-C."""
    try:
        line = input(re.sub(r"(\x1b\[\d+m)", "\x01\\1\x02", styled(BOLD, "> ")))  # these take no room, readline is told
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return ""
    try:
        return _read_quoted(line) if line.strip().startswith(QUOTES) else _read_continued(line)
    except KeyboardInterrupt:
        print()
        return ""


def _read_continued(first: str) -> str:
    lines = [first]
    while lines[-1].endswith("\\") and not lines[-1].endswith("\\\\"):
        lines[-1] = lines[-1][:-1]
        if (line := _next_line()) is None:
            break
        lines.append(line)
    return "\n".join(lines)


def _read_quoted(first: str) -> str:
    lines = [first.strip().removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        if (line := _next_line()) is None:
            break
        lines.append(line)
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def _next_line() -> str | None:
    """One more line; None where Ctrl-D ends the text, which leaves nothing but the text."""
    try:
        return input("  ")
    except EOFError:
        print()
        return None


def print_answer(talk: Talk, text: str) -> None:
    began, num_tokens = time.monotonic(), 0
    answer = talk.answer(text)
    try:
        for piece, count in answer:
            num_tokens += count
            print(shown(piece), end="", flush=True)
    except KeyboardInterrupt:
        print(f" {styled(DIM, '[stopped]')}", end="")
    except UserError as error:
        say(f"{shown(str(error))}\n{styled(DIM, '/reset begins a new conversation')}")
        return
    finally:
        answer.close()
    if talk.beside is not None:
        found = talk.beside(text)
        print(f"\n{styled(DIM, 'from the documents: ')}{shown(found) if found else 'nothing on this'}", end="")
    seconds = max(time.monotonic() - began, 1e-9)
    print("\n" + styled(DIM, f"{num_tokens} tokens, {num_tokens / seconds:.0f} tokens/s") + "\n")
