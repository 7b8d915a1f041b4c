"""A model that waits for its weights."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys
from herd.model.config import ModelConfig
from herd.model.llama import empty_model

config = ModelConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                     intermediate_size=8, vocab_size=16)
model = empty_model(config)
assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
assert "torch._dynamo" not in sys.modules
"""


def test_making_an_empty_model_does_not_load_the_compiler():
    """It would take longer than everything else at the start of a chat."""
    subprocess.run([sys.executable, "-c", _SCRIPT], check=True, timeout=120)
