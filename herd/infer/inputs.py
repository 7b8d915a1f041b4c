"""The inputs an engine takes: a text, a conversation, a list of these, or token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from herd.errors import RequestError
from herd.types import Conversation

Input = str | Conversation


def is_one(inputs: object) -> TypeGuard[Input]:
    """Whether it is one input, not a list of them: a string, or a list of messages."""
    return isinstance(inputs, str) or (
        isinstance(inputs, Sequence) and bool(inputs) and all(isinstance(item, dict) for item in inputs)
    )


def as_batch(inputs: object) -> list[Input]:
    """Several inputs, as a list.

    Raises:
        RequestError: it is neither an input nor a list of them.
    """
    if not isinstance(inputs, Sequence) or isinstance(inputs, bytes):
        raise RequestError(
            f"The input is {type(inputs).__name__}; expected a string, a conversation (a list of messages), or a list "
            "of these."
        )
    return list(inputs)


def is_encoded(inputs: object) -> TypeGuard[list[int]]:
    """Whether it is a list of token ids."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], int)
