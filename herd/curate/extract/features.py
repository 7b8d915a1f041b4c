"""What a block's scorer sees of it: its text's shape, its place in the tree and on the page, its neighbours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from herd.curate.extract.blocks import Blocks, words_of_name, words_of_text

_WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_WIDE_CHARACTERS = 2.5  # Latin letters that say as much as one of Chinese, Japanese, Korean
_THAI = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_MARKS = re.compile(r"[.!?…。！？।؟]")
_COMMAS = re.compile(r"[,;:،、，；：]")
_DIGITS = re.compile(r"\d")
_ENDS = re.compile(r"[.!?…。！？।؟:：][\"'”’»)\]」』]*$")
_GOOD_LENGTH, _LONG_LENGTH = 60, 140  # a block this long is good text: with a sentence mark, or without
_GOOD_LINKS = 0.45
KINDS: tuple[str, ...] = (
    "p",
    "li",
    "td",
    "th",
    "dd",
    "dt",
    "div",
    "pre",
    "table",
    "blockquote",
    "figcaption",
    "h1",
    "h2",
    "h3",
    "h4",
)
KINDS += ("section", "article", "caption", "body", "center", "summary", "label", "header", "footer")
ABOVE: tuple[str, ...] = (
    "article",
    "main",
    "section",
    "nav",
    "aside",
    "footer",
    "header",
    "form",
    "figure",
    "ul",
    "ol",
    "dl",
    "table",
)
ABOVE += ("blockquote", "li", "details", "td")
LEVELS = (0, 1, 2, 4)  # how far above a block's holder its text and links are added up
_OFFSETS = (-3, -2, -1, 1, 2, 3)

COMMENT_WORDS = frozenset("comment comments commentlist disqus respond reply replies responses kommentare".split())  # noqa: SIM905
_MAX_VALUES = 100_000  # names whose values are remembered


class NameValues(dict[str, tuple[float, bool]]):
    """How much a class name speaks for content (over 0) or furniture (below), and whether it says comments."""

    def __init__(self, words: Mapping[str, float], comments: bool = True):
        super().__init__({"": (0.0, False)})
        self.words, self.comments = words, comments

    def __missing__(self, name: str) -> tuple[float, bool]:
        words = words_of_name(name)
        value = sum(self.words.get(word, 0.0) for word in words)
        says_comments = not COMMENT_WORDS.isdisjoint(words)
        found = (max(-4.0, min(4.0, value)), says_comments) if self.comments or not says_comments else (0.0, False)
        if len(self) < _MAX_VALUES:
            self[name] = found
        return found


def names() -> list[str]:
    """What the columns of `features` are."""
    own = [
        "length",
        "links",
        "good",
        "marks",
        "commas",
        "digits",
        "capitals",
        "ends as a sentence",
        "begins with a capital",
    ]
    own += ["words", "bars", "is long", "is short", "says little words"]
    found = own + [f"is {kind}" for kind in (*KINDS, "another element")] + [f"in {tag}" for tag in ABOVE]
    found += [
        "depth",
        "hidden",
        "named for content",
        "named for furniture",
        "own name",
        "name above",
        "names of small",
        "in comments",
    ]
    found += ["place", "text before", "good text before", "text after"]
    found += [f"{kind} at {offset:+}" for offset in _OFFSETS for kind in ("length", "links", "good", "heading")]
    found += ["good around", "links around"]
    for level in LEVELS:
        found += [f"{kind} of level {level}" for kind in ("good share", "links", "blocks", "text", "good density")]
    found += [
        "levels to the home",
        "in the home",
        "before the home",
        "home's share",
        "twins",
        "twins above",
        "most twins",
    ]
    found += ["good share of its path", "blocks of its path", "links of its path", "path's mean length"]
    found += [
        "page's text",
        "page's blocks",
        "page's links",
        "page's good",
        "longest",
        "wide letters",
        "articles",
        "in p",
        "page outside comments",
        "good outside comments",
    ]
    return found


def second_names() -> list[str]:
    """What the columns are that `Features.second` adds."""
    found = ["first score"]
    found += [f"{kind} at {offset:+}" for offset in _OFFSETS for kind in ("score", "content")]
    found += [f"{kind} of level {level}" for level in LEVELS for kind in ("content of the rest", "share of content")]
    found += ["content of its path", "content before", "characters before", "characters after"]
    return [*found, "page's content", "page's content share", "best block", "content around"]


def lengths(texts: list[str]) -> np.ndarray:
    """Characters of each text, those of scripts that say more with one counted as more."""
    return np.array(
        [float(len(t)) if t.isascii() else len(t) + (_WIDE_CHARACTERS - 1) * len(_WIDE.findall(t)) for t in texts]
    )


class Features:
    """What is seen of a page: `first` of each block by itself, (blocks, len(names())) float32."""

    def __init__(self, blocks: Blocks, values: NameValues):
        self.size = lengths(blocks.texts)
        self.holder = np.array(blocks.holders)
        self.first, self._tree = _first(blocks, self.size, values)
        self.in_comments = self._tree.names[5, self.holder] > 0
        self.hidden = self._tree.hidden[self.holder] > 0  # what holds most of a page is shown by a script

    def second(self, scores: np.ndarray) -> np.ndarray:
        """The first figures, and what the first scores (log odds, (blocks,)) of all blocks add to them."""
        scores = np.clip(scores, -6, 6)
        share = 1 / (1 + np.exp(-scores))
        weight = self.size + 10
        mass = share * weight
        columns = [scores / 3]
        for offset in _OFFSETS:
            columns += [*shifted(np.stack([scores / 3, (share > 0.5) * np.log1p(self.size) / 5]), offset)]
        tree, total = self._tree, max(1.0, mass.sum())
        sums = np.zeros((2, len(scores) + 1))
        np.cumsum([mass, weight], axis=1, out=sums[:, 1:])
        inside, all_inside = sums[:, tree.end] - sums[:, tree.first]
        for level in LEVELS:
            at = tree.above(self.holder, level)
            others = np.maximum(all_inside[at] - weight, 1)
            columns += [(inside[at] - mass) / others, inside[at] / total]
        path = tree.paths[self.holder]
        columns += [np.bincount(path, weights=mass)[path] / np.bincount(path, weights=weight)[path]]
        before = np.cumsum(mass) - mass
        columns += [before / total, np.log1p(before) / 5, np.log1p(np.maximum(0, total - before - mass)) / 5]
        columns += [np.full(len(scores), value) for value in (np.log1p(total) / 5, total / weight.sum(), share.max())]
        columns += [sum(shifted(share[None], offset)[0] for offset in range(-6, 7)) / 13]
        return np.concatenate([self.first, np.stack(columns, axis=1).astype(np.float32)], axis=1)


def _first(blocks: Blocks, size: np.ndarray, values: NameValues) -> tuple[np.ndarray, _Tree]:
    texts, count = blocks.texts, len(blocks.texts)
    raw = np.array([len(t) for t in texts], dtype=float)
    links = np.array(blocks.links) / np.maximum(raw, 1)
    marks = np.array([len(_MARKS.findall(t)) if len(t) > 12 else 0 for t in texts], dtype=float)
    code = np.array([kind in ("pre", "table") for kind in blocks.kinds])
    good = ((size >= _LONG_LENGTH) | ((size >= _GOOD_LENGTH) & (marks > 0)) | code) & (links <= _GOOD_LINKS)
    goodness = np.where(good, size, 0.0)
    heading = np.array([len(kind) == 2 and kind[0] == "h" and kind[1].isdigit() for kind in blocks.kinds], dtype=float)
    holder = np.array(blocks.holders)
    tree = _Tree(blocks, size, links * size, goodness, values)
    columns = [*_own(texts, size, links, good, marks), _said(texts, values.words)]
    columns += [*_one_hot(blocks.kinds), *tree.inside[:, holder]]
    columns += [tree.depth[holder] / 10, tree.hidden[holder], *tree.names[:, holder]]
    before, good_before = np.cumsum(size) - size, np.cumsum(goodness) - goodness
    total, all_good = max(1.0, size.sum()), max(1.0, goodness.sum())
    columns += [np.arange(count) / max(1, count - 1), before / total, good_before / all_good]
    columns += [np.log1p(total - before - size) / 5]
    log_size = np.log1p(size) / 5
    shown = np.stack([log_size, links, good, heading])
    for offset in _OFFSETS:
        columns += [*shifted(shown, offset)]
    window = [sum(shifted(one[None], o)[0] for o in range(-5, 6)) / 11 for one in (good.astype(float), links)]
    columns += [*window, *tree.levels(holder, all_good), *tree.home(holder, all_good), *tree.twins(holder)]
    columns += _of_path(tree.paths[holder], size, links, goodness, all_good)
    wide = (size - raw).sum() / max(1.0, raw.sum())
    page = [np.log1p(total) / 5, np.log1p(count) / 5, (links * size).sum() / total, np.log1p(goodness.sum()) / 5]
    page += [
        size.max() / total,
        wide,
        np.log1p(blocks.tags.count("article")),
        goodness[_is(blocks.kinds, "p")].sum() / all_good,
    ]
    outside = goodness[tree.names[5, holder] == 0].sum()
    page += [outside / all_good, np.log1p(outside) / 5]
    columns += [np.full(count, value) for value in page]
    return np.stack(columns, axis=1).astype(np.float32), tree


def shifted(rows: np.ndarray, offset: int) -> np.ndarray:
    """What stands `offset` places further in each row, 0 past the ends."""
    found = np.zeros_like(rows, dtype=float)
    if offset > 0:
        found[:, :-offset] = rows[:, offset:]
    elif offset < 0:
        found[:, -offset:] = rows[:, :offset]
    else:
        found[:] = rows
    return found


def _own(
    texts: list[str], size: np.ndarray, links: np.ndarray, good: np.ndarray, marks: np.ndarray
) -> list[np.ndarray]:
    raw = np.maximum(1.0, np.array([len(t) for t in texts]))
    head = [t[:300] for t in texts]
    seen = np.minimum(raw, 300)
    commas = np.array([len(_COMMAS.findall(t)) for t in head]) / seen
    digits = np.array([len(_DIGITS.findall(t)) for t in head]) / seen
    capitals = np.array([sum(map(str.isupper, t)) for t in (t[:60] for t in head)]) / np.minimum(raw, 60)
    ends = np.array([bool(_ENDS.search(t[-6:])) for t in texts])
    begins = np.array([t[:1].isupper() for t in texts])
    spaces = np.array([t.count(" ") for t in head]) / seen
    bars = np.array([t.count("|") + t.count("·") + t.count("»") + t.count("©") * 3 for t in head])
    columns = [
        np.log1p(size) / 5,
        links,
        good,
        np.minimum(marks * 60 / np.maximum(size, 20), 3),
        np.minimum(commas * 30, 3),
    ]
    columns += [digits, capitals, ends, begins, spaces * 5, np.minimum(bars, 3), size >= _LONG_LENGTH, size < 25]
    return [np.asarray(column, dtype=float) for column in columns]


def _said(texts: list[str], words: Mapping[str, float]) -> np.ndarray:
    """How much the words of short blocks speak for content (over 0) or furniture (below), as `share` and `more` do."""
    found = np.zeros(len(texts))
    for number, text in enumerate(texts):
        if len(text) <= 100 and (values := [value for word in words_of_text(text) if (value := words.get(word))]):
            found[number] = sum(values) / len(values) ** 0.5
    return np.clip(found, -4, 4)


def _is(kinds: list[str], kind: str) -> np.ndarray:
    return np.array([one == kind for one in kinds])


_ABOVE = {tag: number for number, tag in enumerate(ABOVE)}
_PLACE = {kind: number for number, kind in enumerate(KINDS)}


def _one_hot(kinds: list[str]) -> np.ndarray:
    found = np.zeros((len(KINDS) + 1, len(kinds)))
    found[[_PLACE.get(kind, len(KINDS)) for kind in kinds], np.arange(len(kinds))] = 1
    return found


def _of_path(
    path: np.ndarray, size: np.ndarray, links: np.ndarray, good: np.ndarray, all_good: float
) -> list[np.ndarray]:
    """What the blocks that lie on the same path of elements have together."""
    count = np.bincount(path)[path]
    sums = [np.bincount(path, weights=one)[path] for one in (good, links * size, size)]
    return [sums[0] / all_good, np.log1p(count) / 5, sums[1] / np.maximum(1, sums[2]), np.log1p(sums[2] / count) / 5]


class _Tree:
    """What is known of each element: sums over its blocks, what is above it, how it is named."""

    def __init__(self, blocks: Blocks, size: np.ndarray, linked: np.ndarray, good: np.ndarray, values: NameValues):
        self.parent = np.array(blocks.parents)
        first, end = np.array(blocks.firsts), np.array(blocks.ends)
        sums = np.zeros((4, len(size) + 1))
        np.cumsum([size, linked, good, good > 0], axis=1, out=sums[:, 1:])
        self.first, self.end = first, end
        self.size, self.linked, self.good, self.good_blocks = sums[:, end] - sums[:, first]
        self.blocks = (end - first).astype(float)
        self.tags = blocks.tags
        self._walk(blocks, values)

    def _walk(self, blocks: Blocks, values: NameValues) -> None:
        """What comes down from above, parents before children."""
        count, all_good = len(self.tags), max(1.0, self.good[0])
        depth, hidden, paths, groups, context = [0] * count, [0.0] * count, [0] * count, [0] * count, [0] * count
        best, worst, own, above, small, comment = ([0.0] * count for _ in range(6))
        share = (self.good / all_good).tolist()
        known: dict[tuple, int] = {}
        kin: dict[tuple, int] = {}
        contexts: dict[tuple[int, ...], int] = {(0,) * len(ABOVE): 0}
        rows = [(0,) * len(ABOVE)]
        for number, parent in enumerate(blocks.parents):
            if parent < 0:
                continue
            tag, name = self.tags[number], blocks.names[number]
            value, says_comment = values[name]
            depth[number] = depth[parent] + 1
            hidden[number] = 1.0 if blocks.hidden[number] and share[number] < 0.5 else hidden[parent]
            comment[number] = 1.0 if says_comment else comment[parent]
            best[number] = value if value > best[parent] else best[parent]
            worst[number] = value if value < worst[parent] else worst[parent]
            own[number], above[number] = value, own[parent]
            small[number] = 0.0 if share[number] >= 0.5 else value if value < small[parent] else small[parent]
            place, context[number] = _ABOVE.get(tag), context[parent]
            if place is not None:
                row = list(rows[context[parent]])
                row[place] = min(3, row[place] + 1)
                context[number] = contexts.setdefault(tuple(row), len(rows))
                if context[number] == len(rows):
                    rows.append(tuple(row))
            path = (paths[parent], tag, name.partition(" ")[0])
            paths[number] = known.setdefault(path, len(known) + 1)
            groups[number] = kin.setdefault((parent, *path), len(kin))
        self.inside, self.names = (
            np.array(rows, dtype=float)[context].T,
            np.array([best, worst, own, above, small, comment]),
        )
        self.depth, self.hidden = np.array(depth, dtype=float), np.array(hidden)
        self.paths, group = np.array(paths), np.array(groups)
        self.alike = np.log1p(np.bincount(group, weights=self.size > 0)[group])
        self.alike[0] = 0
        most = self.alike.copy()
        most_list, alike = most.tolist(), self.alike.tolist()
        for number, parent in enumerate(blocks.parents):
            if parent >= 0:
                most_list[number] = max(alike[number], most_list[parent])
        self.most_alike = np.array(most_list)

    def above(self, elements: np.ndarray, levels: int) -> np.ndarray:
        """The elements so many levels above others."""
        for _ in range(levels):
            elements = np.maximum(self.parent[elements], 0)
        return elements

    def levels(self, holder: np.ndarray, all_good: float) -> list[np.ndarray]:
        columns = []
        for level in LEVELS:
            at = self.above(holder, level)
            size = np.maximum(1.0, self.size[at])
            columns += [self.good[at] / all_good, self.linked[at] / size, np.log1p(self.blocks[at]) / 5]
            columns += [np.log1p(self.size[at]) / 5, self.good_blocks[at] / np.maximum(1, self.blocks[at])]
        return columns

    def home(self, holder: np.ndarray, all_good: float) -> list[np.ndarray]:
        """How far a block lies from the smallest element that holds most of the page's good text."""
        share = self.good / all_good
        chain = np.flatnonzero(share > 0.6)
        home = int(chain[-1]) if len(chain) else 0
        at, levels = holder.copy(), np.zeros(len(holder))
        for _ in range(12):  # up to the first element that holds the home as well
            outside = ~((self.first[at] <= self.first[home]) & (self.end[at] >= self.end[home]))
            outside &= ~((self.first[home] <= self.first[at]) & (self.end[at] <= self.end[home]))
            if not outside.any():
                break
            levels[outside] += 1
            at[outside] = np.maximum(self.parent[at[outside]], 0)
        place = np.arange(len(holder))
        inside = (place >= self.first[home]) & (place < self.end[home])
        return [levels / 5, inside, place < self.first[home], np.full(len(holder), share[home])]

    def twins(self, holder: np.ndarray) -> list[np.ndarray]:
        return [self.alike[holder] / 3, self.alike[self.above(holder, 1)] / 3, self.most_alike[holder] / 3]
