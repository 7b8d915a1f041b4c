"""Which blocks of a page are its own content: what the scorer says of each, and a few rules whatever it says.

A heading stays where something stays under it, code and tables stay with the text around them, and a page of few words
stays whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from selectolax.lexbor import LexborNode

from herd.curate.extract.blocks import FORMULA, Blocks, read_blocks
from herd.curate.extract.features import Features
from herd.curate.extract.scorer import Scorer

_FEW_CHARACTERS = 275  # a page with less text has no furniture to speak of; content with less is looked for again
_SECOND_LOOK = -1.5  # log odds that are enough then
_NEAR_BEST = 1.5  # log odds below the best block that are enough where none is sure
_HEADING, _TABLE, _CODE, _BETWEEN = -3.0, -2.5, -6.0, -2.0  # log odds that are enough before and between what stays
_LONE_HEADING = 1.5  # and for a heading under which nothing stays
_MAX_LINKS = 0.8
_WANTED_COMMENT = 6.0  # log odds that a comment gets for being wanted
_COMMENT_CHARACTERS = 25  # less is a name or a button


class Content(NamedTuple):
    """What stays of a page: the element around it, and of what lies in it the nodes that go, by `mem_id`."""

    root: LexborNode
    dropped: set[int]


def main_content(body: LexborNode, scorer: Scorer, comments: str = "drop") -> Content:
    """The page's own content; `comments` says whether what readers wrote under an article stays (keep, drop)."""
    blocks, unseen = read_blocks(body)
    if not blocks.texts:
        return Content(body, set())
    keep, _ = judge(blocks, scorer, comments)
    dropped = {node.mem_id for node in unseen}
    kept = np.flatnonzero(keep)
    first, last = int(kept[0]), int(kept[-1])
    root = 0
    for number in range(len(blocks.tags)):  # the smallest element that holds the first and the last
        if blocks.firsts[number] <= first and blocks.ends[number] > last:
            root = number
    _drop(blocks, keep, dropped)
    return Content(blocks.roots[root], dropped)


def judge(blocks: Blocks, scorer: Scorer, comments: str = "drop") -> tuple[np.ndarray, np.ndarray]:
    """Which blocks stay, (blocks,) bool, and their scores (log odds); at least one stays."""
    seen = Features(blocks, scorer.values)
    scores = scorer(seen)
    if comments == "keep":
        nameless = scorer(Features(blocks, scorer.values_without_comments)) + _WANTED_COMMENT
        scores = np.where(seen.in_comments & (seen.size >= _COMMENT_CHARACTERS), np.maximum(scores, nameless), scores)
    hidden = seen.hidden
    whole = float(seen.size.sum())
    if whole < _FEW_CHARACTERS:
        links = np.array(blocks.links) / np.maximum(1, [len(text) for text in blocks.texts])
        keep = (scores > 0) | ((links < _MAX_LINKS) & ~hidden)
    else:
        keep = scores > 0
        if seen.size[keep].sum() < min(_FEW_CHARACTERS, 0.5 * whole):
            keep = scores > (_SECOND_LOOK if keep.any() else scores.max() - _NEAR_BEST)
    if not keep.any():
        keep = scores >= scores.max()
    _mend(blocks, keep, scores)
    return keep, scores


def _mend(blocks: Blocks, keep: np.ndarray, scores: np.ndarray) -> None:
    """Headings stay with what is under them, exact things with what is around them."""
    kept = np.flatnonzero(keep)
    first, last = int(kept[0]), int(kept[-1])
    above = np.array(blocks.parents)[np.array(blocks.holders)]
    beside = np.zeros(len(keep), dtype=bool)  # between two that stay, under the same element, and no link
    beside[1:-1] = keep[:-2] & keep[2:] & (above[:-2] == above[1:-1]) & (above[2:] == above[1:-1])
    beside &= np.array(blocks.links) <= _MAX_LINKS * np.array([len(text) for text in blocks.texts])
    least = np.where(beside, _BETWEEN, np.inf)
    exact = {"pre": _CODE, "math": _CODE, "table": _TABLE}
    kinds = [
        "math" if not text.replace(FORMULA, "").strip() else kind
        for text, kind in zip(blocks.texts, blocks.kinds, strict=True)
    ]
    least = np.minimum(least, [exact.get(kind, np.inf) for kind in kinds])
    open_levels = [False] * 7  # by level of heading: whether something stays before the next heading of that level
    for number in range(len(keep) - 1, -1, -1):
        kind = blocks.kinds[number]
        if len(kind) == 2 and kind[0] == "h" and kind[1] in "123456":
            level = int(kind[1])
            if open_levels[level]:
                keep[number] |= scores[number] > _HEADING and number >= first
            else:
                keep[number] &= scores[number] > _LONE_HEADING
            if keep[number]:
                open_levels = [True] * level + [False] * (7 - level)
        else:
            if first < number < last and scores[number] > least[number]:
                keep[number] = True
            if keep[number]:
                open_levels = [True] * 7
    if not keep.any():  # nothing but headings
        keep[kept] = True


def _drop(blocks: Blocks, keep: np.ndarray, dropped: set[int]) -> None:
    """Note the nodes that go: whole elements where nothing in them stays, else single texts."""
    sums = np.concatenate([[0], np.cumsum(keep)])
    inside = (sums[np.array(blocks.ends)] - sums[np.array(blocks.firsts)]).tolist()
    for number, parent in enumerate(blocks.parents):
        if not inside[number] and parent >= 0 and inside[parent]:
            dropped.add(blocks.roots[number].mem_id)
    for number in np.flatnonzero(~keep).tolist():
        if inside[blocks.holders[number]]:
            dropped.update(node.mem_id for node in blocks.nodes[number])
