"""Threads: on a page of a forum, the blocks that are posts, found by a small net learned from labelled pages.

A thread has no single home of its text: posts of a line stand between names, dates and signatures. Whether a page is a
thread is decided by the words of its class names and by the marks of forum software; other pages never come here. Both
tables were learned by `benchmarks/extraction_posts.py` and lie in `posts.npz` (weights, no text).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from selectolax.lexbor import LexborNode

from herd.curate.extract.blocks import FORMULA, Blocks, read_blocks
from herd.curate.extract.features import FIGURES, figures, lengths, paths_of
from herd.errors import DataError

TABLE = Path(__file__).with_name("posts.npz")
GATE_WORDS = (
    *("post", "posts", "reply", "replies", "comments", "answer", "answers", "question", "thread", "threads", "topic"),
    *("forum", "author", "user", "avatar", "floor", "postbody", "postcontent", "vote", "article", "entry", "story"),
    *("likes", "reputation", "poster", "posted", "discussion", "board"),
)
"""The words of class names and ids whose counts tell a thread from other pages."""
_GATE = 0.4  # log odds of being a thread above which the posts are looked for
_GATE_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(GATE_WORDS)})(?![a-z])")
_SIGNS = (
    ("discussionforumposting", "qapage", "schema.org/answer", "schema.org/comment"),
    ("discuz", "phpbb", "vbulletin", "xenforo", "discourse", "flarum", "nodebb", "mybb", "invision", "bbpress"),
    (
        "viewtopic",
        "showthread",
        "viewthread",
        "showtopic",
        "forumdisplay",
        "/thread",
        "/topic/",
        "/t/",
        "/forum",
        "/bbs/",
    ),
    (">reply<", ">quote<", ">回复<", ">引用<", ">举报<", ">楼主<", ">antworten<", ">zitieren<", ">répondre<"),
)
"""Besides names: the schemas, software, addresses and buttons of boards, in a page's source in lower case."""
_MOST = 8  # of one word or sign; more say no more
_SEEN = 40_000  # characters from each end of the source in which signs are looked for
_NAMES_AGAINST = -0.5  # log odds by the names alone that rule a thread out
_LEAST_CHARACTERS, _LEAST_SHARE = 30, 0.1  # with less in its posts, or of its text, a page is read like any other
_HEADING, _TABLE, _CODE, _BETWEEN = -3.0, -2.5, -6.0, -2.0  # log odds that are enough before and between kept blocks
_LONE_HEADING = 1.5  # log odds that keep a heading with nothing under it
_MAX_LINKS = 0.8
_SHORT_POST = -4.0  # log odds that are enough on a path of posts
_MOSTLY, _LEAST_POSTS = 0.7, 2  # share of its text that stays, and blocks, that make a path one of posts


class Posts(NamedTuple):
    """What stays of a thread: the element around it, and the nodes in it that go, by `mem_id`."""

    root: LexborNode
    dropped: set[int]


class ExplainedBlock(NamedTuple):
    """A block of a thread: its text, its score (log odds of being a post), whether it stays, and why."""

    text: str
    score: float
    kept: bool
    reasons: list[tuple[str, float]]


class Table:
    """The learned weights: of the gate, of the words in names, and of a net with one hidden layer.

    Raises:
        DataError: it was trained on other figures than `FIGURES`.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.gate, self.gate_bias = arrays["gate"].astype(float), float(arrays["gate_bias"])
        self.words = dict(zip(arrays["words"].tolist(), arrays["values"].astype(float).tolist(), strict=True))
        names = ("mean", "scale", "inner", "inner_bias", "outer")
        self.mean, self.scale, self.inner, self.inner_bias, self.outer = (arrays[n].astype(np.float32) for n in names)
        self.outer_bias = float(arrays["outer_bias"])
        if len(self.mean) != len(FIGURES):
            raise DataError(f"a table for {len(self.mean)} figures of a block, not {len(FIGURES)}: train it again")

    def scores(self, blocks: Blocks) -> np.ndarray:
        """The log odds of each block of being a post's text, (blocks,)."""
        return np.maximum(self._shown(blocks) @ self.inner + self.inner_bias, 0) @ self.outer + self.outer_bias

    def reasons(self, blocks: Blocks, count: int = 3) -> list[list[tuple[str, float]]]:
        """For each block the figures that move its score most, and by how much (log odds, to the first order)."""
        shown = self._shown(blocks)
        shares = shown * (((shown @ self.inner + self.inner_bias > 0) * self.outer) @ self.inner.T)
        order = np.argsort(-np.abs(shares), axis=1)[:, :count]
        return [[(FIGURES[i], float(shares[row, i])) for i in best] for row, best in enumerate(order.tolist())]

    def _shown(self, blocks: Blocks) -> np.ndarray:
        return np.clip((figures(blocks, self.words) - self.mean) * self.scale, -5, 5)

    def is_thread(self, names: Iterable[str], source: str) -> bool:
        """Whether a page is taken for a thread, by the class names and ids of its elements and by its HTML."""
        counts = _name_counts(names)
        by_names = float(counts @ self.gate[: len(counts)])
        if not counts.any() or by_names <= _NAMES_AGAINST:  # most pages: the signs, which cost more, are not looked for
            return False
        return self.gate_bias + by_names + float(_sign_counts(source) @ self.gate[len(counts) :]) > _GATE


@lru_cache(maxsize=1)
def load_table() -> Table:
    """The table that ships."""
    with np.load(TABLE) as arrays:
        return Table(dict(arrays))


def gate_counts(names: Iterable[str], source: str) -> np.ndarray:
    """How often a page names elements with each of `GATE_WORDS`, and shows each kind of sign, as log(1 + n)."""
    return np.concatenate([_name_counts(names), _sign_counts(source)])


def _name_counts(names: Iterable[str]) -> np.ndarray:
    counts = Counter(_GATE_WORD.findall(" ".join(names).lower()))
    return np.log1p(np.minimum([counts[word] for word in GATE_WORDS], _MOST))


def _sign_counts(source: str) -> np.ndarray:
    lower = (source if len(source) <= 2 * _SEEN else source[:_SEEN] + source[-_SEEN:]).lower()
    return np.log1p(np.minimum([sum(map(lower.count, signs)) for signs in _SIGNS], _MOST))


def posts_of(body: LexborNode, table: Table) -> Posts | None:
    """The posts of a thread, whose tree is not changed; None where next to nothing would stay."""
    blocks, unseen = read_blocks(body)
    if not blocks.texts:
        return None
    keep = kept(blocks, table.scores(blocks))
    size = lengths(blocks.texts)
    if size[keep].sum() < max(_LEAST_CHARACTERS, _LEAST_SHARE * size.sum()):
        return None
    return Posts(_smallest_around(blocks, keep), _dropped(blocks, keep) | {node.mem_id for node in unseen})


def explain(body: LexborNode, table: Table) -> list[ExplainedBlock]:
    """The blocks of a thread in their order, with their scores and what moved them most."""
    blocks, _ = read_blocks(body)
    if not blocks.texts:
        return []
    scores = table.scores(blocks)
    rows = zip(blocks.texts, scores.tolist(), kept(blocks, scores).tolist(), table.reasons(blocks), strict=True)
    return [ExplainedBlock(" ".join(text.split()), *row) for text, *row in rows]


def kept(blocks: Blocks, scores: np.ndarray) -> np.ndarray:
    """Which blocks stay, (blocks,) bool: those above 0, headings over them, and code, tables and lines between them."""
    keep = scores > 0
    if not keep.any():
        return keep
    keep |= _short_posts(blocks, keep) & (scores > _SHORT_POST)
    first, last = np.flatnonzero(keep)[[0, -1]].tolist()
    least = _least_scores(blocks, keep)
    open_levels = [False] * 7  # by level of heading: whether a kept block follows before the next one of that level
    for number in range(len(keep) - 1, -1, -1):
        kind = blocks.kinds[number]
        if len(kind) == 2 and kind[0] == "h" and kind[1] in "123456":
            level = int(kind[1])
            if open_levels[level]:
                keep[number] |= number >= first and scores[number] > _HEADING
            else:
                keep[number] &= scores[number] > _LONE_HEADING
            if keep[number]:
                open_levels = [True] * level + [False] * (7 - level)
            continue
        keep[number] |= first < number < last and scores[number] > least[number]
        if keep[number]:
            open_levels = [True] * 7
    return keep


def _short_posts(blocks: Blocks, keep: np.ndarray) -> np.ndarray:
    """Blocks on a path on which most of the text stays: a post of three words lies where the long ones do."""
    path, size = paths_of(blocks), lengths(blocks.texts) * (np.array(blocks.links) == 0)
    stays, whole = (np.bincount(path, weights=size * one) for one in (keep, np.ones_like(keep)))
    is_of_posts = (stays > _MOSTLY * whole) & (np.bincount(path) >= _LEAST_POSTS)
    return is_of_posts[path] & (size > 0)


def _least_scores(blocks: Blocks, keep: np.ndarray) -> np.ndarray:
    """The score that is enough for a block between the first and the last kept one; infinite for most."""
    above = np.array(blocks.parents)[np.array(blocks.holders)]
    between = np.zeros(len(keep), dtype=bool)  # two kept blocks under the same element enclose it, and it is no link
    between[1:-1] = keep[:-2] & keep[2:] & (above[:-2] == above[1:-1]) & (above[2:] == above[1:-1])
    between &= np.array(blocks.links) <= _MAX_LINKS * np.array([len(text) for text in blocks.texts])
    exact = {"pre": _CODE, "table": _TABLE}
    formula = [not text.replace(FORMULA, "").strip() for text in blocks.texts]
    kinds = [_CODE if is_one else exact.get(kind, np.inf) for kind, is_one in zip(blocks.kinds, formula, strict=True)]
    return np.minimum(np.where(between, _BETWEEN, np.inf), kinds)


def _smallest_around(blocks: Blocks, keep: np.ndarray) -> LexborNode:
    """The smallest element that holds the first and the last kept block."""
    first, last = np.flatnonzero(keep)[[0, -1]].tolist()
    return [
        node
        for node, begin, end in zip(blocks.roots, blocks.firsts, blocks.ends, strict=True)
        if begin <= first and last < end
    ][-1]


def _dropped(blocks: Blocks, keep: np.ndarray) -> set[int]:
    """The nodes that go: whole elements in which nothing stays, else single texts."""
    sums = np.concatenate([[0], np.cumsum(keep)])
    inside = (sums[np.array(blocks.ends)] - sums[np.array(blocks.firsts)]).tolist()
    elements = {blocks.roots[number].mem_id for number in range(1, len(inside)) if not inside[number]}
    return elements | {node.mem_id for number in np.flatnonzero(~keep).tolist() for node in blocks.nodes[number]}
