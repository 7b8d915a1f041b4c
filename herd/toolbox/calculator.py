"""Sums: exact arithmetic at once, and algebra by SymPy in the sandbox.

Arithmetic is read by a parser of our own that knows numbers, operators and a few functions: nothing that a model writes
is run here. What it does not know (letters, equations, `integrate`) is read by SymPy, whose own parser runs what it is
given, so it runs in the sandbox and nowhere else.
"""

from __future__ import annotations

import ast
import asyncio
import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from herd.toolbox.errand import Errand, Failed, function, text_argument
from herd.toolbox.interpreter import Interpreter

Number = int | float | Fraction
MAX_CHARACTERS = 2000
_MAX_BITS = 20_000  # of a whole number on the way: some 6,000 digits
_MAX_DIGITS = 1000  # that are written out
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_ONE: dict[str, Callable[[float], float]] = {
    name: getattr(math, name)
    for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "degrees", "radians")
}
_SYMPY = r"""
from sympy import *
from sympy.parsing.sympy_parser import (
    convert_xor, implicit_multiplication_application, parse_expr, standard_transformations)
import json, re
given = json.loads(GIVEN)
steps = (*standard_transformations, implicit_multiplication_application, convert_xor)
read = lambda text: parse_expr(text, transformations=steps)
depth, cut = 0, []
for at, sign in enumerate(given):
    depth += (sign in "([{") - (sign in ")]}")
    if sign == "=" and not depth and given[at - 1:at] not in ("<", ">", "!", "=") and given[at + 1:at + 2] != "=":
        cut.append(at)
if len(cut) == 1:
    equation = Eq(read(given[:cut[0]]), read(given[cut[0] + 1:]))
    letters = sorted(getattr(equation, "free_symbols", ()), key=str)
    if not letters:
        print(equation)
    for letter in letters:
        print(letter, "=", solve(equation, letter))
else:
    found = read(given)
    if hasattr(found, "doit"):
        found = simplify(found.doit())
    print(found)
    if getattr(found, "is_number", False) and not getattr(found, "is_Integer", False):
        print("about", N(found, 15))
"""


class Calculator:
    """`calculator`, or under the name that Llama 3.1 knows, `wolfram_alpha`."""

    def __init__(self, algebra: Interpreter | None = None, *, name: str = "calculator") -> None:
        self._algebra, self._argument = algebra, "query" if name == "wolfram_alpha" else "expression"
        can = (
            "Works out an expression exactly, such as 2*(3+4)^5, sqrt(2) or factorial(20)"
            + (", and algebra: x^2 - 2 = 0, integrate(x^2, x), diff(sin(x), x), factor(x^2-1)" if algebra else "")
            + "."
        )
        self.function = function(name, can, **{self._argument: "the expression"})

    async def call(self, arguments: dict[str, Any], errand: Errand) -> str:
        """The value.

        Raises:
            Failed: it is none that could be worked out.
        """
        given = text_argument(arguments, self._argument).strip()
        if len(given) > MAX_CHARACTERS:
            raise Failed(f"the expression has {len(given):,} characters; at most {MAX_CHARACTERS:,} are read")
        try:
            return await asyncio.to_thread(written, given)
        except _Unknown as error:
            if self._algebra is None:
                raise Failed(str(error)) from None
        result = await self._algebra.run(_SYMPY.replace("GIVEN", repr(json.dumps(given))), errand)
        if not result.ok:
            last = result.stderr.strip().splitlines()[-1:] or [f"it ended by {result.why}"]
            raise Failed(f"{given} cannot be worked out: {last[0]}")
        return result.stdout.strip()


class _Unknown(Exception):
    """Not for the parser here."""


def written(expression: str) -> str:
    """The value of an expression of numbers, a fraction with its decimals.

    Raises:
        Failed: it is none: a division by nothing, a number too large.
    """
    try:
        value = _value(ast.parse(re.sub(r"\^", "**", expression.replace("−", "-").replace("×", "*")), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise _Unknown(f"{expression[:200]} is no expression of numbers ({type(error).__name__})") from None
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        raise Failed(f"{expression[:200]} has no value: {error}") from None
    if isinstance(value, Fraction) and value.denominator == 1:
        value = value.numerator
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > 200:
            return repr(float(value))
        return f"{value} (about {float(value)!r})"
    if isinstance(value, int):
        digits = str(value)
        return digits if len(digits) <= _MAX_DIGITS else f"{digits[:20]}... ({len(digits):,} digits)"
    return repr(value)


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner)
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(op, _value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _called(name, [_value(one) for one in args])
    raise _Unknown(f"`{ast.unparse(node)[:100]}` is nothing that this calculator knows")


def _combined(op: ast.operator, left: Number, right: Number) -> Number:
    match op:
        case ast.Add():
            return _small(left + right)
        case ast.Sub():
            return _small(left - right)
        case ast.Mult():
            return _small(left * right)
        case ast.Div():
            whole = not isinstance(left, float) and not isinstance(right, float)
            return Fraction(left) / Fraction(right) if whole else left / right
        case ast.FloorDiv():
            return left // right
        case ast.Mod():
            return left % right
        case ast.Pow():
            return _power(left, right)
    raise _Unknown(f"the operator {type(op).__name__} is not known")


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction):
        exponent = exponent.numerator if exponent.denominator == 1 else float(exponent)
    if isinstance(exponent, int) and not isinstance(base, float):
        bits = max(Fraction(base).numerator.bit_length(), Fraction(base).denominator.bit_length())
        if bits * abs(exponent) > _MAX_BITS and abs(base) != 1:
            raise OverflowError("the number is too large")
        return Fraction(base) ** exponent
    found = float(base) ** exponent
    if isinstance(found, complex):
        raise _Unknown("a root of a negative number")
    return found


def _called(name: str, given: list[Number]) -> Number:
    if name in _ONE and len(given) == 1:
        return _ONE[name](float(given[0]))
    match name, given:
        case "sqrt", [one]:
            if one < 0:
                raise _Unknown("a root of a negative number")
            root = Fraction(math.isqrt(Fraction(one).numerator), math.isqrt(Fraction(one).denominator))
            return root if root * root == one and not isinstance(one, float) else math.sqrt(one)
        case "abs", [one]:
            return -one if one < 0 else one
        case (("round" | "floor" | "ceil"), [one]):
            kinds: dict[str, Callable[[Any], int]] = {"round": round, "floor": math.floor, "ceil": math.ceil}
            return kinds[name](one)
        case "round", [one, int() as digits]:
            return round(float(one), digits)
        case (("log" | "ln"), [one]):
            return math.log(one)
        case "log", [one, base]:
            return math.log(one, base)
        case (("log2" | "log10"), [one]):
            return math.log2(one) if name == "log2" else math.log10(one)
        case "factorial", [int() as one] if 0 <= one <= 1500:
            return math.factorial(one)
        case (("comb" | "perm"), [int() as one, int() as two]) if 0 <= two <= one <= 1500:
            return math.comb(one, two) if name == "comb" else math.perm(one, two)
        case (("gcd" | "lcm"), [int(), *_]) if all(isinstance(one, int) for one in given):
            return _small((math.gcd if name == "gcd" else math.lcm)(*given))  # type: ignore[arg-type]
        case (("min" | "max" | "sum"), [_, *_]):
            whole: dict[str, Callable[[Any], Number]] = {"min": min, "max": max, "sum": sum}
            return whole[name](given)
    raise _Unknown(f"{name}({', '.join(map(str, given))[:100]}) is nothing that this calculator knows")


def _small(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise OverflowError("the number is too large")
    if isinstance(value, Fraction) and value.denominator.bit_length() > _MAX_BITS:
        raise OverflowError("the number is too large")
    return value
