"""Byte-level BPE training: learning merges from counts of pre-tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from herd.tokenizer.merges import learn_merges

NUM_BYTES = 256
_SPARE_MERGES = 10_000  # for merges that make an existing token


def train(
    counts: Mapping[str, int], vocab_size: int, advance: Callable[[int], object] = lambda merges: None
) -> dict[bytes, int]:
    """The ranks (bytes of a token -> id) of up to `vocab_size` tokens: the 256 bytes, then the learned merges."""
    words = [word.encode("utf-8", "replace") for word in counts]
    bytes_alone = {bytes([b]): b for b in range(NUM_BYTES)}
    return grow(bytes_alone, words, list(counts.values()), vocab_size, advance)


def grow(
    ranks: dict[bytes, int],
    words: Sequence[Sequence[int]],
    counts: Sequence[int],
    vocab_size: int,
    advance: Callable[[int], object],
) -> dict[bytes, int]:
    """The ranks extended by further merges, up to `vocab_size` in total; `words` are ids in the given ranks."""
    ranks = dict(ranks)
    tokens = sorted(ranks, key=ranks.__getitem__)
    if len(ranks) >= vocab_size:
        return ranks
    for left, right in learn_merges(words, counts, list(map(len, tokens)), vocab_size - len(ranks) + _SPARE_MERGES):
        tokens.append(tokens[left] + tokens[right])
        if tokens[-1] in ranks:  # "aba" may be "ab" + "a" and "a" + "ba"
            continue
        ranks[tokens[-1]] = len(ranks)
        advance(1)
        if len(ranks) == vocab_size:
            break
    return ranks


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens whose concatenation is a token, in the order of its rank.

    tiktoken merges any adjacent tokens whose concatenation is a token, the lowest rank first; a tokenizer with a list
    of merges does the same if the list contains all such pairs.
    """
    pairs = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        ways = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        pairs += sorted(ways, key=lambda way: (ranks[way[0]], ranks[way[1]]))
    return pairs
