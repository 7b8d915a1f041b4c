"""Texts to vectors, with the engine's own weights."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM as TheirLlama

from herd.formats.checkpoint import save
from herd.infer.embedder import Embedder
from herd.infer.engine import Engine
from tests.infer.models import small_tokenizer, tiny_model


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_vector_is_the_pooled_last_hidden_state_that_transformers_gives(tmp_path, pooling):
    save(tiny_model(), tmp_path, small_tokenizer())
    engine = Engine(tmp_path, dtype=torch.float32)
    tokens = engine.encode("What does this function do?")
    theirs = TheirLlama.from_pretrained(tmp_path).model(torch.tensor([tokens])).last_hidden_state[0]
    expected = torch.nn.functional.normalize(theirs.mean(0) if pooling == "mean" else theirs[-1], dim=0)
    assert torch.allclose(Embedder(engine).embed(tokens, pooling), expected, atol=1e-5)


def test_weights_are_shared_and_rounded_ones_too(tmp_path):
    save(tiny_model(), tmp_path, small_tokenizer())
    engine = Engine(tmp_path, quantize="int8")
    embedder = Embedder(engine)
    ours = dict(engine.model.state_dict())
    assert all(tensor.data_ptr() == ours[name].data_ptr() for name, tensor in embedder._model.state_dict().items())
    assert embedder.embed(engine.encode("The quick")).norm() == pytest.approx(1, abs=1e-5)
