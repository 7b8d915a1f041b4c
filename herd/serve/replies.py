"""What is answered: OpenAI's response objects, whole or in chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from herd.infer.request import Piece
from herd.serve.schemas import ChatRequest, CompletionRequest
from herd.serve.tools import CallReader
from herd.tokenizer.specials import PYTHON_TAG
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import TokenLogprob, ToolCall


class Gathered:
    """One answer put together from its pieces."""

    def __init__(self) -> None:
        self.text, self.num_tokens = "", 0
        self.calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob | Unscored] = []
        self.finish_reason: str | None = None

    def add(self, piece: Piece, text: str, calls: Sequence[ToolCall] = ()) -> None:
        """Append a piece, with the text and the calls that came of it."""
        self.text += text
        self.calls += calls
        self.num_tokens += len(piece.tokens)
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason

    def prepend(self, text: str, scored: Iterable[tuple[int, TokenLogprob | None]]) -> None:
        """Put a prompt first, with the log-probabilities of its tokens as far as they are known."""
        self.text = text + self.text
        self.logprobs = [found or Unscored(token) for token, found in scored] + self.logprobs


class Unscored(NamedTuple):
    """A prompt's first token: nothing comes before it, so it has no probability."""

    token: int
    logprob: None = None
    top: tuple[()] = ()


class Reply:
    """The frame that all chunks of one response share, and the shapes a choice takes."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: str,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]] = (),
    ) -> None:
        self.tokenizer, self.model, self.body = tokenizer, model, body
        self.chat, self.logprobs = isinstance(body, ChatRequest), body.wanted_logprobs is not None
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self._tools = body.usable_tools if self.chat else []
        self._one_call = self.chat and body.parallel_tool_calls is False
        echo = not self.chat and body.echo
        self.echoes = [tokenizer.decode(prompt, skip_special=True) for prompt in prompts] if echo else []
        self._readers: dict[int, CallReader] = {}
        self._tag = tokenizer.special.get(PYTHON_TAG)

    def whole(self, answers: Sequence[Gathered], prompt_tokens: int) -> dict[str, Any]:
        """The response that is not streamed."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = usage_of(prompt_tokens, sum(answer.num_tokens for answer in answers))
        return self._frame("chat.completion" if self.chat else "text_completion", choices) | {"usage": usage}

    def take(self, index: int, piece: Piece, answer: Gathered) -> tuple[str, list[ToolCall]]:
        """Add a piece to its answer; the text and the calls that came of it."""
        text, calls = piece.text, []
        if self._tools:
            reader = self._reader(index)
            text = reader.push(piece.text, tag=self._tag in piece.tokens)
            if piece.finish_reason:
                rest, calls = reader.finish()
                text += rest
        answer.add(piece, text, calls)
        return text, calls

    def opening(self, index: int, prompt: int = 0) -> Iterator[dict[str, Any]]:
        """The first chunk of an answer: who speaks, or its prompt where that is echoed."""
        if self.chat:
            yield self._delta(index, {"role": "assistant", "content": ""})
        elif self.echoes:
            choice = {"index": index, "text": self.echoes[prompt], "logprobs": None, "finish_reason": None}
            yield self._chunk([choice])

    def chunks(self, index: int, piece: Piece, answer: Gathered) -> Iterator[dict[str, Any]]:
        """Add a piece to its answer; the chunks that it makes."""
        offset = len(answer.text)
        text, calls = self.take(index, piece, answer)
        finish = "tool_calls" if answer.calls and piece.finish_reason else piece.finish_reason
        logprobs = self._logprobs(piece.logprobs, offset)
        for place, call in enumerate(calls):
            yield self._delta(index, {"tool_calls": [{"index": place} | call_object(call)]})
        if text or finish or (self.logprobs and piece.logprobs):
            if self.chat:
                yield self._delta(index, {"content": text} if text else {}, logprobs, finish)
            else:
                yield self._chunk([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}])

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """The last chunk of a stream that was asked to count tokens."""
        return self._chunk([]) | {"usage": usage_of(prompt_tokens, completion_tokens)}

    def _choice(self, index: int, answer: Gathered) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason}
        choice["logprobs"] = self._logprobs(answer.logprobs, 0)
        if not self.chat:
            return choice | {"text": answer.text}
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message |= {"content": answer.text or None, "tool_calls": [call_object(call) for call in answer.calls]}
            choice["finish_reason"] = "tool_calls"
        return choice | {"message": message}

    def _reader(self, index: int) -> CallReader:
        if index not in self._readers:
            names = [tool["function"]["name"] for tool in self._tools]
            self._readers[index] = CallReader(names, one_call=self._one_call)
        return self._readers[index]

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._frame("chat.completion.chunk" if self.chat else "text_completion", choices)

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    # ---- log-probabilities -----------------------------------------------------------------------------------------

    def _logprobs(self, entries: Sequence[TokenLogprob | Unscored], text_offset: int) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            return {"content": [self._chat_entry(entry) for entry in entries], "refusal": None}
        tokens = [self._name(entry.token) for entry in entries]
        offsets = [text_offset]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                None if entry.logprob is None else {self._name(token): value for token, value in entry.top}
                for entry in entries
            ],
            "text_offset": offsets[: len(tokens)],
        }

    def _chat_entry(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return self._token(entry.token, entry.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token, b"")
        return {"token": self._name(token), "logprob": logprob, "bytes": list(data)}

    def _name(self, token: int) -> str:
        """A token as text; one that is no whole character as `bytes:\\xf0\\x9f`, as OpenAI writes it."""
        data = self.tokenizer.token_bytes(token, b"")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def call_object(call: ToolCall) -> dict[str, Any]:
    """A tool call as OpenAI writes it."""
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": "call_" + uuid.uuid4().hex[:24], "type": "function", "function": function}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
