"""The training rows of benchmarks, which no annealing mix may hold outside a probe.

Source: The Llama 3 Herd of Models, section 3.1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from herd.data.shards import Documents
from herd.data.train_splits import holders
from herd.errors import ConfigError, DataError
from herd.evals.rows import rows_of
from herd.log import say
from herd.tokenizer.tokenizer import Tokenizer

_ROWS = 500  # of a split: enough to see whether it is there
_SHARE = 0.01  # of them


def check_no_train_split(
    sources: Mapping[str, Documents], mixture: Mapping[str, float], benchmarks: Path | None, tokenizer: Tokenizer
) -> None:
    """Refuse a mix whose sources hold a benchmark's training rows; say so where there is nothing to compare with.

    `benchmarks` is a folder whose files named `train...` are looked for, at any depth.

    Raises:
        ConfigError: a source of the mix holds more than 1 % of a split's rows.
        DataError: the folder has no such file.
    """
    if benchmarks is None:
        say("  the mix was not compared with benchmarks' training rows (benchmarks=FOLDER)")
        return
    files = sorted(file for file in benchmarks.rglob("train*") if file.is_file())
    if not files:
        raise DataError(f"{benchmarks}: no file train... in it, such as gsm8k/train.jsonl.gz")
    splits = {str(file.relative_to(benchmarks)): _rows(file, tokenizer) for file in files}
    mixed = [name for name in sources if mixture.get(name, 0.0) > 0]
    if found := holders(sources, mixed, splits, _SHARE):
        told = "; ".join(f"`{name}` holds {share:.0%} of {split}" for name, split, share in found)
        raise ConfigError(
            f"mixture: {told}. A model annealed on it would be graded on what it was shown: take the source out, or "
            "set probe=true to measure what it is worth"
        )


def _rows(file: Path, tokenizer: Tokenizer) -> list[list[int]]:
    rows = islice(rows_of(file), _ROWS)
    texts = [max((value for value in row.values() if isinstance(value, str)), key=len, default="") for row in rows]
    return [tokenizer.encode(text) for text in texts]
