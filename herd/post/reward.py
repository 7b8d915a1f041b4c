"""A reward model at work: scores of whole conversations, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from herd.errors import CheckpointError, DataError
from herd.evals.statistics import paired_difference
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.formats.reward import REWARD_RECORD, reward_record
from herd.model.llama import LlamaForSequenceClassification
from herd.run import read_record
from herd.tokenizer.chat import render
from herd.types import Conversation


class RewardModel:
    """Scores how good the last answer of a conversation is: larger is better, only differences mean something.

    The score is read at the conversation's last token, where the answer has ended.

    Raises:
        CheckpointError: `path` holds no reward model, or one that was trained in another chat template.
    """

    def __init__(self, path: Path | str | Checkpoint, *, dtype: torch.dtype | None = None, device: str = "cpu"):
        checkpoint = open_checkpoint(path)
        model = checkpoint.load(dtype=dtype, device=device)
        if not isinstance(model, LlamaForSequenceClassification):
            raise CheckpointError(
                f"{checkpoint.place} holds a language model; expected a reward model, made by `herd reward`"
            )
        self.model, self.tokenizer = model, checkpoint.tokenizer
        _check_template(checkpoint)

    def score_steps(self, prompt: Conversation, steps: Sequence[str]) -> list[float]:
        """The score after each step of an answer that is written in steps: as if the answer ended there.

        Source: The Llama 3 Herd of Models, section 4.3.3 (reward of reasoning steps).
        """
        texts = ["".join(steps[: place + 1]) for place in range(len(steps))]
        return self.score([[*prompt, {"role": "assistant", "content": text}] for text in texts])

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


def _check_template(checkpoint: Checkpoint) -> None:
    """Refuse a template other than the one that was trained on: scores would be of a form that was never seen."""
    file = checkpoint.place / REWARD_RECORD
    if not file.is_file():
        return
    trained, now = read_record(file), reward_record(checkpoint.tokenizer)
    if trained["template"] != now["template"]:
        raise CheckpointError(
            f"{checkpoint.place}: this reward model was trained in the chat template {trained['format']} "
            f"({trained['template']}), and the folder's is now {now['format']} ({now['template']}); put back "
            "the one it was trained with, or train it anew"
        )


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


def distribution_shift(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> dict[str, float]:
    """How the rewards of two models' answers to the same prompts differ: means with the paired interval over prompts,
    quantiles, and the largest distance of the two distributions (Kolmogorov and Smirnov), beside what chance gives in
    19 of 20 cases where there is no difference (answers of the two shuffled prompt by prompt).
    """
    first, second = (np.concatenate([np.asarray(one, np.float64) for one in side]) for side in (before, after))
    change = paired_difference([float(np.mean(one)) for one in after], [float(np.mean(one)) for one in before])
    figures = {"reward_before": float(first.mean()), "reward_after": float(second.mean())}
    figures |= {"reward_change_low": change.low, "reward_change_high": change.high}
    for name, side in (("before", first), ("after", second)):
        for share in (5, 50, 95):
            figures[f"reward_{name}_{share}_percent"] = float(np.percentile(side, share))
    draw, chance = np.random.default_rng(0), []
    for _ in range(200):
        swap = draw.integers(2, size=len(before)).astype(bool)
        mixed = [(b, a) if same else (a, b) for same, b, a in zip(swap, before, after)]
        chance.append(_distance(*(np.concatenate([np.asarray(pair[i], np.float64) for pair in mixed]) for i in (0, 1))))
    figures |= {
        "reward_distance": _distance(first, second),
        "reward_distance_by_chance": float(np.quantile(chance, 0.95)),
    }
    return {name: round(value, 4) for name, value in figures.items()} | {"reward_answers": len(first)}


def _distance(left: np.ndarray, right: np.ndarray) -> float:
    places = np.concatenate([left, right])
    shares = (np.searchsorted(np.sort(side), places, side="right") / len(side) for side in (left, right))
    return float(np.abs(np.subtract(*shares)).max())
