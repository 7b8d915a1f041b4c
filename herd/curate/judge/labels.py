"""Labelled texts to train the quality classifier on: rows with labels, listed addresses, or good texts and others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from herd.curate.dedup.duplicates import normal_url
from herd.curate.filters.addresses import list_lines
from herd.curate.judge.grades import read_documents, sample_documents
from herd.errors import DataError
from herd.log import say

_MAX_LISTED = 100_000  # documents at listed addresses that are learned from
_LEAST_OTHERS = 1000
Labelled = tuple[list[str], list[float] | list[str]]
"""Texts, and for each its score (0 to 1) or its class."""


def by_examples(positives: list[Path], negatives: list[Path]) -> Labelled:
    """Good texts as 1, others as 0."""
    texts, targets = [], []
    for paths, target in ((positives, 1.0), (negatives, 0.0)):
        found = [document["text"] for document in read_documents(paths)]
        texts += found
        targets += [target] * len(found)
    return texts, targets


def by_urls(listed_urls: Path, paths: list[Path], seed: int) -> Labelled:
    """Documents at listed addresses are good; of the others as many again are drawn.

    Raises:
        DataError: none of the documents is at a listed address.
    """
    listed = {normal_url(line) for _, line in list_lines(listed_urls)}

    def is_listed(document: dict[str, str]) -> bool:
        return normal_url(document["url"]) in listed

    try:
        good = [d["text"] for d in sample_documents(paths, _MAX_LISTED, seed, is_listed)]
    except DataError:
        raise DataError(f"{listed_urls}: none of the documents is at a listed address") from None
    number = max(len(good), _LEAST_OTHERS)
    others = sample_documents(paths, number, seed, lambda document: not is_listed(document))
    say(f"  {len(good):,} documents at listed addresses, {len(others):,} others")
    return [*good, *(document["text"] for document in others)], [1.0] * len(good) + [0.0] * len(others)


def by_rows(path: Path, rows: Iterable[tuple[str, dict[str, Any]]]) -> Labelled:
    """The labels that the rows of a file hold, each row behind its place.

    Raises:
        DataError: a row without text or label, scores beyond 0 to 1, or scores and classes mixed.
    """
    texts: list[str] = []
    targets: list[Any] = []
    for place, row in rows:
        target = row.get("score", row.get("label"))
        if not isinstance(row.get("text"), str) or not _is_target(target):
            raise DataError(f"{place}: expected `text` with `score` (0 to 1) or `label` (a name), got {sorted(row)}")
        texts.append(row["text"])
        targets.append(target)
    numbers = [isinstance(target, int | float) for target in targets]
    if any(numbers) and not all(numbers):
        raise DataError(f"{path}: holds scores and labels; a classifier learns one or the other")
    if all(numbers) and targets and not all(0 <= target <= 1 for target in targets):
        raise DataError(f"{path}: scores from {min(targets)} to {max(targets)}; expected 0 to 1")
    return texts, targets if all(numbers) else [str(target) for target in targets]


def _is_target(target: object) -> bool:
    return isinstance(target, str | int | float) and not isinstance(target, bool)
