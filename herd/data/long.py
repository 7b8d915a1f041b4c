"""Sources for longer contexts: long documents up-sampled, and synthetic documents with long-range repetition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from herd.data.loader import num_rows
from herd.data.shards import Documents, in_memory
from herd.errors import DataError

LONG, COPYING = " (long)", "copying"
_SPANS = (8, 33)  # tokens that are repeated: from, below


def for_long_rows(
    sources: Mapping[str, Documents],
    mixture: Mapping[str, float],
    row_tokens: int,
    *,
    long_share: float,
    copying_share: float,
    tokens: float,
    seed: int,
) -> tuple[dict[str, Documents], dict[str, float]]:
    """The sources and their weights, with a larger share of documents that need a long context.

    Of each source's weight `long_share` goes to its documents that fill a row, and `copying_share` of all to documents
    made here for a run of `tokens`: text of the sources in which a stretch is repeated at the end.

    Raises:
        DataError: no document fills a row, or a source already has the name of one made here.
    """
    if taken := [name for name in sources if name == COPYING or name.endswith(LONG)]:
        raise DataError(f"source `{taken[0]}`: this name is kept for documents that are made for long contexts")
    weights = dict(mixture) or {name: float(count) for name, count in num_rows(sources, row_tokens).items()}
    found, shares = dict(sources), {name: weights.get(name, 0.0) / sum(weights.values()) for name in sources}
    longest = {name: one.select(one.num_tokens >= row_tokens) for name, one in sources.items() if shares[name] > 0}
    longest = {name: one for name, one in longest.items() if len(one)}
    if not longest and (long_share or copying_share):
        raise DataError(
            f"no document of {', '.join(sources)} has {row_tokens:,} tokens: a longer context has nothing to learn from"
        )
    if long_share:
        found |= {name + LONG: documents for name, documents in longest.items()}
        shares |= {name + LONG: shares[name] * long_share for name in longest}
        shares |= {name: shares[name] * (1 - long_share) for name in longest}
    if copying_share:
        count = max(1, round(copying_share * tokens / row_tokens))
        found[COPYING] = _copying(longest, row_tokens, count, seed)
        shares = {name: share * (1 - copying_share) for name, share in shares.items()} | {COPYING: copying_share}
    return found, {name: share for name, share in shares.items() if share > 0}


def origin(name: str) -> str:
    """The packed source behind a derived one; empty for synthetic documents."""
    return "" if name == COPYING else name.removesuffix(LONG)


def _copying(sources: Mapping[str, Documents], row_tokens: int, count: int, seed: int) -> Documents:
    """Documents that fill a row: a stretch of a long one, and at its end a few of its spans once more, each after the
    tokens that stood before it, so that what follows can only be known from far back."""
    random = np.random.default_rng(seed)
    names = sorted(sources)
    rows = []
    for _ in range(count):
        documents = sources[names[random.integers(len(names))]]
        number = int(random.integers(len(documents)))
        spans = random.integers(*_SPANS, size=max(1, row_tokens // 128))
        room = row_tokens - int(spans.sum())
        start = int(random.integers(max(1, int(documents.num_tokens[number]) - room)))
        text = documents.tokens(number, start, min(room, int(documents.num_tokens[number]) - start))
        places = [int(random.integers(max(1, len(text) - length))) for length in spans]
        rows.append(np.concatenate([text, *(text[at : at + length] for at, length in zip(places, spans))]))
    fingerprint = next(iter(sources.values())).tokenizer
    return in_memory(COPYING, rows, num_bytes=[0] * len(rows), tokenizer=fingerprint)
