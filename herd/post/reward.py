"""A reward model at work: scores of whole conversations, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from herd.errors import CheckpointError, DataError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.model.llama import LlamaForSequenceClassification
from herd.tokenizer.chat import render
from herd.types import Conversation


class RewardModel:
    """Scores how good the last answer of a conversation is: larger is better, only differences mean something.

    The score is read at the conversation's last token, where the answer has ended.

    Raises:
        CheckpointError: `path` holds no reward model.
    """

    def __init__(self, path: Path | str | Checkpoint, *, dtype: torch.dtype | None = None, device: str = "cpu"):
        checkpoint = open_checkpoint(path)
        model = checkpoint.load(dtype=dtype, device=device)
        if not isinstance(model, LlamaForSequenceClassification):
            raise CheckpointError(
                f"{checkpoint.place} holds a language model; expected a reward model, made by `herd reward`"
            )
        self.model, self.tokenizer = model, checkpoint.tokenizer

    @torch.inference_mode()
    def score(self, conversations: Sequence[Conversation], *, batch_tokens: int = 8192) -> list[float]:
        """One score per conversation, in order; computed in batches of similar length.

        Raises:
            DataError: a conversation is longer than the model's context.
        """
        rows = [render(self.tokenizer, conversation).tokens for conversation in conversations]
        limit = self.model.config.max_position_embeddings
        for number, row in enumerate(rows):
            if len(row) > limit:
                raise DataError(f"conversation {number} has {len(row)} tokens, the reward model reads {limit}")
        scores = [0.0] * len(rows)
        device = next(self.model.parameters()).device
        for batch in _by_length(rows, batch_tokens):
            width = len(rows[batch[0]])
            tokens = torch.full(
                (len(batch), width), self.tokenizer.pad_id
            )  # (B, T); causal attention ignores the right
            for place, index in enumerate(batch):
                tokens[place, : len(rows[index])] = torch.tensor(rows[index])
            last = torch.tensor([len(rows[index]) - 1 for index in batch])
            values = self.model(tokens.to(device))[torch.arange(len(batch)), last, 0].float().cpu()
            for index, value in zip(batch, values.tolist(), strict=True):
                scores[index] = value
        return scores


def _by_length(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most `batch_tokens` padded tokens, the longest row of a batch first."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index)):
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
