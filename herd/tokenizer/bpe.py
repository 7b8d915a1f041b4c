"""Byte-level BPE training: merges, learned from counted pre-tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from herd.tokenizer.merges import learn_merges

NUM_BYTES = 256
_SPARE_MERGES = 10_000  # for those that make a token that is there already


def train(
    counts: Mapping[str, int], vocab_size: int, advance: Callable[[int], object] = lambda merges: None
) -> dict[bytes, int]:
    """The ranks (bytes of a token -> id) of up to `vocab_size` tokens: the 256 bytes, then what merges make."""
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
    """These ranks and those of further merges, up to `vocab_size` in all; `words` are given as ids of the ranks."""
    ranks = dict(ranks)
    tokens = sorted(ranks, key=ranks.__getitem__)
    if len(ranks) >= vocab_size:
        return ranks
    for left, right in learn_merges(words, counts, list(map(len, tokens)), vocab_size - len(ranks) + _SPARE_MERGES):
        tokens.append(tokens[left] + tokens[right])
        if tokens[-1] in ranks:  # "aba" may come of "ab" + "a" and of "a" + "ba"
            continue
        ranks[tokens[-1]] = len(ranks)
        advance(1)
        if len(ranks) == vocab_size:
            break
    return ranks


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way in which two tokens make a third, in the order of the third's rank.

    tiktoken joins any two neighbours whose concatenation is a token, the lowest rank first; a reader that works with a
    list of merges does the same when the list holds all the ways.
    """
    found = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        ways = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        found += sorted(ways, key=lambda way: (ranks[way[0]], ranks[way[1]]))
    return found
