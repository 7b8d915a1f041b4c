"""The tokenizers of the room below."""

from tests.tokenizer.conftest import llama, tokenizer

__all__ = ["llama", "tokenizer"]
