"""Log-probabilities of the reference model, computed once: the trainer then only ever holds one model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from herd.data.loader import PackedLoader, Phase
from herd.data.preferences import Pairs
from herd.errors import CheckpointError
from herd.log import progress
from herd.model.llama import Llama
from herd.parallel.launch import from_all
from herd.parallel.model import ParallelModel
from herd.train.objectives import response_sums


@torch.no_grad()
def log_probs(
    model: Llama | ParallelModel,
    pairs: Pairs,
    *,
    row_tokens: int,
    micro_tokens: int = 8192,
    rank: int = 0,
    world: int = 1,
) -> np.ndarray:
    """The summed log-probability of every response (the tokens that count for DPO), one per document of `pairs`.

    Of a pair with three responses only the best and the worst are computed, the middle one stays NaN. Of `world`
    processes each computes its share of the rows, and all get all.
    """
    phase = Phase(batch_tokens=row_tokens, row_tokens=row_tokens, mixture={"pairs": 1.0})
    columns, sources = pairs.dpo_columns, {"pairs": pairs.documents}
    loader = PackedLoader(sources, [phase], micro_tokens=micro_tokens, columns=columns, rank=rank, world=world)
    sums = np.full(len(pairs.documents), np.nan)
    device = next(model.parameters()).device
    model.eval()
    with progress("reference", total=-(-len(pairs) // world), unit="pairs") as bar:
        for batch in loader.epoch():
            found = model.run(response_sums, batch.to(device))
            sums[batch.columns["document"].numpy()] = found.double().cpu().numpy()
            bar.advance(len(found) // 2)
    for share in from_all(sums):
        sums = np.where(np.isnan(sums), share, sums)
    return sums


def read_log_probs(file: Path, num_responses: int) -> np.ndarray:
    """What `log_probs` found, as a run has kept it (a NumPy file).

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        found: np.ndarray = np.load(file)
    except (OSError, ValueError, EOFError):
        found = np.zeros(0)
    if found.shape != (num_responses,):
        raise CheckpointError(f"{file}: damaged; delete it, and the reference is computed once more")
    return found
