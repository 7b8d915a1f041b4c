"""Bits per byte: how long a model's code for a text would be, comparable across tokenizers and with compressors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from herd.data.shards import Documents
from herd.errors import CapacityError
from herd.log import say
from herd.model.llama import LlamaForCausalLM


@dataclass(frozen=True)
class CodeLength:
    """Code length of some documents under a model."""

    nats: np.ndarray  # (N,) negative log-likelihood per document
    num_tokens: np.ndarray  # (N,) tokens predicted
    num_bytes: np.ndarray  # (N,) of UTF-8 text

    @property
    def bits_per_byte(self) -> float:
        """Bits of code per byte of text, over all documents together."""
        return float(self.nats.sum() / math.log(2) / max(self.num_bytes.sum(), 1))

    @property
    def perplexity(self) -> float:
        """Per token: depends on the tokenizer, unlike bits per byte."""
        return float(math.exp(self.nats.sum() / max(self.num_tokens.sum(), 1)))

    @property
    def stderr(self) -> float:
        """Standard error of bits per byte, documents taken as independent (a ratio estimate)."""
        count = len(self.nats)
        if count < 2:
            return math.nan
        residual = self.nats / math.log(2) - self.bits_per_byte * self.num_bytes
        return float(residual.std(ddof=1) * math.sqrt(count) / max(self.num_bytes.sum(), 1))


@torch.inference_mode()
def code_length(
    model: LlamaForCausalLM,
    documents: Sequence[np.ndarray],
    num_bytes: Sequence[int] | np.ndarray,
    *,
    context_tokens: int,
    stride_tokens: int | None = None,
    batch_tokens: int = 8192,
) -> CodeLength:
    """Code length of each document, whose first token (begin-of-text) is given and not predicted.

    A document longer than the context is read in windows that overlap: each window predicts its last `stride_tokens`
    tokens (default half the context) with everything before them in view, so that every token is predicted once and,
    after the first window, with at least `context_tokens - stride_tokens` tokens of context.
    """
    stride = stride_tokens or max(context_tokens // 2, 1)
    nats = np.zeros(len(documents))
    windows = [window for index, doc in enumerate(documents) for window in _windows(index, doc, context_tokens, stride)]
    windows.sort(key=lambda window: -len(window.tokens))
    device = next(model.parameters()).device
    for batch in _batches(windows, batch_tokens):
        width = max(len(window.tokens) for window in batch)
        rows = np.zeros((len(batch), width), dtype=np.int64)
        for row, window in enumerate(batch):
            rows[row, : len(window.tokens)] = window.tokens
        tokens = torch.from_numpy(rows).to(device)  # (B, T); padding is on the right, where causal attention ignores it
        positions = torch.arange(width - 1, device=device).expand(len(batch), -1)
        hidden = model.model(model.model.embed(tokens[:, :-1]), positions)  # (B, T-1, D)
        log_probs = model.lm_head.log_probs(hidden, tokens[:, 1:]).double().cpu().numpy()
        for row, window in enumerate(batch):
            nats[window.document] -= log_probs[row, window.first - 1 : len(window.tokens) - 1].sum()
    num_tokens = np.array([max(len(document) - 1, 0) for document in documents])
    return CodeLength(nats, num_tokens, np.asarray(num_bytes, dtype=np.int64))


@dataclass(frozen=True)
class _Window:
    document: int
    tokens: np.ndarray
    first: int  # the first token of the window that is predicted


def code_length_in_memory(
    model: LlamaForCausalLM,
    documents: Sequence[np.ndarray],
    num_bytes: Sequence[int] | np.ndarray,
    *,
    context_tokens: int,
    batch_tokens: int = 8192,
) -> CodeLength:
    """`code_length`, with batches half as large as often as they do not fit into memory.

    Raises:
        CapacityError: not even a single row fits.
    """
    while True:
        try:
            options = {"context_tokens": context_tokens, "batch_tokens": batch_tokens}
            return code_length(model, documents, num_bytes, **options)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            if batch_tokens <= context_tokens:
                raise CapacityError(
                    f"evaluation: one row of {context_tokens:,} tokens does not fit into memory; use a shorter context"
                ) from None
        batch_tokens = max(batch_tokens // 2, context_tokens)
        say(f"  evaluation ran out of memory; its batches are {batch_tokens:,} tokens now")


def _windows(index: int, document: np.ndarray, context: int, stride: int) -> Iterator[_Window]:
    """Windows of at most `context` inputs and one more token to predict; together they predict every token once."""
    done = 1
    while done < len(document):
        end = min(len(document), context + 1) if done == 1 else min(len(document), done + stride)
        start = max(0, end - context - 1)
        yield _Window(index, np.asarray(document[start:end], dtype=np.int64), done - start)
        done = end


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    batch: list[_Window] = []
    for window in windows:  # sorted longest first: the first window of a batch is its width
        if batch and (len(batch) + 1) * len(batch[0].tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def sample_documents(documents: Documents, max_bytes: int) -> list[int]:
    """Which documents to judge: spread evenly over the source, whole, until about `max_bytes` of text are in.

    The same for every model, so that their figures can be compared.
    """
    total = int(documents.num_bytes.sum())
    if total <= max_bytes:
        return list(range(len(documents)))
    order = np.argsort((np.arange(len(documents)) * 0.6180339887498949) % 1.0, kind="stable")  # low-discrepancy
    chosen: list[int] = []
    taken = 0
    for index in order:
        size = int(documents.num_bytes[index])
        if taken + size <= max_bytes or not chosen:
            chosen.append(int(index))
            taken += size
    return sorted(chosen)


def heldout_bits_per_byte(
    model: nn.Module, heldout: Mapping[str, Documents], context_tokens: int, max_bytes: int = 150_000
) -> float:
    """Bits per byte on a fixed sample of the held-out documents of every source together."""
    return together(heldout_lengths(model, heldout, context_tokens, max_bytes).values())


def heldout_lengths(
    model: nn.Module, heldout: Mapping[str, Documents], context_tokens: int, max_bytes: int = 150_000
) -> dict[str, CodeLength]:
    """The code length of that sample of each source."""
    assert isinstance(model, LlamaForCausalLM)
    model.eval()
    found = {}
    for name, documents in heldout.items():
        chosen = sample_documents(documents, max_bytes)
        tokens = [documents.tokens(index) for index in chosen]
        sizes = documents.num_bytes[chosen]
        found[name] = code_length_in_memory(model, tokens, sizes, context_tokens=context_tokens)
    return found


def together(lengths: Iterable[CodeLength]) -> float:
    """Bits per byte of several sources as one text."""
    lengths = list(lengths)
    nats, num_bytes = sum(one.nats.sum() for one in lengths), sum(one.num_bytes.sum() for one in lengths)
    return float(nats / math.log(2) / max(num_bytes, 1))
