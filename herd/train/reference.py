"""Log-probabilities of the reference model, computed once: the trainer then only ever holds one model."""

from __future__ import annotations

import numpy as np
import torch

from herd.data.loader import PackedLoader, Phase
from herd.data.preferences import Pairs
from herd.log import progress
from herd.model.llama import LlamaForCausalLM
from herd.train.objectives import response_sums


@torch.no_grad()
def log_probs(model: LlamaForCausalLM, pairs: Pairs, *, row_tokens: int, micro_tokens: int = 8192) -> np.ndarray:
    """The summed log-probability of every response (the tokens that count for DPO), one per document of `pairs`.

    Of a pair with three responses only the best and the worst are computed, the middle one stays NaN.
    """
    phase = Phase(batch_tokens=row_tokens, row_tokens=row_tokens, mixture={"pairs": 1.0})
    loader = PackedLoader({"pairs": pairs.documents}, [phase], micro_tokens=micro_tokens, columns=pairs.dpo_columns)
    sums = np.full(len(pairs.documents), np.nan)
    model.eval()
    with progress("reference", total=len(pairs), unit="pairs") as bar:
        for batch in loader.epoch():
            found = model.run(response_sums, batch)
            sums[batch.columns["document"].numpy()] = found.double().numpy()
            bar.advance(len(found) // 2)
    return sums
