"""What is answered: OpenAI's response objects, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from herd.infer.request import Piece
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import TokenLogprob


class Gathered:
    """One answer put together from its pieces."""

    def __init__(self) -> None:
        self.text, self.num_tokens = "", 0
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.text += piece.text
        self.num_tokens += len(piece.tokens)
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason


class Reply:
    """The frame that all chunks of one response share, and the two shapes a choice takes."""

    def __init__(self, tokenizer: Tokenizer, model: str, *, chat: bool, logprobs: bool) -> None:
        self.tokenizer, self.model, self.chat, self.logprobs = tokenizer, model, chat, logprobs
        self.id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())

    def whole(self, answers: Sequence[Gathered], prompt_tokens: int) -> dict[str, Any]:
        """The response that is not streamed."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = usage_of(prompt_tokens, sum(answer.num_tokens for answer in answers))
        return self._frame("chat.completion" if self.chat else "text_completion", choices) | {"usage": usage}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat answer: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def chunk(self, index: int, piece: Piece, text_offset: int) -> dict[str, Any]:
        """A chunk with a piece of an answer; `text_offset` characters of it came before."""
        logprobs = self._logprobs(piece.logprobs, text_offset)
        choice: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        choice |= {"delta": {"content": piece.text} if piece.text else {}} if self.chat else {"text": piece.text}
        return self._chunk([choice])

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """The last chunk of a stream that was asked to count tokens."""
        return self._chunk([]) | {"usage": usage_of(prompt_tokens, completion_tokens)}

    def _choice(self, index: int, answer: Gathered) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason}
        choice["logprobs"] = self._logprobs(answer.logprobs, 0)
        if self.chat:
            return choice | {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        return choice | {"text": answer.text}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._frame("chat.completion.chunk" if self.chat else "text_completion", choices)

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    # ---- log-probabilities -----------------------------------------------------------------------------------------

    def _logprobs(self, entries: Sequence[TokenLogprob], text_offset: int) -> dict[str, Any] | None:
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
            "top_logprobs": [{self._name(token): value for token, value in entry.top} for entry in entries],
            "text_offset": offsets[: len(tokens)],
        }

    def _chat_entry(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return self._token(entry.token, entry.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token)
        return {"token": self._name(token), "logprob": logprob, "bytes": list(data)}

    def _name(self, token: int) -> str:
        """A token as text; one that is no whole character as `bytes:\\xf0\\x9f`, as OpenAI writes it."""
        data = self.tokenizer.token_bytes(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
