"""Llama 3's split pattern and its 256 special tokens."""

from __future__ import annotations

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Splits text into pre-tokens; merges never cross their borders. Digits are in groups of up to three."""

NUM_SPECIAL_TOKENS = 256
"""Tokens after the BPE tokens of every vocabulary (Llama 3: 128,000 + 256)."""

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|finetune_right_pad_id|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
PYTHON_TAG = "<|python_tag|>"

_NAMED = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    PAD,
    "<|step_id|>",
    START_HEADER,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TURN,
    PYTHON_TAG,
    "<|image|>",
)


def special_tokens(first_id: int) -> dict[str, int]:
    """The 256 special tokens by name, numbered from `first_id` on.

    Source: Meta's llama-models, whose names differ from Hugging Face's in a few reserved places.
    """
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(2, NUM_SPECIAL_TOKENS - len(_NAMED) + 2)]
    return {name: first_id + offset for offset, name in enumerate((*_NAMED, *reserved))}
