"""Byte-level BPE as in Llama 3: training, encoding, decoding, and the chat format with its loss mask."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that processes that only count start quickly."""
    if name != "Tokenizer":
        raise AttributeError(f"module 'herd.tokenizer' has no attribute {name!r}")
    return import_module("herd.tokenizer.tokenizer").Tokenizer
