"""Formulas in web pages as TeX: from annotations, alternative texts, or the MathML itself."""

from __future__ import annotations

import re

from selectolax.lexbor import LexborNode

_TEX_SIGNS = re.compile(r"\\[a-zA-Z]{2,}|[_^]\{|\\[()\[\]]|^\$.*\$$")
_TEX_CLASSES = re.compile(r"\b(?:math|tex|latex|mwe-math\S*)\b", re.I)
_TEX_SOURCES = re.compile(r"latex|codecogs|/math/|mathtex|mimetex", re.I)


def is_tex(alt: str, class_name: str, source: str) -> bool:
    """Whether the alternative text of a picture is a formula."""
    if _TEX_CLASSES.search(class_name) or _TEX_SOURCES.search(source):
        return True
    return bool(_TEX_SIGNS.search(alt))


def math_to_tex(node: LexborNode) -> str:
    """The TeX of a `math` element: its annotation, its alternative text, or a translation of its MathML."""
    for annotation in node.css("annotation"):
        if "tex" in (annotation.attributes.get("encoding") or "").lower():
            return (annotation.text() or "").strip()
    alt = (node.attributes.get("alttext") or "").strip()
    return alt or " ".join((node.text() or "").split())
