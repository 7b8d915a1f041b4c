"""Rows spread over files by a hash or a range, so that each file fits into memory: how global steps stay small."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from herd.errors import CapacityError
from herd.log import size

MAX_FILES = 256
"""Files open at the same time, at most; more partitions than this would need a second round."""

_WRITE_ROWS = 1 << 18  # rows sorted into files at a time


class Spill:
    """Rows of one structured dtype on disk, in `num_partitions` files, in the order they came; gone when it closes."""

    def __init__(self, folder: Path, dtype: np.dtype | list, num_partitions: int):
        shutil.rmtree(folder, ignore_errors=True)  # of a killed process
        folder.mkdir(parents=True)
        self.folder, self.dtype, self.num_partitions = folder, np.dtype(dtype), num_partitions
        self._files = [open(folder / f"{p:04d}", "wb") for p in range(num_partitions)]  # noqa: SIM115

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, rows: np.ndarray, partition: np.ndarray) -> None:
        """Append rows (R,) to the partitions (R,) they belong to."""
        for first in range(0, len(rows), _WRITE_ROWS):
            some, place = rows[first : first + _WRITE_ROWS], partition[first : first + _WRITE_ROWS]
            if self.num_partitions == 1:
                self._files[0].write(some.tobytes())
                continue
            order = np.argsort(place, kind="stable")
            some, bounds = some[order], np.searchsorted(place[order], np.arange(self.num_partitions + 1))
            for p in np.flatnonzero(np.diff(bounds)):
                self._files[p].write(some[bounds[p] : bounds[p + 1]].tobytes())

    def read(self) -> Iterator[np.ndarray]:
        """The rows of one partition after the other; nothing can be added from now on."""
        for file in self._files:
            file.close()
        for p in range(self.num_partitions):
            path = self.folder / f"{p:04d}"
            yield np.fromfile(path, dtype=self.dtype)
            path.unlink()


def num_partitions(rows: int, bytes_per_row: int, memory_bytes: int) -> int:
    """Into how many partitions rows must be cut so that one of them, worked on, takes no more than that memory.

    Raises:
        CapacityError: it would be more than `MAX_FILES`.
    """
    count = max(1, -(-rows * bytes_per_row // memory_bytes))
    if count > MAX_FILES:
        least = -(-rows * bytes_per_row // MAX_FILES)
        raise CapacityError(
            f"work.memory_bytes: {size(memory_bytes)} would cut {rows:,} rows into {count:,} partitions, at most "
            f"{MAX_FILES} are possible; give at least {least:_}"
        )
    return count
