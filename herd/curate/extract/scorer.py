"""The scorer of blocks: two small nets over what is seen of a block; the second sees the first one's scores around it.

The weights were learned from labelled blocks (`benchmarks/extraction_scorer.py`) and are a table of this package.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from herd.curate.extract.features import Features, NameValues, names, second_names
from herd.errors import DataError

TABLE = Path(__file__).with_name("scorer.npz")


class Net:
    """One hidden layer; of several nets that were trained alike the hidden layers stand side by side."""

    def __init__(self, table: dict[str, np.ndarray], name: str):
        self.mean, self.scale, self.inner, self.inner_bias, self.outer = (
            table[f"{name}.{part}"].astype(np.float32) for part in ("mean", "scale", "inner", "inner_bias", "outer")
        )
        self.outer_bias = float(table[f"{name}.outer_bias"])

    def shares(self, figures: np.ndarray) -> np.ndarray:
        """What each figure adds to the log odds against a usual block, to the first order, (blocks, figures)."""
        shown = np.clip((figures - self.mean) * self.scale, -5, 5)
        active = (shown @ self.inner + self.inner_bias > 0) * self.outer
        return shown * (active @ self.inner.T)

    def __call__(self, figures: np.ndarray) -> np.ndarray:
        """Log odds of being content, (blocks,)."""
        hidden = np.clip((figures - self.mean) * self.scale, -5, 5) @ self.inner + self.inner_bias
        return np.maximum(hidden, 0, out=hidden) @ self.outer + self.outer_bias


class Scorer:
    """Scores of a page's blocks: log odds of being content."""

    def __init__(self, table: dict[str, np.ndarray]):
        words = dict(zip(table["words"].tolist(), table["values"].astype(float).tolist(), strict=True))
        self.values = NameValues(words)
        self.values_without_comments = NameValues(words, comments=False)  # as if what is named comments had no name
        self.first, self.second = Net(table, "first"), Net(table, "second")

    def __call__(self, seen: Features) -> np.ndarray:
        return self.second(seen.second(self.first(seen.first)))

    def reasons(self, seen: Features, count: int = 3) -> list[list[tuple[str, float]]]:
        """For each block the figures that moved its score most, and by how much (log odds)."""
        shares = self.second.shares(seen.second(self.first(seen.first)))
        labels = [*names(), *second_names()]
        order = np.argsort(-np.abs(shares), axis=1)[:, :count]
        return [[(labels[i], float(shares[row, i])) for i in best] for row, best in enumerate(order.tolist())]


@lru_cache(maxsize=4)
def load_scorer(path: Path = TABLE) -> Scorer:
    """The scorer of a table.

    Raises:
        DataError: there is no such table, or it is none of this version's.
    """
    try:
        with np.load(path) as table:
            scorer = Scorer(dict(table))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: is no table of a block scorer ({error}); make one as docs/curation.md says") from None
    if len(scorer.second.mean) != len(names()) + len(second_names()):
        raise DataError(f"{path}: was trained for other figures of blocks than this version's; train it again")
    return scorer
