"""Byte-level BPE training: count pre-tokens, then merge the most frequent pair again and again."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import regex

from herd.tokenizer.specials import SPLIT_PATTERN

NUM_BYTES = 256


def count_pretokens(
    texts: Iterable[str], *, pattern: str = SPLIT_PATTERN, max_distinct: int = 4_000_000
) -> dict[bytes, int]:
    """How often each pre-token occurs in a stream of texts.

    Memory is bounded: whenever more than `max_distinct` are held, the rarest are forgotten until half of that is left.
    """
    find = regex.compile(pattern).findall
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(find(text))
        if len(counts) > max_distinct:
            counts = Counter(dict(counts.most_common(max_distinct // 2)))
    return {word.encode("utf-8", "replace"): count for word, count in counts.items()}


def train(counts: dict[bytes, int], vocab_size: int) -> dict[bytes, int]:
    """The ranks (bytes of a token -> id) of up to `vocab_size` tokens: the 256 bytes, then one token per merge.

    The most frequent pair merges first; among equals the one with the smaller ids.
    """
    tokens = [bytes([b]) for b in range(NUM_BYTES)]
    words = [list(word) for word in counts]
    weights = list(counts.values())
    pairs: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weights[index]
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < vocab_size:
        negative, pair = heapq.heappop(heap)
        if -negative != pairs[pair]:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        new = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        grown: set[tuple[int, int]] = set()
        for index in places.pop(pair):
            before = words[index]
            after = _merge(before, pair, new)
            if len(after) == len(before):
                continue
            words[index] = after
            for old in pairwise(before):
                pairs[old] -= weights[index]
            for now in pairwise(after):
                pairs[now] += weights[index]
                if new in now:
                    places[now].add(index)
                    grown.add(now)
        for now in grown:
            heapq.heappush(heap, (-pairs[now], now))
    return {token: rank for rank, token in enumerate(tokens)}


def _merge(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The word with each occurrence of the pair replaced, from left to right: [1, 2, 3, 1, 2], (1, 2) -> [4, 3, 4]."""
    merged = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and word[i] == pair[0] and word[i + 1] == pair[1]:
            merged.append(new)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged
