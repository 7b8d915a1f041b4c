"""Labelled blocks for the scorer of posts: of pages with an expected text, and of threads written here."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import Any

import numpy as np
from selectolax.lexbor import LexborHTMLParser

from herd.curate.extract.blocks import Blocks, read_blocks
from herd.curate.extract.content import prepare

UNKNOWN = -1
_TOKEN = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+")
_GRAM = 4
_SHORT = 6  # tokens; shorter blocks are looked for between their labelled neighbours


def label(row: dict[str, Any]) -> tuple[Blocks, np.ndarray]:
    """The blocks of a page and what they are: 1 content, 0 furniture, -1 not known.

    A row has `html`, and `text` (what is wanted), `expected_html`, `groundtruth_markdown`, or `with` and `without`
    (segments); or its elements are marked with `data-keep`.
    """
    tree = LexborHTMLParser(row["html"])
    prepare(tree)
    blocks, _ = read_blocks(tree.body)
    if "with" in row:
        return blocks, _by_segments(blocks, row["with"], row["without"])
    if "data-keep" in row["html"]:
        return blocks, _by_marks(blocks, "[data-keep]")
    if "source_rst" in row:
        return blocks, _by_marks(blocks, "[role=main]")
    if "expected_html" in row:
        text = LexborHTMLParser(row["expected_html"]).body.text(separator=" ")
    else:
        text = row.get("text") or re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", row["groundtruth_markdown"])
    return blocks, _by_text(blocks, text)


def _by_marks(blocks: Blocks, selector: str) -> np.ndarray:
    kept = np.zeros(len(blocks.tags), dtype=bool)
    marked = {node.mem_id for node in blocks.roots[0].css(selector)}
    for number, parent in enumerate(blocks.parents):
        kept[number] = ((parent >= 0 and kept[parent]) or blocks.roots[number].mem_id in marked) and (
            "data-drop" not in blocks.roots[number].attributes
        )
    return kept[np.array(blocks.holders, dtype=int)].astype(np.int8)


def _squeezed(text: str) -> str:
    return "".join(_TOKEN.findall(text.lower()))


def _by_segments(blocks: Blocks, wanted: list[str], unwanted: list[str]) -> np.ndarray:
    labels = np.full(len(blocks.texts), UNKNOWN, dtype=np.int8)
    texts = [_squeezed(text) for text in blocks.texts]
    for segments, value in ((wanted, 1), (unwanted, 0)):
        for segment in filter(None, map(_squeezed, segments)):
            for number, text in enumerate(texts):
                if segment in text or (len(text) > 30 and text in segment):
                    labels[number] = value
    return labels


def _by_text(blocks: Blocks, text: str) -> np.ndarray:
    wanted = [token.lower() for token in _TOKEN.findall(text)]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for start in range(len(wanted) - _GRAM + 1):
        places[tuple(wanted[start : start + _GRAM])].append(start)
    labels = np.full(len(blocks.texts), UNKNOWN, dtype=np.int8)
    tokens = [[token.lower() for token in _TOKEN.findall(one)] for one in blocks.texts]
    spans: list[tuple[int, int] | None] = [None] * len(tokens)
    last = 0
    for number, own in enumerate(tokens):
        if len(own) < _SHORT:
            continue
        found = [places.get(tuple(own[i : i + _GRAM])) for i in range(len(own) - _GRAM + 1)]
        covered = np.zeros(len(own), dtype=bool)
        for i, hits in enumerate(found):
            if hits:
                covered[i : i + _GRAM] = True
        labels[number] = covered.mean() >= 0.5
        if labels[number]:
            hits = next(hits for hits in found if hits)
            start = min(hits, key=lambda place: (place < last - 3, abs(place - last)))
            last = start + len(own)
            spans[number] = (start, last)
    _label_short(labels, tokens, spans, wanted)
    return labels


def _label_short(
    labels: np.ndarray, tokens: list[list[str]], spans: list[tuple[int, int] | None], wanted: list[str]
) -> None:
    """Short blocks are content where the text has them between their neighbours."""
    following: list[int] = [len(wanted)] * len(tokens)
    start = len(wanted)
    for number in range(len(tokens) - 1, -1, -1):
        following[number] = start
        if spans[number] is not None:
            start = spans[number][0]
    end = 0
    for number, own in enumerate(tokens):
        if spans[number] is not None:
            end = spans[number][1]
        elif len(own) < _SHORT:
            window = wanted[max(0, end - 2) : max(following[number], end) + 2]
            near = window if len(window) < 400 else window[:200] + window[-200:]
            hit = own and next((i for i in range(len(near)) if near[i : i + len(own)] == own), None)
            labels[number] = hit not in (None, []) if own else UNKNOWN
            if labels[number] == 1 and hit < 200:
                end = max(end, max(0, end - 2) + hit + len(own))


# ---- pages written here ----------------------------------------------------------------------------------------------

_LATIN = [
    "lamp",
    "rock",
    "light",
    "keeper",
    "harbour",
    "wall",
    "lens",
    "oil",
    "wick",
    "wind",
    "boat",
    "net",
    "rope",
    "sail",
    "tide",
    "shore",
    "cliff",
    "stone",
    "tower",
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "was",
    "is",
    "for",
    "it",
    "with",
    "as",
    "on",
    "that",
    "by",
    "this",
    "be",
    "are",
    "or",
    "from",
    "at",
    "which",
    "not",
    "have",
    "had",
    "but",
    "they",
]
_WIDE = "码头灯塔昨晚重新亮起这是守塔人春天离开以来的第一次渔民们整个夏天都在请求议会开了三次会才拨款买了新"


ELSEWHERE = ("Read more", "Related", "See also", "More", "Read next", "Lesen Sie auch", "Mehr zum Thema", "Lire aussi")
ELSEWHERE += ("Leia também", "Lea también", "Czytaj także", "Leggi anche", "Читайте также", "相关阅读")


class Writer:
    """Draws pages: the words mean nothing, lengths and markup are those of the kind."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        self.wide = self.draw.random() < 0.25
        self.bare = self.draw.random() < 0.5  # without a site around it

    def words(self, low: int, high: int, stop: str = "") -> str:
        count = self.draw.randint(low, high)
        if self.wide:
            return "".join(self.draw.choice(_WIDE) for _ in range(count * 2)) + {"": "", ".": "。", "?": "？"}[stop]
        text = " ".join(self.draw.choice(_LATIN) for _ in range(count))
        return text[0].upper() + text[1:] + stop

    def said(self, low: int = 1, high: int = 4) -> str:
        return " ".join(self.words(6, 24, ".") for _ in range(self.draw.randint(low, high)))

    def some(self, low: int, high: int) -> range:
        return range(self.draw.randint(low, high))

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def link(self, low: int = 1, high: int = 4) -> str:
        return f"<a href='/{self.draw.randint(1, 999)}'>{self.words(low, high)}</a>"

    def menu(self, low: int = 3, high: int = 9) -> str:
        name = self.draw.choice(["menu", "nav", "links", "x", "navbar", ""])
        return f"<ul class='{name}'>" + "".join(f"<li>{self.link(1, 2)}</li>" for _ in self.some(low, high)) + "</ul>"

    def prose(self, low: int, high: int) -> str:
        """Paragraphs, with the short and odd things that articles have between them."""
        pieces = []
        for _ in self.some(low, high):
            pieces.append(f"<p>{self.said()}</p>")
            kind = self.draw.random()
            if kind < 0.12:
                pieces.append(f"<h2>{self.words(1, 5)}</h2><p>{self.said()}</p>")
            elif kind < 0.18:
                pieces.append("<ul>" + "".join(f"<li>{self.words(2, 9)}</li>" for _ in self.some(2, 5)) + "</ul>")
            elif kind < 0.23:
                code = f"<pre><code>{self.words(1, 3)}(x)\n    {self.words(1, 2)}</code></pre>"
                name = self.draw.choice(["highlight", "syntaxhighlighter", "code", ""])
                pieces.append(f"<div class='{name}'>{code}</div>" if self.chance(0.6) else code)
            elif kind < 0.28:
                pieces.append(f"<blockquote><p>{self.said(1, 2)}</p></blockquote>")
            elif kind < 0.34:
                pieces.append(f"<p>{self.words(2, 5)}</p>" * 2)
            elif kind < 0.4:
                pieces.append(f"<figure><img src=a.png><figcaption>{self.words(5, 12, '.')}</figcaption></figure>")
            elif kind < 0.46:
                row = f"<tr><td>{self.words(1, 2)}</td><td>{self.words(1, 3)}</td></tr>"
                pieces.append(
                    f"<table><tr><th>{self.words(1, 1)}</th><th>{self.words(1, 1)}</th></tr>{row * 3}</table>"
                )
            elif kind < 0.52:
                more = f"<p data-drop><a href='/x'>{self.draw.choice(ELSEWHERE)}: {self.words(3, 8)}</a></p>"
                pieces.append(f"{more}<p>{self.said()}</p>")
            elif kind < 0.55:
                pieces.append(f"<p>{self.link(3, 8)}</p><p>{self.said()}</p>")
            elif kind < 0.6:
                name = self.draw.choice(["paywall", "widget", "teaser", "info", "related-text", "read-more", "promo"])
                pieces.append(f"<div class='{name}'><p>{self.said()}</p></div>")
        return "".join(pieces)

    def page(self, *pieces: str) -> dict[str, str]:
        top = (
            f"<header><div class=logo>{self.link(1, 2)}</div>{self.menu()}</header>"
            if self.chance(0.6) and not self.bare
            else ""
        )
        foot = self.draw.choice(["footer", "div class=footer", "div id=bottom", "div"])
        rights = "Copyright 2024 Rock and Light Publishing, Limited. The name of the lamp and the tower are marks. "
        end = f"<{foot}>{self.menu(2, 6)}<p>{rights * self.draw.randint(1, 4)}</p></{foot.split()[0]}>"
        end = end if self.chance(0.3 if self.bare else 0.7) else ""
        return {"html": f"<html><body>{top}{''.join(pieces)}{end}</body></html>"}

    def thread(self, markup: int) -> dict[str, str]:
        """A thread in one of five forum markups: the posts are kept, who wrote them and when is not."""
        title = f"<h1 data-keep>{self.words(3, 10)}</h1>"
        posts = "".join(self._post(markup, number) for number in range(self.draw.randint(2, 12)))
        trail = f"<div class=breadcrumbs>{self.link()} › {self.link()} › {self.link()}</div>"
        tail = f"<div class=quick-reply><form><label>{self.words(1, 3)}</label><p>{self.words(4, 9)}</p></form></div>"
        tail += f"<div class=similar-threads><h3>{self.words(2, 3)}</h3>{self.menu(3, 8)}</div>"
        holders = ["<div id=page-body>{}</div>", "<div id=posts>{}</div>", "<div class=topic-posts>{}</div>"]
        holders += ["<ol id=messageList class=messageList>{}</ol>", "<div id=mainbar>{}</div>"]
        return self.page(trail, title, holders[markup].format(posts), tail if self.chance(0.8) else "")

    def _post(self, markup: int, number: int) -> str:
        name = self.link(1, 2)
        date = f"{self.draw.randint(1, 28)}.{self.draw.randint(1, 12)}.2019, {self.draw.randint(10, 23)}:15"
        body = self.prose(1, 3) if self.chance(0.6) else self.said(1, 5).replace(". ", ".<br><br>")
        body = f"<blockquote><div>{self.said(1, 2)}</div></blockquote>{body}" if self.chance(0.25) else body
        rank = (
            f"<div>{self.words(1, 2)}</div><div>Posts: {self.draw.randint(1, 9999)}</div><div>{self.words(1, 2)}</div>"
        )
        said = "<li class=comment><span class=comment-copy>{}</span> – {} {}</li>"
        notes = "".join(said.format(self.said(1, 1), name, date) for _ in self.some(0, 3))
        names = {"n": number, "name": name, "date": date, "body": body, "rank": rank, "sign": self.words(4, 14)}
        names |= {
            "notes": notes,
            "short": self.link(1, 1),
            "re": self.link(3, 6),
            "kind": "answer" if number else "question",
        }
        return POSTS[markup].format(**names)

    def discussion(self) -> dict[str, str]:
        """A first post and replies to it, with no more markup than that."""
        first, reply = self.draw.choice(
            [("first", "reply"), ("question", "answer"), ("op", "response"), ("post", "post")]
        )
        replies = "".join(
            f"<div class={reply}><p>{self.said()}</p></div>" for _ in self.some(1, self.draw.choice([1, 7]))
        )
        replies = f"<div class={self.draw.choice(['replies', 'answers', 'responses'])}>{replies}</div>"
        opening = f"<div class={first}>{f'<h1>{self.words(3, 9)}</h1>' * self.chance(0.7)}{self.prose(1, 6)}</div>"
        return self.page(f"<div class=thread data-keep>{opening}{replies}</div>")


POSTS = (
    "<div id=p{n} class='post bg1'><div class=inner><dl class=postprofile><dt>{name}</dt><dd>{rank}</dd></dl>"
    "<div class=postbody>"
    "<h3>{re}</h3><p class=author>by {name} » {date}</p><div class=content data-keep>{body}</div>"
    "<div class=signature>{sign}</div>"
    "</div></div></div>",
    "<table class=tborder id=post{n}><tr><td class=thead>{date}</td><td class=thead>#{n}</td></tr><tr>"
    "<td class=alt2>{name}{rank}</td>"
    "<td class=alt1><div id=post_message_{n} data-keep>{body}</div><div>__________<br>{sign}</div></td></tr>"
    "<tr><td class=alt2>{short}</td><td class=alt1>{short}</td></tr></table>",
    "<div class=topic-post><article id=post_{n}><div class=topic-meta-data><span class=names>{name}</span>"
    "<div class=post-date>{date}"
    "</div></div><div class=cooked data-keep>{body}</div>"
    "<section class=post-menu-area>{short}<div>{n} Likes</div></section></article></div>",
    "<li id=post-{n} class=message><div class=messageUserInfo><h3>{name}</h3>{rank}</div><div class=messageInfo>"
    "<article><blockquote "
    "class=messageText data-keep>{body}</blockquote></article><div class=messageMeta>{date} {short}</div>"
    "<div class=likesSummary>"
    "{name} likes this.</div></div></li>",
    "<div class={kind} id={kind}-{n}><div class=votecell><div>{n}</div></div><div class=postcell>"
    "<div class='post-text s-prose' data-keep>"
    "{body}</div><div class=user-info><div>answered {date}</div><div>{name}</div></div><div class=comments>"
    "<ul data-keep>{notes}</ul></div>"
    "</div></div>",
)
"""A post in five markups of forums: phpBB, vBulletin, Discourse, XenForo, questions with answers."""


def written_pages() -> list[dict[str, str]]:
    """Forty threads in five markups of boards, and fifty discussions with hardly any markup."""
    threads = [Writer(seed).thread(seed % len(POSTS)) for seed in range(40)]
    return threads + [Writer(3000 + seed).discussion() for seed in range(50)]
