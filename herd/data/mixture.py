"""The order of a weighted mixture: how many of the first n rows come from each source.

Webster's apportionment is used because it is house-monotone (one more row never takes a row away from a source) and
stays within about one row of the exact share: the counts of any prefix are a pure function of its length, so a cursor
into each source needs no memory.
"""

from collections.abc import Sequence

import numpy as np


def turns(weights: Sequence[float], num_rows: int) -> np.ndarray:
    """How many of the first `num_rows` rows each source gives, as int64 counts that sum to `num_rows`."""
    share = np.asarray(weights, dtype=np.float64)
    share = share / share.sum()
    near = max(num_rows - len(share) / 2, 0.0)
    counts: np.ndarray = np.maximum(np.ceil(share * near - 0.5), 0).astype(np.int64)
    while counts.sum() < num_rows:
        counts[np.argmax(share / (2 * counts + 1))] += 1
    return counts
