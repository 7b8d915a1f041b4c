"""What the scorer of posts sees of a page's blocks: their text's shape, their place in the tree, and what repeats.

A thread repeats one path of elements for every post. So the strongest figures are those of all blocks on one path
together, and the class names along it, whose words were weighed on labelled pages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from herd.curate.extract.blocks import Blocks, words_of_name, words_of_text

FIGURES = (
    *("length", "links", "good", "marks", "commas", "digits", "capitals", "ends as a sentence", "begins capital"),
    *("spaces", "bars", "long", "short", "words of a short text", "depth", "hidden", "best name above"),
    *("worst name above", "own name", "name above", "worst name of a small part", "in comments", "place"),
    *("text before", "good text before", "text after", "good around", "links around", "levels to the home"),
    *("in the home", "before the home", "share of the home", "twins", "twins above", "most twins above"),
    *("good text of its path", "blocks of its path", "links of its path", "mean length of its path"),
)
"""The columns of `figures`."""

_WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_WIDE_CHARACTERS = 2.5  # Latin letters that say as much as one Chinese, Japanese or Korean character
_MARKS = re.compile(r"[.!?…。！？।؟]")
_COMMAS = re.compile(r"[,;:،、，；：]")
_DIGITS = re.compile(r"\d")
_ENDS = re.compile(r"[.!?…。！？।؟:：][\"'”’»)\]」』]*$")
_GOOD_LENGTH, _LONG_LENGTH = 60, 140  # a block this long is good text: with a sentence mark, or without
_GOOD_LINKS = 0.45  # the largest share of links in good text
_HOME = 0.6  # share of the good text that the page's home holds
_SMALL = 0.5  # share of the good text below which an element is a small part of the page
_WINDOW = 5  # blocks on each side
_LEVELS_UP = 12
_NO_DIGITS = str.maketrans("", "", "0123456789")
_CLIP = 4.0  # log odds that names can add up to
COMMENTS = frozenset({"comment", "comments", "commentlist", "disqus", "respond", "kommentare"})


def lengths(texts: list[str]) -> np.ndarray:
    """Characters of each text, (blocks,); those of scripts that say more with one are counted as more."""
    return np.array([len(t) if t.isascii() else len(t) + (_WIDE_CHARACTERS - 1) * len(_WIDE.findall(t)) for t in texts])


def figures(blocks: Blocks, words: Mapping[str, float]) -> np.ndarray:
    """The figures of a page's blocks, (blocks, len(FIGURES)) float32.

    `words` are the learned log odds that a word of a class name, or (as `~word`) of a short text, means content.
    """
    texts, count = blocks.texts, len(blocks.texts)
    raw = np.maximum([len(text) for text in texts], 1)
    size, links = lengths(texts), np.array(blocks.links) / raw
    marks = np.array([len(_MARKS.findall(text)) if len(text) > 12 else 0 for text in texts])
    exact = np.array([kind in ("pre", "table") for kind in blocks.kinds])
    good = ((size >= _LONG_LENGTH) | ((size >= _GOOD_LENGTH) & (marks > 0)) | exact) & (links <= _GOOD_LINKS)
    goodness, holder = np.where(good, size, 0.0), np.array(blocks.holders)
    total, all_good = max(1.0, size.sum()), max(1.0, goodness.sum())
    before, good_before = np.cumsum(size) - size, np.cumsum(goodness) - goodness
    columns = [*_shape(texts, size, links, good, marks), _weight_of_texts(texts, words)]
    tree = _Tree(blocks, size, goodness, words)
    columns += [*tree.names[:, holder]]
    columns += [np.arange(count) / max(1, count - 1), before / total, good_before / all_good]
    columns += [np.log1p(total - before - size) / 5, *(_around(column) for column in (good.astype(float), links))]
    columns += [*tree.home(holder), *tree.twins(holder), *_of_path(paths_of(blocks), size, links, goodness)]
    return np.stack(columns, axis=1).astype(np.float32)


def _shape(
    texts: list[str], size: np.ndarray, links: np.ndarray, good: np.ndarray, marks: np.ndarray
) -> list[np.ndarray]:
    heads = [text[:300] for text in texts]
    seen = np.maximum(1, [len(head) for head in heads])
    commas = np.array([len(_COMMAS.findall(head)) for head in heads]) / seen
    digits = np.array([len(_DIGITS.findall(head)) for head in heads]) / seen
    capitals = np.array([sum(map(str.isupper, head[:60])) for head in heads]) / np.minimum(seen, 60)
    ends = np.array([bool(_ENDS.search(text[-6:])) for text in texts])
    begins = np.array([text[:1].isupper() for text in texts])
    spaces = np.array([head.count(" ") for head in heads]) / seen
    bars = np.array([head.count("|") + head.count("·") + head.count("»") + 3 * head.count("©") for head in heads])
    columns = [np.log1p(size) / 5, links, good, np.minimum(60 * marks / np.maximum(size, 20), 3)]
    columns += [np.minimum(30 * commas, 3), digits, capitals, ends, begins, 5 * spaces, np.minimum(bars, 3)]
    return [np.asarray(column, dtype=float) for column in (*columns, size >= _LONG_LENGTH, size < 25)]


def _weight_of_texts(texts: list[str], words: Mapping[str, float]) -> np.ndarray:
    """How much the words of short blocks (`reply`, `share`) speak for content, above 0, or furniture, below."""
    weights = np.zeros(len(texts))
    for number, text in enumerate(texts):
        if values := [words[word] for word in words_of_text(text) if word in words]:
            weights[number] = sum(values) / len(values) ** 0.5
    return np.clip(weights, -_CLIP, _CLIP)


def _around(column: np.ndarray) -> np.ndarray:
    """The mean over a block and its neighbours; beyond the page's ends there are zeros."""
    return np.convolve(column, np.ones(2 * _WINDOW + 1) / (2 * _WINDOW + 1))[_WINDOW:-_WINDOW]


def _kind(name: str) -> str:
    """What an element shares with its like: the first class name, or the id, without the number that `post-17` has."""
    return name.partition(" ")[0].translate(_NO_DIGITS)


def paths_of(blocks: Blocks) -> np.ndarray:
    """A number for each block's path of elements: tags and first class names from the page's root down, (blocks,)."""
    paths, known = [0] * len(blocks.tags), dict[tuple, int]()
    for number, parent in enumerate(blocks.parents):
        if parent >= 0:
            step = (paths[parent], blocks.tags[number], _kind(blocks.names[number]))
            paths[number] = known.setdefault(step, len(known) + 1)
    return np.array(paths)[np.array(blocks.holders)]


def _of_path(path: np.ndarray, size: np.ndarray, links: np.ndarray, goodness: np.ndarray) -> list[np.ndarray]:
    """What all blocks on the same path of elements have together."""
    count = np.bincount(path)[path]
    good, linked, whole = (np.bincount(path, weights=one)[path] for one in (goodness, links * size, size))
    shares = [good / max(1.0, goodness.sum()), np.log1p(count) / 5, linked / np.maximum(1, whole)]
    return [*shares, np.log1p(whole / count) / 5]


class _Tree:
    """What is known of each element: the good text inside, its names and those above, how often it repeats."""

    def __init__(self, blocks: Blocks, size: np.ndarray, goodness: np.ndarray, words: Mapping[str, float]):
        self.parent, self.first, self.end = (np.array(one) for one in (blocks.parents, blocks.firsts, blocks.ends))
        sums = np.zeros((2, len(size) + 1))
        np.cumsum([size, goodness], axis=1, out=sums[:, 1:])
        text, good = sums[:, self.end] - sums[:, self.first]
        self.share = good / max(1.0, good[0])
        self._walk(blocks, text > 0, words)

    def _walk(self, blocks: Blocks, has_text: np.ndarray, words: Mapping[str, float]) -> None:
        """Pass down what holds for everything inside an element; parents come before their children."""
        count, share = len(blocks.tags), self.share.tolist()
        depth, groups = [0] * count, [0] * count
        hidden, best, worst, own, above, small, comments = ([0.0] * count for _ in range(7))
        known: dict[tuple, int] = {}
        weights: dict[str, tuple[float, bool]] = {"": (0.0, False)}
        for number, parent in enumerate(blocks.parents):
            if parent < 0:
                continue
            name = blocks.names[number]
            if name not in weights:
                parts = words_of_name(name)
                value = sum(words.get(part, 0.0) for part in parts)
                weights[name] = max(-_CLIP, min(_CLIP, value)), not COMMENTS.isdisjoint(parts)
            value, is_comments = weights[name]
            depth[number] = depth[parent] + 1
            hidden[number] = 1.0 if blocks.hidden[number] and share[number] < _SMALL else hidden[parent]
            comments[number] = 1.0 if is_comments else comments[parent]
            best[number], worst[number] = max(value, best[parent]), min(value, worst[parent])
            own[number], above[number] = value, own[parent]
            small[number] = 0.0 if share[number] >= _SMALL else min(value, small[parent])
            kin = (parent, blocks.tags[number], _kind(name))
            groups[number] = known.setdefault(kin, len(known) + 1)
        group = np.array(groups)
        self.names = np.array([np.array(depth) / 10, hidden, best, worst, own, above, small, comments])
        self.repeats = np.log1p(np.bincount(group, weights=has_text)[group]) / 3
        self.repeats[0] = 0
        most = self.repeats.tolist()
        for number, parent in enumerate(blocks.parents):
            if parent >= 0:
                most[number] = max(most[number], most[parent])
        self.most_repeats = np.array(most)

    def home(self, holder: np.ndarray) -> list[np.ndarray]:
        """How far each block lies from the smallest element that holds most of the page's good text."""
        home = int(np.flatnonzero(self.share > _HOME)[-1]) if self.share[0] > _HOME else 0
        at, levels = holder.copy(), np.zeros(len(holder))
        first, end = self.first[home], self.end[home]
        for _ in range(_LEVELS_UP):
            apart = ~((self.first[at] <= first) & (self.end[at] >= end))
            apart &= ~((first <= self.first[at]) & (self.end[at] <= end))
            if not apart.any():
                break
            levels[apart] += 1
            at[apart] = np.maximum(self.parent[at[apart]], 0)
        place = np.arange(len(holder))
        share = np.full(len(holder), self.share[home])
        return [levels / 5, (place >= first) & (place < end), place < first, share]

    def twins(self, holder: np.ndarray) -> list[np.ndarray]:
        """How often an element like the block's holder repeats under one parent; of its parent; at most above it."""
        return [self.repeats[holder], self.repeats[np.maximum(self.parent[holder], 0)], self.most_repeats[holder]]
