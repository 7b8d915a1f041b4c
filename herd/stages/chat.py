"""Chat with a model here in the terminal, or with any OpenAI-compatible server by its address.

Answers stream as they are made; Ctrl-C stops an answer, not the program. `/help` shows the commands: a system prompt,
settings, another answer, saving. A line that ends with a backslash goes on in the next one, and three double quotes
open and close a text of several lines. When standard input is not a terminal, each line is a question of its own:
commands work there too, and `json=true` writes one JSON string a line. A base model goes on with the text it is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from herd.config import settings
from herd.errors import RequestError, UserError
from herd.infer.settings import EngineSettings
from herd.log import say
from herd.run import atomic_write
from herd.types import Conversation, Message, SamplingParams

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_CODES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal obeys and does not show
_QUOTES = '"""'
_HISTORY_LINES = 2000
_ONE_LINE_FAILED = 2  # the exit status of a pipe of which not every line could be answered


@settings
class ChatSettings:
    """Talk to one model."""

    path: str
    """Checkpoint or run folder, or the address of a server (http://...)."""
    model: str | None = None
    """Which of a server's models; its first one when not given."""
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
    history: bool = True
    """Remember what was typed for the next time (arrow up), in a file that only you can read."""
    device: str = "cpu"
    """Where the model runs: cpu or cuda."""
    quantize: Literal["int8", "int4", "fp8"] | None = None
    """Round the weights on loading."""
    engine: EngineSettings = EngineSettings()
    """How the model is run."""


class Speaker(Protocol):
    """Whoever answers: a model on this machine, or a server."""

    speaks_chat: bool

    def stream(self, inputs: str | Conversation, params: SamplingParams) -> Iterator[tuple[str, int]]:
        """The pieces of an answer with their numbers of tokens."""
        ...


def run(settings: ChatSettings) -> int:
    """Answer lines until they end; 2 when a line of a pipe could not be answered."""
    params = SamplingParams(
        temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=settings.seed
    )
    if sys.stdin is None:
        raise RequestError("standard input is closed: there is nobody to ask a question")
    for stream, way in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=way)  # what is no text is told of, line by line; what cannot be written is a "?"
    talk = Talk(_speaker(settings, params), params, settings.system)
    if not sys.stdin.isatty():
        return _answer_lines(talk, as_json=settings.json)
    _leave_when_told()
    with _line_editing(_history_file() if settings.history else None):
        _converse(talk, str(settings.path))
    return 0


def _speaker(settings: ChatSettings, params: SamplingParams) -> Speaker:
    """PyTorch is loaded only where the model runs here."""
    if str(settings.path).startswith(("http://", "https://")):
        from herd.serve.client import Client

        return Client(str(settings.path), model=settings.model)
    from herd.infer.engine import Engine
    from herd.infer.request import check_params

    check_params(params)
    options = settings.engine.options()
    engine = Engine(Path(settings.path), device=settings.device, quantize=settings.quantize, max_sequences=1, **options)
    return Local(engine)


class Local:
    """A model on this machine."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.speaks_chat = engine, engine.speaks_chat

    def stream(self, inputs: str | Conversation, params: SamplingParams) -> Iterator[tuple[str, int]]:
        """The pieces of an answer with their numbers of tokens."""
        pieces = self.engine.stream(inputs, params)
        return ((piece.text, len(piece.tokens)) for piece in _closing(pieces))


def _closing(pieces: Iterator[Any]) -> Iterator[Any]:
    """The same pieces; leaving early ends the request at once."""
    with contextlib.closing(pieces):
        yield from pieces


@dataclass
class Talk:
    """A conversation with one model, or single completions where it is a base model."""

    speaker: Speaker
    params: SamplingParams
    system: str | None = None
    messages: Conversation = field(default_factory=list)

    def answer(self, text: str) -> Iterator[tuple[str, int]]:
        """The pieces of the answer. What was answered, even in part, becomes part of the conversation."""
        said, parts = Message(role="user", content=text), []
        stream = self.speaker.stream(self._input(said, text), self.params)
        try:
            for piece, count in stream:
                parts.append(piece)
                yield piece, count
        finally:
            stream.close()
            if self.speaker.speaks_chat and parts:
                self.messages += [said, Message(role="assistant", content="".join(parts))]

    def _input(self, said: Message, text: str) -> str | Conversation:
        if not self.speaker.speaks_chat:
            return text
        before = [Message(role="system", content=self.system)] if self.system else []
        return [*before, *self.messages, said]


# ---- from a pipe -----------------------------------------------------------------------------------------------------


def _answer_lines(talk: Talk, *, as_json: bool) -> int:
    """Answer each line by itself (a pipe is a list of questions, not a conversation); an answer for every question."""
    status, commands = 0, Commands(talk)
    for number, line in enumerate(sys.stdin, 1):
        text, answer = line.rstrip("\r\n"), None
        if not text:
            continue
        try:
            _check_text(text)
            if (command := commands.find(text)) is not None:
                if commands.run(*command) == "quit":
                    break
                continue
            talk.messages = []
            answer = "".join(piece for piece, _ in talk.answer(_unescaped(text)))
        except UserError as error:
            print(f"error: line {number}: {error}", file=sys.stderr, flush=True)
            status = _ONE_LINE_FAILED
        print(json.dumps(answer, ensure_ascii=False) if as_json else answer or "", flush=True)
    return status


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        kind = getattr(sys.stdin, "encoding", None) or "UTF-8"
        raise RequestError(f"this is no {kind} text; convert it first (iconv -f latin1 -t utf-8)") from None


# ---- in a terminal ---------------------------------------------------------------------------------------------------


def _converse(talk: Talk, name: str) -> None:
    kind = "" if talk.speaker.speaks_chat else ": a base model, it goes on with your text"
    say(f"{_styled(_BOLD, name)}{kind}   {_styled(_DIM, '/help shows the commands, Ctrl-D leaves')}\n")
    commands = Commands(talk)
    while (text := _read()) is not None:
        try:
            _check_text(text)
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
            _print_answer(talk, text if done == "retry" else _unescaped(text))


def _leave_when_told() -> None:
    """SIGTERM, and a terminal that is closed, end the chat and keep what was typed; Ctrl-C only stops an answer."""
    for name in ("SIGTERM", "SIGHUP"):
        if (sig := getattr(signal, name, None)) is not None:
            signal.signal(sig, lambda number, _: sys.exit(128 + number))


def _history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "herd" / "chat_history"


@contextlib.contextmanager
def _line_editing(history: Path | None) -> Iterator[None]:
    """Arrow keys and history for `input`, where this Python has them."""
    try:
        import readline
    except ImportError:
        yield
        return
    readline.set_history_length(_HISTORY_LINES)
    readline.set_completer_delims(" ")
    readline.set_completer(_complete)
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


def _complete(text: str, state: int) -> str | None:
    words = [f"/{name}" for name in _HELP if text.startswith("/") and f"/{name}".startswith(text)]
    return words[state] if state < len(words) else None


def _styled(code: str, text: str) -> str:
    """A text in bold or dim where the terminal can, and nobody has asked for plain ones (https://no-color.org)."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb" or not sys.stdout.isatty()
    return text if is_plain else f"{code}{text}{_PLAIN}"


def _shown(text: str) -> str:
    """What a model or a server said, without the codes that would move the cursor, or worse."""
    return _CODES.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", ""))


def _read() -> str | None:
    """What was typed, over several lines where it says so; None at the end, nothing after Ctrl-C."""
    try:
        line = input(
            re.sub(r"(\x1b\[\d+m)", "\x01\\1\x02", _styled(_BOLD, "> "))
        )  # these take no room, readline is told
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return ""
    try:
        return _read_quoted(line) if line.strip().startswith(_QUOTES) else _read_continued(line)
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
    lines = [first.strip().removeprefix(_QUOTES)]
    while not lines[-1].rstrip().endswith(_QUOTES):
        if (line := _next_line()) is None:
            break
        lines.append(line)
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines).strip("\n")


def _next_line() -> str | None:
    """One more line; None where Ctrl-D ends the text, which leaves nothing but the text."""
    try:
        return input("  ")
    except EOFError:
        print()
        return None


def _print_answer(talk: Talk, text: str) -> None:
    began, num_tokens = time.monotonic(), 0
    answer = talk.answer(text)
    try:
        for piece, count in answer:
            num_tokens += count
            print(_shown(piece), end="", flush=True)
    except KeyboardInterrupt:
        print(f" {_styled(_DIM, '[stopped]')}", end="")
    except UserError as error:
        say(f"{_shown(str(error))}\n{_styled(_DIM, '/reset begins a new conversation')}")
        return
    finally:
        answer.close()
    seconds = max(time.monotonic() - began, 1e-9)
    print("\n" + _styled(_DIM, f"{num_tokens} tokens, {num_tokens / seconds:.0f} tokens/s") + "\n")


# ---- commands --------------------------------------------------------------------------------------------------------

_HELP = {
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


def _unescaped(text: str) -> str:
    """A text for the model that begins with a slash is written with two."""
    return text[1:] if text.startswith("//") else text


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
        if name not in _HELP:
            nearest = difflib.get_close_matches(name, _HELP, n=1)
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
        self.talk.params = _changed(self.talk.params, name, value.strip())
        say(f"{name} is {getattr(self.talk.params, name)} now.")

    def _history(self, _: str) -> None:
        if self.talk.system:
            say(f"{_styled(_DIM, 'system')} {_shown(self.talk.system)}")
        for message in self.talk.messages:
            say(f"{_styled(_DIM, message['role'])} {_shown(message['content'])}")

    def _save(self, file: str) -> None:
        if not file:
            raise RequestError("Where to? /save FILE")
        before = [Message(role="system", content=self.talk.system)] if self.talk.system else []
        line = json.dumps({"messages": [*before, *self.talk.messages]}, ensure_ascii=False)
        try:
            atomic_write(Path(file).expanduser(), line + "\n")
        except OSError as error:
            raise RequestError(f"{file} cannot be written ({error.strerror})") from None
        say(f"Saved to {file}.")

    def _load(self, file: str) -> None:
        if not file:
            raise RequestError("Which one? /load FILE")
        messages = _saved(Path(file).expanduser())
        is_system = messages[0]["role"] == "system"
        self.talk.system = messages[0]["content"] if is_system else None
        self.talk.messages = messages[is_system:]
        say(f"Going on with {len(self.talk.messages) // 2} questions and answers.")

    def _help(self, _: str) -> None:
        for name, (argument, text) in _HELP.items():
            say(f"  {f'/{name} {argument}':<20} {text}")
        say(f'  {"//text":<20} send "/text" to the model')
        say(f"  {_QUOTES:<20} begin and end a text of several lines (or end a line with \\)")

    def _quit(self, _: str) -> None:
        pass


def _changed(params: SamplingParams, name: str, value: str) -> SamplingParams:
    """The sampling settings with one changed; checked at once where the engine is here anyway."""
    try:
        parsed = None if value in ("", "none") and name == "seed" else json.loads(value)
    except ValueError:
        parsed = value
    changed = dataclasses.replace(params, **{name: parsed})
    if "torch" in sys.modules:
        from herd.infer.request import check_params

        check_params(changed)
    return changed


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
