"""Whether two mathematical answers are the same: as texts once their LaTeX is plain, or as values.

Nothing of an answer is run: it is read as arithmetic and computed at a few values of its letters.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping

_LEFT_OUT = re.compile(
    r"\\(?:left|right|!|,|;|:|quad|qquad|displaystyle|big|Big|cdots?$)|\\text\{[^{}]*\}|\^\\circ|\^\{\\circ\}|\\%|%|\\\$|\$"
)
_WORDS = {r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cdot": "*", r"\times": "*", r"\div": "/", r"\pi": "pi", "−": "-"}
_FRACTION = re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac(\d)(\d)")
_ROOT = re.compile(r"\\sqrt\{([^{}]*)\}")
_OPERATORS: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_POINTS = (0.7390851, 1.6180340, 2.2360680)


def same_value(answer: str, reference: str) -> bool:
    """Whether an answer is the reference: `\\frac{1}{2}`, `1/2` and `0.5` are one; tuples go entry by entry."""
    ours, theirs = final_answer(answer), final_answer(reference)
    if plain(ours) == plain(theirs):
        return bool(plain(theirs))
    first, second = _parts(plain(ours)), _parts(plain(theirs))
    if len(first) != len(second) or len(first) == 1:
        return _equal(plain(ours), plain(theirs))
    return all(one == other or _equal(one, other) for one, other in zip(first, second, strict=True))


def final_answer(text: str) -> str:
    """What stands in the last `\\boxed{}`, else after the last `answer is`, else the text."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth = 0
        for place in range(start + 6, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[start + 7 : place]
    said = re.findall(r"answer is:?\s*([^\n]+)", text, re.IGNORECASE)
    return said[-1].split(". ")[0].strip().rstrip(".") if said else text.strip()


def plain(text: str) -> str:
    """LaTeX as arithmetic: fractions as divisions, spaces and units gone."""
    text = text.split("=")[-1] if text.count("=") == 1 and len(text.split("=")[0].strip()) <= 2 else text
    text = _LEFT_OUT.sub("", text)
    for word, meaning in _WORDS.items():
        text = text.replace(word, meaning)
    text = _SHORT_FRACTION.sub(r"((\1)/(\2))", text)
    for pattern, form in (
        (_ROOT, r"sqrt(\1)"),
        (_FRACTION, r"((\1)/(\2))"),
        (_ROOT, r"sqrt(\1)"),
        (_FRACTION, r"((\1)/(\2))"),
    ):
        text = pattern.sub(form, text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"\s+", "", text).rstrip(".").replace("{", "(").replace("}", ")")


def _parts(text: str) -> list[str]:
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]", "(]", "[)") else text
    depth, parts = 0, [""]
    for sign in inner:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    if len(parts) > 1 and (text[:1] in "[(" or text[-1:] in "])"):
        parts.append(text[:1] + text[-1:])  # open and closed intervals differ
    return parts


def _equal(first: str, second: str) -> bool:
    for point in _POINTS:
        ours, theirs = _computed(first, point), _computed(second, point)
        if ours is None or theirs is None or not math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-9):
            return False
    return True


def _computed(text: str, point: float) -> float | None:
    text = re.sub(r"(?<=[\d)])(?=[a-zA-Z(])|(?<=\))(?=\d)", "*", text.replace("^", "**"))
    if len(text) > 200:
        return None
    try:
        found = _value(ast.parse(text, mode="eval").body, point)
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, int | float) and math.isfinite(found) else None


def _value(node: ast.AST, point: float) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name):
        return math.pi if node.id == "pi" else point + sum(map(ord, node.id)) / 97  # another value for each letter
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, point)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, point), _value(node.right, point))
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "sqrt"
        and len(node.args) == 1
    ):
        return math.sqrt(_value(node.args[0], point))
    raise ValueError(f"{type(node).__name__} is no arithmetic")
