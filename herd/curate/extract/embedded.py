"""Text that a page holds for scripts, or for readers without them: `noscript`, JSON-LD, an application's state."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

from selectolax.lexbor import LexborHTMLParser

_STATE = re.compile(r"(?:^|[;\s])(?:window\.|self\.|var |let |const )?[\w.$\[\]\"']{2,60}\s*=\s*(?=[{\[])")
_SENTENCE = re.compile(r"[.!?…。！？।؟](?:\s|<|\"|”|$|[\u2e80-\u9fff])")
_MARKUP = re.compile(r"<(?:p|div|br|h[1-6]|ul|ol|pre|blockquote)\b", re.I)
_LEAST_CHARACTERS = 40  # of a string that is prose
_LEAST_TEXT = 150
_MAX_SCRIPT = 5_000_000
_MAX_VALUES = 300_000
_BODIES = ("articleBody", "reviewBody", "text", "description")


def embedded_page(tree: LexborHTMLParser, shown: int) -> str | None:
    """The fullest text that the page holds without showing it, as HTML; None where it is not twice what is `shown`."""
    found = [*_of_noscript(tree), *_of_linked_data(tree), *_of_states(tree)]
    best = max(found, key=lambda page: _characters(page), default="")
    return best if _characters(best) >= max(_LEAST_TEXT, 2 * shown) else None


def _characters(page: str) -> int:
    text = re.sub(r"<[^<>]*>", "", page)
    return len(text) + 2 * len(re.findall(r"[\u2e80-\u9fff\uac00-\ud7af]", text))


def _of_noscript(tree: LexborHTMLParser) -> list[str]:
    return [f"<body>{node.inner_html}</body>" for node in tree.css("body noscript") if node.inner_html]


def _of_linked_data(tree: LexborHTMLParser) -> list[str]:
    found = []
    for node in tree.css("script[type='application/ld+json']"):
        data = _json(node.text() or "")
        bodies: dict[str, list[str]] = {name: [] for name in _BODIES}
        for path, value in _strings(data):
            if path[-1:] and path[-1] in bodies and (path[-1] != "text" or "Answer" not in path):
                bodies[path[-1]].append(value)
        found += [_page(values) for name, values in bodies.items() if name == "articleBody" or name == "text"]
    return found


def _of_states(tree: LexborHTMLParser) -> list[str]:
    """Of each state the strings of that place, by its keys, which holds the most prose."""
    found = []
    for node in tree.css("script"):
        kind = (node.attributes.get("type") or "").lower()
        source = node.text() or ""
        if "ld+json" in kind or len(source) < _LEAST_TEXT or len(source) > _MAX_SCRIPT:
            continue
        if "json" in kind:
            data = _json(source)
        else:
            begin = _STATE.search(source[:2000])
            data = _json(source[begin.end() :]) if begin else None
        places: dict[tuple[str, ...], list[str]] = {}
        for path, value in _strings(data):
            if len(value) >= _LEAST_CHARACTERS and _SENTENCE.search(value):
                places.setdefault(path, []).append(value)
        if places:
            found.append(_page(max(places.values(), key=lambda values: sum(map(len, values)))))
    return found


def _json(source: str) -> Any:
    """The first value of a text that is JSON, None where it is none."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(source.strip().removeprefix("<!--").lstrip())[0]
    except (ValueError, RecursionError):
        return None


def _strings(data: Any) -> list[tuple[tuple[str, ...], str]]:
    """All strings with the keys that lead to them, in their order; places in lists are no keys."""
    found: list[tuple[tuple[str, ...], str]] = []
    stack: list[tuple[tuple[str, ...], Any]] = [((), data)]
    while stack and len(found) < _MAX_VALUES:
        path, value = stack.pop()
        if isinstance(value, str):
            found.append((path, value))
        elif isinstance(value, dict):
            stack.extend(((*path, str(key)), inner) for key, inner in reversed(value.items()))
        elif isinstance(value, list):
            stack.extend((path, inner) for inner in reversed(value))
    return found


def _page(values: list[str]) -> str:
    pieces = []
    for value in dict.fromkeys(values):
        if _MARKUP.search(value):
            pieces.append(value)
        else:
            pieces += [f"<p>{escape(line)}</p>" for line in value.split("\n") if line.strip()]
    return f"<body>{''.join(pieces)}</body>"
