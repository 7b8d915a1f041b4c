"""A teacher's next-token distributions, computed before training, so that only one model is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from herd.data.loader import Columns, PackedLoader, Phase, Placed
from herd.data.shards import Documents
from herd.errors import CheckpointError
from herd.log import progress
from herd.model.llama import Llama, LlamaForCausalLM
from herd.parallel.launch import agreed, from_all
from herd.run import atomic_folder
from herd.train.checkpoint import is_first
from herd.train.objectives import likeliest
from herd.types import IGNORE, Batch


@dataclass(frozen=True)
class Taught:
    """A teacher's top k tokens after each token of some documents, concatenated."""

    first: Mapping[int, np.ndarray]  # id(documents) -> index of each document's first token
    ids: np.ndarray  # (tokens, k) int32
    log_probs: np.ndarray  # (tokens, k) float16

    def columns(self, placed: list[Placed], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        """The columns that `distill` reads: `teacher_ids`, `teacher_log_probs` (B, T, k)."""
        k = self.ids.shape[1]
        ids, log_probs = np.zeros((*shape, k), np.int32), np.zeros((*shape, k), np.float16)
        for item in placed:
            row, here = item.row, slice(item.offset, item.offset + item.length)
            begin = self.first[id(item.documents)][item.document] + item.start
            ids[row, here] = self.ids[begin : begin + item.length]
            log_probs[row, here] = self.log_probs[begin : begin + item.length]
        return {"teacher_ids": torch.from_numpy(ids), "teacher_log_probs": torch.from_numpy(log_probs)}


def taught_bytes(sources: Mapping[str, Documents], k: int) -> int:
    """Disk space for the teacher's distributions."""
    size: int = sum(int(documents.num_tokens.sum()) for documents in sources.values()) * k * 6
    return size


def ask(
    teacher: Llama,
    sources: Mapping[str, Documents],
    folder: Path,
    *,
    k: int,
    row_tokens: int,
    micro_tokens: int,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Write the teacher's top k tokens for every token into a folder; each process computes its share of the rows.

    Raises:
        CheckpointError: the teacher is a reward model.
    """
    if not isinstance(teacher, LlamaForCausalLM):
        raise CheckpointError("the teacher is a reward model, which predicts no tokens; give a language model")
    first, total = _places(sources)
    phase = Phase(batch_tokens=row_tokens, row_tokens=row_tokens, mixture=dict.fromkeys(sources, 1.0))
    options = {"micro_tokens": micro_tokens, "rank": rank, "world": world}
    loader = PackedLoader(sources, [phase], columns=_place_columns(first), **options)
    device = next(teacher.parameters()).device
    if not is_first():
        for batch in loader.epoch():
            from_all(_answers(teacher, batch.to(device), k))
        return
    with atomic_folder(folder) as aside, progress("teacher", total=loader.epoch_tokens(), unit="tokens") as bar:
        ids = open_memmap(aside / "ids.npy", "w+", np.int32, (total, k))
        log_probs = open_memmap(aside / "log_probs.npy", "w+", np.float16, (total, k))
        for batch in loader.epoch():
            for places, top_ids, top_log_probs in from_all(_answers(teacher, batch.to(device), k)):
                ids[places], log_probs[places] = top_ids, top_log_probs
            bar.advance(batch.tokens.numel() * world)
        ids.flush()
        log_probs.flush()


def read_taught(folder: Path, sources: Mapping[str, Documents], k: int) -> Taught:
    """Read what `ask` has written.

    Raises:
        CheckpointError: it is damaged, or belongs to other documents.
    """
    first, total = _places(sources)
    try:
        ids, log_probs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "log_probs"))
        if ids.shape != (total, k) or log_probs.shape != (total, k):
            raise ValueError("it belongs to other documents")
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{folder}: damaged ({error}); delete it, and the teacher is run again") from None
    return Taught(first, ids, log_probs)


def is_taught(folder: Path) -> bool:
    """Whether the teacher's distributions are complete; the same on all processes."""
    return agreed(folder.is_dir)


@torch.no_grad()
def _answers(teacher: LlamaForCausalLM, batch: Batch, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, top ids and log-probabilities of a batch's labelled tokens."""
    places = batch.columns["place"][batch.labels != IGNORE]
    if not len(places):
        return places.cpu().numpy(), np.zeros((0, k), np.int32), np.zeros((0, k), np.float16)
    ids, log_probs = teacher.run(partial(likeliest, k=k), batch)
    return places.cpu().numpy(), ids.int().cpu().numpy(), log_probs.half().cpu().numpy()


def _places(sources: Mapping[str, Documents]) -> tuple[dict[int, np.ndarray], int]:
    """The index of each document's first token, all sources concatenated, and the total number of tokens."""
    first, total = {}, 0
    for _, documents in sorted(sources.items()):
        ends = np.cumsum(documents.num_tokens, dtype=np.int64)
        first[id(documents)] = total + ends - documents.num_tokens
        total += int(ends[-1]) if len(ends) else 0
    return first, total


def _place_columns(first: Mapping[int, np.ndarray]) -> Columns:
    def columns(placed: list[Placed], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        place = np.zeros(shape, np.int64)
        for item in placed:
            begin = first[id(item.documents)][item.document] + item.start
            place[item.row, item.offset : item.offset + item.length] = begin + np.arange(item.length)
        return {"place": torch.from_numpy(place)}

    return columns
