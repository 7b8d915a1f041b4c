"""Byte-level BPE as Llama 3 has it: train, encode, decode, and the chat format with its loss mask."""

from herd.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
