"""How much of each source goes into a corpus, and which documents: by weights, with repetition capped, deterministic.

Source: the Llama 3 paper, section 3.1.2 (50 % general knowledge, 25 % mathematics and reasoning, 17 % code, 8 %
multilingual); Muennighoff et al. 2023 (up to four epochs of a source are nearly as good as fresh data).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np

from herd.errors import ConfigError


def epochs(
    available: Mapping[str, int], weights: Mapping[str, float], total: int | None = None, most: float = 4.0
) -> dict[str, float]:
    """How often each source is gone through so that the mix has the weights; `available` and `total` in bytes.

    Without `total` the mix is as large as the scarcest source allows at `most` epochs. With it, a source that would
    need more is cut at `most` and falls short of its weight.

        >>> epochs({"web": 1000, "code": 100}, {"web": 75, "code": 25}, most=2)
        {'web': 0.6, 'code': 2.0}

    Raises:
        ConfigError: the weights name other sources than there are, or are not positive.
    """
    if set(available) != set(weights):
        odd = sorted(set(available) ^ set(weights))[0]
        raise ConfigError(f"weights: `{odd}` must be both a source and have a weight; sources: {', '.join(available)}")
    if min(weights.values()) <= 0 or most <= 0:
        raise ConfigError("weights and max_epochs must be above 0; leave a source out that is not wanted")
    if empty := [name for name, size in available.items() if not size]:
        raise ConfigError(f"sources: `{empty[0]}` holds no kept document")
    share = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    asked = min(most * size / share[name] for name, size in available.items()) if total is None else total
    return {name: min(most, share[name] * asked / size) for name, size in available.items()}


def copies(ids: list[str], epochs: float, seed: int) -> np.ndarray:
    """How often each document appears: the whole epochs, and once more for a share of the documents chosen by hash.

    A document's count follows from its id alone, however the source is cut, and a larger mix always contains a smaller
    one. Returns (N,) int64.
    """
    places = (blake2b(f"{seed}\0{id}".encode(), digest_size=8).digest() for id in ids)
    drawn = np.array([int.from_bytes(place) / 2**64 for place in places])
    return int(epochs) + (drawn < epochs - int(epochs)).astype(np.int64)
