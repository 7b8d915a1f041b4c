"""Constrained output: an answer keeps to a JSON schema, a regular expression, a grammar or a list of choices.

Which tokens may come next is computed by llguidance (an optional package, extra `guided`); this file gives it the
tokenizer and turns its verdict into logits.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.errors import RequestError
from herd.infer.depth import check_grammar, check_schema
from herd.infer.schemas import followable
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import SamplingParams

FORMS = ("json_schema", "regex", "grammar", "choice")
"""The fields of `SamplingParams` that say what form an answer has."""
MAX_FORM = {"json_schema": 100_000, "regex": 8_000, "grammar": 100_000, "choice": 200_000}
"""Their largest sizes in characters: 40,000 of a regular expression may take 6 s and 800 MB to compile."""


class Guide:
    """How far one answer has come in its grammar."""

    def __init__(self, form: str, matcher: Any) -> None:
        self._form, self._matcher = form, matcher

    def fork(self) -> Guide:
        """A guide of its own for a sibling, at the same place."""
        return Guide(self._form, self._matcher.deep_copy())

    def mask(self, logits: Tensor) -> None:
        """Set the logits (V,) of tokens that may not come next to minus infinity, in place."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: logits.shape[0]].astype(bool))
        if allowed.shape[0] < logits.shape[0]:
            allowed = torch.cat((allowed, torch.zeros(logits.shape[0] - allowed.shape[0], dtype=torch.bool)))
        logits.masked_fill_(~allowed.to(logits.device), -torch.inf)

    def look_ahead(self) -> None:
        """See whether there is a next token at all; `fault` knows then."""
        self._matcher.compute_bitmask()

    def accept(self, token: int) -> None:
        """Go on by a drawn token."""
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    @property
    def fault(self) -> RequestError | None:
        """Why the grammar lets the answer neither go on nor end, where it does not: seen only once it is reached."""
        if not self._matcher.is_error():
            return None
        return RequestError(
            f"{self._form} cannot be followed to an end: no text fits it, or it is too large or ambiguous "
            f"({_first_lines(self._matcher.get_error(), 1)})."
        )


class GuideMaker:
    """Compiles grammars against one tokenizer; an answer's end is the token `end_id`."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_id: int | None) -> None:
        self.tokenizer, self.vocab_size, self.end_id = tokenizer, vocab_size, end_id

    def compile(self, params: SamplingParams) -> Guide | None:
        """The guide that the parameters ask for, None where they ask for none.

        Raises:
            RequestError: the schema, expression or grammar is wrong or too large, or llguidance is not installed.
        """
        form = next((name for name in FORMS if is_set(getattr(params, name))), None)
        if form is None:
            return None
        matcher = self._library.LLMatcher
        try:
            grammar = self._grammar(form, getattr(params, form))
            fault = matcher.validate_grammar(grammar, self._vocabulary)
        except (ValueError, TypeError, RecursionError) as error:  # TypeError: what JSON cannot hold
            raise RequestError(f"{form}: {error}") from None
        if fault:
            raise RequestError(f"{form} cannot be followed: {_first_lines(fault)}{_way_out(fault)}")
        guide = Guide(form, matcher(self._vocabulary, grammar, log_level=0))
        guide.look_ahead()
        if (found := guide.fault) is not None:
            raise found
        return guide

    def _grammar(self, form: str, value: Any) -> str:
        matcher = self._library.LLMatcher
        if form == "json_schema":
            _check_size(form, len(json.dumps(dict(value))))
            _check_bounds(value)
            check_schema(value)
            schema = json.dumps(followable(value))
            return matcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        _check_size(form, sum(map(len, value)) if form == "choice" else len(value))
        if form == "grammar":
            check_grammar(value)
            return matcher.grammar_from_lark(value)
        if form == "choice":  # one expression: tens of thousands of rules would be more than a grammar may hold
            value = "|".join(map(_literally, value))
        return matcher.grammar_from_regex(value)

    @cached_property
    def _library(self) -> Any:
        try:
            return importlib.import_module("llguidance")
        except ImportError:
            raise RequestError(
                "A constrained answer (json_schema, regex, grammar, choice) needs llguidance: pip install llguidance."
            ) from None

    @cached_property
    def _vocabulary(self) -> Any:
        wrapper = importlib.import_module("llguidance._tokenizer").TokenizerWrapper(_Vocabulary(self.tokenizer))
        return self._library.LLTokenizer(wrapper, n_vocab=self.vocab_size, eos_token=self.end_id)


class _Vocabulary:
    """The tokenizer as llguidance wants to see it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.token_bytes(i, b"") for i in range(tokenizer.vocab_size)]

    def __call__(self, text: str) -> list[int]:
        """The ids of a text that stands in the middle of an answer."""
        ids, wanted = self._tokenizer.encode(text), text.encode()
        if b"".join(self.tokens[i] for i in ids) == wanted:
            return ids
        return self._longest_first(wanted)  # Llama 1 and 2 put a space before every text

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


def _check_size(form: str, num_characters: int) -> None:
    if num_characters > MAX_FORM[form]:
        raise RequestError(
            f"{form} has {num_characters:,} characters; at most {MAX_FORM[form]:,} are taken: give a smaller one"
        )


def _check_bounds(schema: Mapping[str, Any]) -> None:
    """Refuse a bound that would be kept to only nearly: the library reads it as a float, and cuts it to 64 bits."""
    parts: list[Any] = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, list | tuple):
            parts += part
        elif isinstance(part, Mapping):
            for name, value in part.items():
                if name in _BOUNDS and isinstance(value, int) and _is_loosened(name, value):
                    raise RequestError(f"json_schema cannot be followed: {name} {value} is too large to be kept to")
            parts += [value for name, value in part.items() if name not in _LITERAL]


def _is_loosened(name: str, bound: int) -> bool:
    if abs(bound) > 2**1023:
        return True
    read = min(max(int(float(bound)), -(2**63)), 2**63 - 1)
    return read < bound if name.endswith("inimum") else read > bound


_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_LITERAL = ("const", "enum", "default", "examples")


def is_set(value: str | tuple[str, ...] | Mapping[str, Any] | None) -> bool:
    """A form was asked for; an empty schema is one (any object), an empty list of choices is none."""
    return value is not None and value != ()


def _literally(text: str) -> str:
    """A regular expression (of Rust's kind) that only this text matches."""
    return re.sub(r"[][\\.+*?()|{}^$#&~ -]", r"\\\g<0>", text)


def _way_out(fault: str) -> str:
    """What to do about a schema that asks for more than can be kept to."""
    if "oneOf" in fault:
        return " (its branches may overlap: write `anyOf`, or give each a property with a `const` of its own)"
    if "Unimplemented keys" in fault:
        return " (leave them out, and see to them in the answer)"
    return ""


def _first_lines(text: str, count: int = 3) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines()[:count])
