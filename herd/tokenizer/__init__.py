"""Byte-level BPE as Llama 3 has it: train, encode, decode, and the chat format with its loss mask."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]


def __getattr__(name: str) -> Any:
    """Loads on first use, so that the processes that only count start at once."""
    if name != "Tokenizer":
        raise AttributeError(f"module 'herd.tokenizer' has no attribute {name!r}")
    return import_module("herd.tokenizer.tokenizer").Tokenizer
