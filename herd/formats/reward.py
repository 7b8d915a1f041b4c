"""What a reward model's folder holds beside its weights: the chat template that its scores belong to."""

from __future__ import annotations

import hashlib

from herd.tokenizer.chat import format_name
from herd.tokenizer.tokenizer import Tokenizer

REWARD_RECORD = "reward.json"
"""File beside a reward model with the chat template it was trained with, without which its scores mean nothing."""


def reward_record(tokenizer: Tokenizer) -> dict[str, str]:
    """The contents of `reward.json` for a tokenizer's chat template."""
    template = tokenizer.chat_template or ""
    return {"template": hashlib.sha256(template.encode()).hexdigest()[:16], "format": format_name(tokenizer) or "none"}
