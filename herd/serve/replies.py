"""What is answered, whatever the dialect: what a dialect makes of answers, whole or as they grow."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from herd.infer.request import Piece
from herd.knowledge.citations import Citation
from herd.knowledge.index import Hit
from herd.serve.errors import error_object
from herd.serve.models import Model
from herd.serve.speech import Speech
from herd.serve.tools import Cited, Part, Use
from herd.serve.turn import Turn

Event = dict[str, Any]
_EVENTS = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # made once: there is an event a token


class Counts(NamedTuple):
    """Tokens of all prompts of a request, and those of them that were computed before."""

    prompt: int
    cached: int = 0


class Dialect(Protocol):
    """The body of a request, in any dialect."""

    def turn(self) -> Turn:
        """What is asked for.

        Raises:
            RequestError: it cannot be brought into that form.
        """
        ...

    def reply(self, model: Model, turn: Turn, prompts: Sequence[list[int]]) -> Reply:
        """How it is answered."""
        ...

    def field_of(self, message: str) -> str:
        """The field that a refusal of the engine is about."""
        ...

    def unheeded(self, model: Model) -> list[str]:
        """The names of fields that are accepted and cannot be honoured."""
        ...


class Reply(ABC):
    """The shapes of one response: a dialect says how a whole answer looks, and how the pieces of one."""

    id_prefix: str

    def __init__(self, model: Model, turn: Turn, prompts: Sequence[list[int]] = ()) -> None:
        self.tokenizer, self.model, self.turn = model.engine.tokenizer, model.name, turn
        self.fingerprint = model.fingerprint
        self.id, self.created = self.id_prefix + uuid.uuid4().hex, int(time.time())
        self.prompts = prompts
        self.echoes = [self.tokenizer.decode(prompt, skip_special=True) for prompt in prompts] if turn.echo else []

    @abstractmethod
    def whole(self, answers: Sequence[Speech], counts: Counts) -> dict[str, Any]:
        """The response that is not streamed."""

    @abstractmethod
    def opening(self, index: int, prompt: int = 0) -> Iterator[Event]:
        """What comes before an answer to the prompt of this number."""

    @abstractmethod
    def chunks(self, index: int, parts: Sequence[Part], piece: Piece, answer: Speech) -> Iterator[Event]:
        """The events that a piece makes, which was added to its answer already, as were those behind it perhaps."""

    @abstractmethod
    def closing(self, answers: Sequence[Speech], counts: Counts) -> Iterator[Event]:
        """What comes after all answers."""

    async def keep(self, answers: Sequence[Speech], counts: Counts) -> None:
        """Store the answers, before the client is told that they are done."""
        return

    def written(self, event: Event) -> str:
        """An event as it goes over the wire."""
        return f"data: {_EVENTS.encode(event)}\n\n"

    def failure(self, status: int, message: str, param: str | None = None, code: str | None = None) -> str:
        """What ends a stream that went wrong."""
        return self.written(error_object(status, message, param, code))

    def end(self) -> str:
        """What follows the last event of a stream that ended well."""
        return "data: [DONE]\n\n"

    def name_of(self, token: int) -> str:
        """A token as text; one that is no whole character as `bytes:\\xf0\\x9f`, as OpenAI writes it."""
        data = self.tokenizer.token_bytes(token, b"")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def usage_of(counts: Counts, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": counts.prompt + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }


def num_tokens(answers: Sequence[Speech]) -> int:
    """Tokens of all answers."""
    return sum(answer.num_tokens for answer in answers)


def token_object(reply: Reply, token: int, logprob: float | None) -> dict[str, Any]:
    """A token with its log-probability as OpenAI writes it; one that is no text has no bytes."""
    data = reply.tokenizer.token_bytes(token, b"")
    known = None if token in reply.tokenizer.special_ids else list(data)
    return {"token": reply.name_of(token), "logprob": logprob, "bytes": known}


def cited_fields(cited: Cited) -> dict[str, Any]:
    """An answer's citations as OpenAI writes them in a chat, and the passages they are of; counted in characters."""
    found: dict[str, Any] = {"annotations": []}
    found["documents"] = {"passages": passages_of(cited.passages), "unsupported": unsupported_of(cited, cited.start)}
    if cited.read_out is not None:
        found["documents"]["read_out"] = {"text": cited.read_out, "quote": cited.read_out, "passage": 1}
    for one, hit in supported_by(cited):
        start, end = span_of(one, cited.start)
        place = {"start_index": start, "end_index": end, "title": hit.source, "url": address_of(hit)}
        more = {"quote": one.quote, "passage": (one.passage or 0) + 1}
        found["annotations"].append({"type": "url_citation", "url_citation": place | more})
    return found


def supported_by(cited: Cited) -> Iterator[tuple[Citation, Hit]]:
    """The sentences that a passage supports, with it."""
    for one in cited.citations:
        if one.supported and one.passage is not None:
            yield one, cited.passages[one.passage]


def unsupported_of(cited: Cited, start: int = 0) -> list[dict[str, int]]:
    """Where the sentences stand that no passage supports."""
    spans = (span_of(one, start) for one in cited.citations if not one.supported)
    return [{"start_index": first, "end_index": last} for first, last in spans]


def passages_of(passages: Sequence[Hit]) -> list[dict[str, Any]]:
    """Passages with their numbers from 1."""
    names = ("file", "heading", "place", "text", "stale")
    return [{"number": n} | {name: getattr(hit, name) for name in names} for n, hit in enumerate(passages, 1)]


def span_of(one: Citation, start: int = 0) -> tuple[int, int]:
    """Where a sentence begins and ends, in a text that begins at `start`."""
    return start + one.end - len(one.sentence), start + one.end


def address_of(hit: Hit) -> str:
    """Where a passage stands: a web page's address, or the name of a file with the place in it."""
    return hit.file if "web" in hit.ways else f"{quote(hit.file)}#{quote(hit.place.removeprefix('#'))}"


def traced_call(use: Use) -> dict[str, Any]:
    """A call that the server runs itself, in the trace of an answer."""
    return {"id": use.call.id, "name": use.call.name, "arguments": use.call.arguments}


def traced_result(use: Use) -> dict[str, Any]:
    """What came of it, with the files that it made."""
    found: dict[str, Any] = {"output": use.output, "failed": use.failed, "seconds": round(use.seconds, 3)}
    if use.files:
        found["files"] = [{"index": at} | file.told() for at, file in enumerate(use.files)]
    return found


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DOWN_TO_TOKENS = 5  # response, choices, choice, scores, tokens


def written(value: Any, levels: int = _DOWN_TO_TOKENS) -> Iterator[str]:
    """JSON in parts, so that a thread that writes much of it leaves Python's lock to others in between."""
    if levels and isinstance(value, dict):
        for number, (name, item) in enumerate(value.items()):
            yield f"{',' if number else '{'}{_ENCODER.encode(name)}:"
            yield from written(item, levels - 1)
        yield "}" if value else "{}"
    elif levels and isinstance(value, list):
        for number, item in enumerate(value):
            yield "," if number else "["
            yield from written(item, levels - 1)
        yield "]" if value else "[]"
    else:
        yield _ENCODER.encode(value)
