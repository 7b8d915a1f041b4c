"""Grammars over a tokenizer's vocabulary, compiled by llguidance (an optional package, extra `guided`).

Nothing here needs PyTorch, so that a server can try each grammar in a small process first (`herd/infer/trial.py`).
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from herd.errors import RequestError
from herd.infer.depth import check_grammar, check_schema
from herd.infer.schemas import followable
from herd.types import SamplingParams

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer

FORMS = ("json_schema", "regex", "grammar", "choice")
"""The fields of `SamplingParams` that constrain an answer."""
MAX_FORM = {"json_schema": 100_000, "regex": 8_000, "grammar": 100_000, "choice": 200_000}
"""Their maximum lengths in characters: a regular expression of 40,000 may take 6 s and 800 MB to compile."""


class Vocabulary:
    """A tokenizer behind the interface that llguidance expects."""

    def __init__(
        self,
        tokens: list[bytes],
        special_ids: list[int],
        bos_id: int | None,
        eos_id: int | None,
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        self.tokens, self.special_token_ids, self._encode = tokens, special_ids, encode
        self.bos_token_id, self.eos_token_id = bos_id, eos_id

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer."""
        tokens = [tokenizer.token_bytes(i, b"") for i in range(tokenizer.vocab_size)]
        special = sorted(tokenizer.special_ids)
        return cls(tokens, special, tokenizer.bos_id, tokenizer.eos_id, tokenizer.encode)

    def __call__(self, text: str) -> list[int]:
        """The ids of a text in the middle of an answer."""
        data = text.encode()
        if self._encode is not None:
            ids = self._encode(text)
            if b"".join(self.tokens[i] for i in ids) == data:
                return ids
        return self._longest_first(data)  # Llama 1 and 2 put a space before every text

    def _longest_first(self, text: bytes) -> list[int]:
        ids = []
        while text:
            length = next(n for n in range(min(self._longest, len(text)), 0, -1) if text[:n] in self._id_of)
            ids.append(self._id_of[text[:length]])
            text = text[length:]
        return ids

    @cached_property
    def _id_of(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {token: i for i, token in enumerate(self.tokens) if token and i not in special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._id_of))


class Compiler:
    """Compiles grammars over one vocabulary of `vocab_size` logits; the token `end_id` ends an answer."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], vocab_size: int, end_id: int | None) -> None:
        self._make_vocabulary, self.vocab_size, self.end_id = vocabulary, vocab_size, end_id

    def matcher(self, form: str, value: Any) -> Any:
        """llguidance's matcher for a form, once it is certain that some first token fits.

        Raises:
            RequestError: the schema, expression or grammar is wrong or too large, or llguidance is not installed.
        """
        matcher = self._library.LLMatcher
        try:
            grammar = self._grammar(form, value)
            fault = matcher.validate_grammar(grammar, self._tokenizer)
        except ValueError as error:
            raise RequestError(f"{form}: {error}") from None
        if fault:
            raise RequestError(f"{form} cannot be followed: {_first_lines(fault)}{_way_out(fault)}")
        compiled = matcher(self._tokenizer, grammar, log_level=0)
        compiled.compute_bitmask()
        if (stuck := fault_of(form, compiled)) is not None:
            raise stuck
        return compiled

    def check(self, form: str, value: Any) -> None:
        """Refuse what can be seen to be wrong without compiling.

        Raises:
            RequestError: it is too large or nested too deeply, or llguidance is not installed.
        """
        assert self._library
        self._written(form, value)

    def _written(self, form: str, value: Any) -> str:
        """A form as text, after checks of its size and depth."""
        try:
            if form == "json_schema":
                _check_size(form, len(json.dumps(dict(value))))
                _check_bounds(value)
                check_schema(value)
                return json.dumps(followable(value))
            _check_size(form, sum(map(len, value)) if form == "choice" else len(value))
            if form == "grammar":
                check_grammar(value)
            # one expression, since a grammar may not have tens of thousands of rules
            return "|".join(map(_literally, value)) if form == "choice" else value
        except (ValueError, TypeError, RecursionError) as error:  # TypeError: values that JSON cannot express
            raise RequestError(f"{form}: {error}") from None

    def _grammar(self, form: str, value: Any) -> str:
        matcher, text = self._library.LLMatcher, self._written(form, value)
        if form == "json_schema":
            return matcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False})
        return matcher.grammar_from_lark(text) if form == "grammar" else matcher.grammar_from_regex(text)

    @cached_property
    def _library(self) -> Any:
        try:
            return importlib.import_module("llguidance")
        except ImportError:
            raise RequestError(
                "A constrained answer (json_schema, regex, grammar, choice) needs llguidance: pip install llguidance."
            ) from None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens over which grammars are compiled."""
        return self._make_vocabulary()

    @cached_property
    def _tokenizer(self) -> Any:
        wrapper = importlib.import_module("llguidance._tokenizer").TokenizerWrapper(self.vocabulary)
        return self._library.LLTokenizer(wrapper, n_vocab=self.vocab_size, eos_token=self.end_id)


def form_of(params: SamplingParams) -> str | None:
    """The name of the field that constrains an answer; None where none does."""
    return next((name for name in FORMS if is_set(getattr(params, name))), None)


def fault_of(form: str, matcher: Any) -> RequestError | None:
    """The error of a matcher that allows neither another token nor the end; None where it allows one."""
    if not matcher.is_error():
        return None
    return RequestError(
        f"{form} cannot be followed to an end: no text fits it, or it is too large or ambiguous "
        f"({_first_lines(matcher.get_error(), 1)})."
    )


def _check_size(form: str, num_characters: int) -> None:
    if num_characters > MAX_FORM[form]:
        raise RequestError(
            f"{form} has {num_characters:,} characters; at most {MAX_FORM[form]:,} are allowed: give a smaller one"
        )


def _check_bounds(schema: Mapping[str, Any]) -> None:
    """Refuse a bound that llguidance would loosen: it reads bounds as floats, cut to 64 bits."""
    parts: list[Any] = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, list | tuple):
            parts += part
        elif isinstance(part, Mapping):
            for name, value in part.items():
                if name in _BOUNDS and isinstance(value, int) and _is_loosened(name, value):
                    raise RequestError(f"json_schema cannot be followed: {name} {value} is too large to be enforced")
            parts += [value for name, value in part.items() if name not in _LITERAL]


def _is_loosened(name: str, bound: int) -> bool:
    if abs(bound) > 2**1023:
        return True
    read = min(max(int(float(bound)), -(2**63)), 2**63 - 1)
    return read < bound if name.endswith("inimum") else read > bound


_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_LITERAL = ("const", "enum", "default", "examples")


def is_set(value: str | tuple[str, ...] | Mapping[str, Any] | None) -> bool:
    """Whether a constraint was given: an empty schema counts (any object), an empty list of choices does not."""
    return value is not None and value != ()


def _literally(text: str) -> str:
    """A regular expression (in Rust's syntax) that matches only this text."""
    return re.sub(r"[][\\.+*?()|{}^$#&~ -]", r"\\\g<0>", text)


def _way_out(fault: str) -> str:
    """What to do about a schema that cannot be enforced."""
    if "oneOf" in fault:
        return " (its branches may overlap: write `anyOf`, or give each a property with a different `const`)"
    if "Unimplemented keys" in fault:
        return " (leave them out, and check them in the answer)"
    return ""


def _first_lines(text: str, count: int = 3) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines()[:count])
