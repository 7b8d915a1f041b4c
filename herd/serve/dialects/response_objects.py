"""What the Responses API answers: response objects with their items, and the events of a stream."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from herd.infer.request import Piece
from herd.serve.errors import error_object
from herd.serve.models import Model
from herd.serve.replies import (
    Counts,
    Event,
    Reply,
    num_tokens,
    passages_of,
    span_of,
    supported_by,
    token_object,
    unsupported_of,
)
from herd.serve.speech import Speech, Unscored
from herd.serve.store import Kept, Store
from herd.serve.tools import Begun, Call, Cited, Ended, Grown, Part, Ran, Running, Thought, Use, Words
from herd.serve.turn import Turn
from herd.types import TokenLogprob


class ResponsesReply(Reply):
    """`response` objects, whole or by events with a running number."""

    id_prefix = "resp_"

    def __init__(
        self,
        model: Model,
        turn: Turn,
        prompts: Sequence[list[int]],
        *,
        asked: dict[str, Any],
        sent: list[dict[str, Any]],
        store: Store | None,
        owner: str,
    ) -> None:
        super().__init__(model, turn, prompts)
        self._asked, self._sent, self._store, self._owner = asked, sent, store, owner
        self._number = -1
        self._output: list[dict[str, Any]] = []  # the items so far
        self._texts: dict[str, Any] | None = None  # the message that is being written
        self._is_streamed, self._thoughts = False, ""
        self._searched: dict[str, Any] | None = None  # what is told of passages, behind the text

    # ---- whole -------------------------------------------------------------------------------------------------------

    def whole(self, answers: Sequence[Speech], counts: Counts) -> dict[str, Any]:
        """The response that is not streamed."""
        (answer,) = answers
        if not self._is_streamed and not self._output:
            self._output = self._items(answer)
        status = {"stop": "completed", "tool_calls": "completed"}.get(answer.finish_reason or "", "incomplete")
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(answer.finish_reason or "")
        usage = {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.cached},
            "output_tokens": num_tokens(answers),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts.prompt + num_tokens(answers),
        }
        details = {"reason": reason} if reason else None
        return self._response(status) | {"usage": usage, "incomplete_details": details}

    async def keep(self, answers: Sequence[Speech], counts: Counts) -> None:
        """Store the answers, before the client is told that they are done."""
        if self._store is not None:
            kept = Kept(self._asked["previous_response_id"], self._sent, self.whole(answers, counts))
            await asyncio.to_thread(self._store.put, self._owner, kept)

    def _response(self, status: str) -> dict[str, Any]:
        params = self.turn.params
        return self._asked | {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": self.created if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": list(self._output),
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": self._store is not None,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _items(self, answer: Speech) -> list[dict[str, Any]]:
        """The items of an answer; its log-probabilities stand with its only text."""
        items = [_thought(answer.thought)] if answer.thought else []
        for said in answer.order:
            if isinstance(said, Call):
                items.append(self._call(said, "completed" if said.is_whole else "incomplete"))
            elif isinstance(said, Use):
                items.append(_use(said))
            else:
                items.append(self._message(said, answer))
        if answer.cited is not None:
            items[-1]["content"][0] |= _cited(answer.cited)
            items.append(_searched(answer.cited))
        if answer.refusal is not None:
            items.append(self._message("", answer) | {"content": [{"type": "refusal", "refusal": answer.refusal}]})
        if not items and not self.turn.must_call:
            items.append(self._message("", answer))
        return items

    def _message(self, text: str, answer: Speech) -> dict[str, Any]:
        logprobs = self._logprobs(answer.logprobs) if len(answer.order) == 1 else []
        cut = answer.finish_reason == "length" and not answer.calls
        item = {
            "type": "message",
            "id": _id("msg"),
            "role": "assistant",
            "status": "incomplete" if cut else "completed",
        }
        return item | {"content": [_text(text, logprobs)]}

    def _call(self, call: Call, status: str) -> dict[str, Any]:
        item = {"type": "function_call", "id": "fc_" + call.id[5:], "call_id": call.id, "name": call.name}
        return item | {"arguments": call.arguments, "status": status}

    def _logprobs(self, entries: Sequence[TokenLogprob | Unscored]) -> list[dict[str, Any]]:
        if self.turn.params.logprobs is None:
            return []
        found = []
        for entry in entries:
            top = [_known(token_object(self, token, logprob)) for token, logprob in entry.top]
            found.append(_known(token_object(self, entry.token, entry.logprob)) | {"top_logprobs": top})
        return found

    # ---- streamed ----------------------------------------------------------------------------------------------------

    def opening(self, index: int, prompt: int = 0) -> Iterator[Event]:
        """The response as it begins."""
        self._is_streamed = True
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def chunks(self, index: int, parts: Sequence[Part], piece: Piece, answer: Speech) -> Iterator[Event]:
        """The events that a piece makes."""
        logprobs = self._logprobs(piece.logprobs)
        for part in parts:
            if not isinstance(part, Thought):
                yield from self._close_thought()
            match part:
                case Words(text):
                    yield from self._open_text()
                    yield self._of_text("response.output_text.delta", delta=text, logprobs=logprobs)
                    assert self._texts is not None
                    self._texts["text"] += text
                    self._texts["logprobs"] += logprobs
                    logprobs = []
                case Thought(text):
                    yield from self._think(text)
                case Begun(call):
                    yield from self._close_text("completed")
                    self._output.append(self._call(call, "in_progress") | {"arguments": ""})  # deltas bring all of it
                    yield self._of_item("response.output_item.added", dict(self._output[-1]))
                case Grown(_, text):
                    yield self._of_call("response.function_call_arguments.delta", delta=text)
                case Ended(call):
                    self._output[-1] = self._call(call, "completed" if call.is_whole else "incomplete")
                    yield self._of_call(
                        "response.function_call_arguments.done", arguments=call.arguments, name=call.name
                    )
                    yield self._of_item("response.output_item.done", self._output[-1])
                case Cited():
                    yield from self._cite(part)
                case Running(use):
                    yield from self._close_text("completed")
                    self._output.append(_use(use))
                    yield self._of_item("response.output_item.added", self._output[-1] | {"arguments": ""})
                    yield self._of_call("response.mcp_call.in_progress")
                    yield self._of_call("response.mcp_call_arguments.done", arguments=use.call.arguments)
                case Ran(use):
                    yield from self._ran(_use(use))
        if piece.finish_reason:
            yield from self._finish(answer)

    def _think(self, text: str) -> Iterator[Event]:
        if not self._output:
            self._output.append(_thought("") | {"status": "in_progress"})
            yield self._of_item("response.output_item.added", self._output[0])
            yield self._of_text("response.content_part.added", part={"type": "reasoning_text", "text": ""})
        self._thoughts += text
        yield self._of_text("response.reasoning_text.delta", delta=text)

    def _close_thought(self) -> Iterator[Event]:
        if not self._thoughts or self._output[-1].get("status") != "in_progress" or len(self._output) > 1:
            return
        yield self._of_text("response.reasoning_text.done", text=self._thoughts)
        self._output[0] = _thought(self._thoughts) | {"id": self._output[0]["id"]}
        yield self._of_text("response.content_part.done", part=self._output[0]["content"][0])
        yield self._of_item("response.output_item.done", self._output[0])

    def _cite(self, cited: Cited) -> Iterator[Event]:
        yield from self._open_text()
        assert self._texts is not None
        self._texts |= _cited(cited)
        for number, annotation in enumerate(self._texts["annotations"]):
            kind = "response.output_text.annotation.added"
            yield self._of_text(kind, annotation_index=number, annotation=annotation)
        self._searched = _searched(cited)

    def _ran(self, item: dict[str, Any]) -> Iterator[Event]:
        at = [one["id"] for one in self._output].index(item["id"])
        self._output[at] = item
        yield self._event(f"response.mcp_call.{item['status']}", item_id=item["id"], output_index=at)
        yield self._event("response.output_item.done", output_index=at, item=item)

    def _finish(self, answer: Speech) -> Iterator[Event]:
        yield from self._close_thought()
        if answer.refusal is not None:
            yield from self._close_text("completed")
            yield from self._refused(answer.refusal)
        elif not self._output and not self.turn.must_call:
            yield from self._open_text()
        yield from self._close_text("incomplete" if answer.finish_reason == "length" else "completed")

    def closing(self, answers: Sequence[Speech], counts: Counts) -> Iterator[Event]:
        """The response as it ended."""
        response = self.whole(answers, counts)
        yield self._event(f"response.{response['status']}", response=response)

    def written(self, event: Event) -> str:
        """An event as it goes over the wire."""
        return f"event: {event['type']}\n{super().written(event)}"

    def failure(self, status: int, message: str, param: str | None = None, code: str | None = None) -> str:
        """What ends a stream that went wrong."""
        error = error_object(status, message, param, code)["error"]
        told = {"code": code or error["type"], "message": message}
        failed = self._event("response.failed", response=self._response("failed") | {"error": told})
        return self.written(failed) + self.written(self._event("error", **told, param=param, error=error))

    def _open_text(self) -> Iterator[Event]:
        if self._texts is not None:
            return
        self._texts = {"id": _id("msg"), "text": "", "logprobs": []}
        self._output.append(
            {"type": "message", "id": self._texts["id"], "role": "assistant", "status": "in_progress", "content": []}
        )
        yield self._of_item("response.output_item.added", dict(self._output[-1]))
        yield self._of_text("response.content_part.added", part=_text("", []))

    def _close_text(self, status: str) -> Iterator[Event]:
        if self._texts is None:
            return
        part = _text(self._texts["text"], self._texts["logprobs"])
        part |= {name: self._texts[name] for name in ("annotations", "unsupported") if name in self._texts}
        yield self._of_text("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
        yield self._of_text("response.content_part.done", part=part)
        self._output[-1] = self._output[-1] | {"status": status, "content": [part]}
        self._texts = None
        yield self._of_item("response.output_item.done", self._output[-1])
        if self._searched is not None:
            self._output.append(self._searched)
            yield self._of_item("response.output_item.added", self._searched)
            yield self._of_item("response.output_item.done", self._searched)
            self._searched = None

    def _refused(self, words: str) -> Iterator[Event]:
        part = {"type": "refusal", "refusal": words}
        item = {"type": "message", "id": _id("msg"), "role": "assistant", "status": "in_progress", "content": []}
        self._output.append(item)
        yield self._of_item("response.output_item.added", item)
        yield self._of_text("response.content_part.added", part=part | {"refusal": ""})
        yield self._of_text("response.refusal.delta", delta=words)
        yield self._of_text("response.refusal.done", refusal=words)
        yield self._of_text("response.content_part.done", part=part)
        self._output[-1] = item | {"status": "completed", "content": [part]}
        yield self._of_item("response.output_item.done", self._output[-1])

    def _of_item(self, kind: str, item: dict[str, Any]) -> Event:
        return self._event(kind, output_index=len(self._output) - 1, item=item)

    def _of_text(self, kind: str, **more: Any) -> Event:
        return self._of_call(kind, content_index=0, **more)

    def _of_call(self, kind: str, **more: Any) -> Event:
        return self._event(kind, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **more)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _text(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _thought(text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": _id("rs"), "summary": [], "content": content, "status": "completed"}


def _cited(cited: Cited) -> dict[str, Any]:
    annotations = []
    for one, hit in supported_by(cited):
        start, end = span_of(one)
        number = (one.passage or 0) + 1
        found: dict[str, Any] = {"type": "file_citation", "file_id": hit.file, "filename": hit.file, "index": end}
        if "web" in hit.ways:
            found = {"type": "url_citation", "url": hit.file, "title": hit.heading, "end_index": end}
        annotations.append(found | {"start_index": start, "quote": one.quote, "passage": number})
    return {"annotations": annotations, "unsupported": unsupported_of(cited)}


def _searched(cited: Cited) -> dict[str, Any]:
    """The passages that an answer was given from; OpenAI's form is that of its file search."""
    results = []
    for one in passages_of(cited.passages):
        attributes = {name: one[name] for name in ("number", "heading", "place", "stale")}
        results.append({"file_id": one["file"], "filename": one["file"], "text": one["text"], "attributes": attributes})
    item = {"type": "file_search_call", "id": _id("fs"), "status": "completed", "queries": [], "results": results}
    return item if cited.read_out is None else item | {"read_out": cited.read_out}


def _use(use: Use) -> dict[str, Any]:
    """A call that the server ran itself; OpenAI's form for a tool of a server is that of MCP."""
    item = {"type": "mcp_call", "id": "mcp_" + use.call.id[5:], "server_label": "herd", "approval_request_id": None}
    item |= {"name": use.call.name, "arguments": use.call.arguments, "output": None, "error": None}
    if use.output is None:
        return item | {"status": "in_progress"}
    files = {"files": [file.told() for file in use.files]} if use.files else {}
    status = "failed" if use.failed else "completed"
    return item | {"error" if use.failed else "output": use.output, "status": status} | files


def _known(token: dict[str, Any]) -> dict[str, Any]:
    """Here a token without bytes has an empty list of them."""
    return token | {"bytes": token["bytes"] or []}
