"""Log-probabilities of the reference model, computed before training, so that only one model is in memory."""

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

    If a pair has three responses, only the best and the worst are computed; the middle one stays NaN. Each of `world`
    processes computes its share of the rows, and all get all results.
    """
    phase = Phase(batch_tokens=row_tokens, row_tokens=row_tokens, mixture={"pairs": 1.0})
    columns, sources = pairs.dpo_columns, {"pairs": pairs.documents}
    loader = PackedLoader(sources, [phase], micro_tokens=micro_tokens, columns=columns, rank=rank, world=world)
    sums = np.full(len(pairs.documents), np.nan)
    device = next(model.parameters()).device
    model.eval()
    with progress("reference", total=-(-len(pairs) // world), unit="pairs") as bar:
        for batch in loader.epoch():
            batch_sums = model.run(response_sums, batch.to(device))
            sums[batch.columns["document"].numpy()] = batch_sums.double().cpu().numpy()
            bar.advance(len(batch_sums) // 2)
    for share in from_all(sums):
        sums = np.where(np.isnan(sums), share, sums)
    return sums


def read_log_probs(file: Path, num_responses: int) -> np.ndarray:
    """Read the result of `log_probs` from a NumPy file.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        sums: np.ndarray = np.load(file)
    except (OSError, ValueError, EOFError):
        sums = np.zeros(0)
    if sums.shape != (num_responses,):
        raise CheckpointError(f"{file}: damaged; delete it, and the reference log-probabilities are computed again")
    return sums
