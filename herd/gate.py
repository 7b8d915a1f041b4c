"""A gate: comparisons of figures in the manifests of finished steps.

    new.accuracy > old.accuracy + 0.01 and min(size.loss) <= ${most}

Words are separated by spaces. A side is one term, or two terms joined by +, - or *; a term is a number, `true`, `false`
or `STEP.FIGURE`. `min`, `max` and `mean` aggregate over the cells of a grid.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from herd.errors import ConfigError, DataError
from herd.log import figure

Figures = Sequence[Mapping[str, Any]]
"""The figures of a step: one manifest, or one for each cell of a grid."""

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_COMBINE: dict[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_OVER: dict[str, Callable[[Iterable[float]], float]] = {"min": min, "max": max, "mean": fmean}
_LINK = re.compile(r"\$\{([^}]*)\}")
_WORDS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class _Figure:
    """A figure of a step; `over` says how the cells of a grid are aggregated."""

    step: str
    figure: str
    over: str

    def value(self, figures: Callable[[str], Figures]) -> float:
        values = []
        for one in figures(self.step):
            value = one.get(self.figure)
            if not isinstance(value, int | float):
                numbers = [name for name, value in one.items() if isinstance(value, int | float)]
                raise DataError(
                    f"`{self.step}` has no figure `{self.figure}` that is a number; it has: {', '.join(numbers)}"
                )
            values.append(float(value))
        if len(values) > 1 and not self.over:
            raise DataError(f"`{self.step}` has {len(values)} cells: say min(), max() or mean() of {self.figure}")
        return _OVER[self.over](values) if self.over else values[0]


_Side = tuple[float | _Figure, str, float | _Figure | None]


@dataclass(frozen=True)
class Gate:
    """Comparisons that must all hold. Made by `read`."""

    comparisons: tuple[tuple[_Side, str, _Side], ...]

    @classmethod
    def read(cls, text: str, steps: Iterable[str]) -> Gate:
        """Parse a gate. `steps` are the names it may use, or a mapping of them to values; the longest match wins.

        Raises:
            ConfigError: it does not follow the grammar.
        """
        names = sorted(steps, key=len, reverse=True)
        if isinstance(steps, Mapping):  # `${NAME}` is a number among the story's values
            text = _LINK.sub(lambda link: f"{value}" if _is_number(value := steps.get(link[1])) else link[0], text)
        comparisons = []
        for part in re.split(r"\s+and\s+", text.strip()):
            words = part.split()
            places = [index for index, word in enumerate(words) if word in _COMPARE]
            if len(places) != 1:
                raise ConfigError(
                    f"`{part}`: expected one of {' '.join(_COMPARE)}, spaces around it, between two sides"
                )
            left, right = words[: places[0]], words[places[0] + 1 :]
            comparisons.append((_side(left, part, names), words[places[0]], _side(right, part, names)))
        return cls(tuple(comparisons))

    @property
    def refers(self) -> set[str]:
        """The steps whose figures it compares."""
        terms = [term for left, _, right in self.comparisons for side in (left, right) for term in (side[0], side[2])]
        return {term.step for term in terms if isinstance(term, _Figure)}

    def judge(self, figures: Callable[[str], Figures]) -> tuple[bool, str]:
        """Whether it holds, and the comparisons with their numbers.

        Raises:
            DataError: a step has no such figure.
        """
        holds, texts = True, []
        for left, sign, right in self.comparisons:
            a, b = _value(left, figures), _value(right, figures)
            if not (math.isfinite(a) and math.isfinite(b)):
                holds = False
            holds = holds and _COMPARE[sign](a, b)
            texts.append(f"{figure(a)} {sign} {figure(b)}")
        return holds, " and ".join(texts)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _side(words: list[str], part: str, names: Sequence[str]) -> _Side:
    if len(words) == 1:
        return _term(words[0], part, names), "", None
    if len(words) == 3 and words[1] in _COMBINE:
        return _term(words[0], part, names), words[1], _term(words[2], part, names)
    raise ConfigError(f"`{part}`: a side is a number or STEP.FIGURE, or two of them with + - * between, spaces around")


def _term(word: str, part: str, names: Sequence[str]) -> float | _Figure:
    if word in _WORDS:
        return _WORDS[word]
    try:
        return float(word)
    except ValueError:
        pass
    over = re.fullmatch(rf"({'|'.join(_OVER)})\((.*)\)", word)
    reference = over[2] if over else word
    step = next((name for name in names if reference.startswith(f"{name}.")), reference.rpartition(".")[0])
    if not step or not re.fullmatch(r"[\w.-]+", reference):
        raise ConfigError(f"`{part}`: `{word}` is neither a number nor STEP.FIGURE")
    return _Figure(step, reference[len(step) + 1 :], over[1] if over else "")


def _value(side: _Side, figures: Callable[[str], Figures]) -> float:
    first, sign, second = side
    value = first.value(figures) if isinstance(first, _Figure) else first
    if second is None:
        return value
    return _COMBINE[sign](value, second.value(figures) if isinstance(second, _Figure) else second)
