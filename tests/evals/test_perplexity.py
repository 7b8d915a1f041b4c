"""Bits per byte: every token predicted once, windows with context, equal to a plain sum where nothing is cut."""

import math

import numpy as np
import pytest
import torch

from herd.data.shards import in_memory
from herd.errors import CapacityError
from herd.evals import perplexity
from herd.evals.perplexity import code_length, sample_documents
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # away from uniform predictions
    return model.eval()


def document(length, seed):
    return np.random.default_rng(seed).integers(0, 50, size=length).astype(np.uint32)


def plain_nats(model, tokens, begin=1):
    """Negative log-likelihood of tokens[begin:] with everything before in view."""
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.no_grad():
        log_probs = model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
    return -log_probs[begin - 1 :].sum().item()


def test_short_documents_cost_what_a_plain_forward_says_whatever_the_batch(model):
    documents = [document(length, length) for length in (2, 5, 17, 40)]
    expected = [plain_nats(model, tokens) for tokens in documents]
    for batch_tokens in (1, 64, 10_000):
        found = code_length(model, documents, [10] * 4, context_tokens=64, batch_tokens=batch_tokens)
        np.testing.assert_allclose(found.nats, expected, rtol=1e-4)
    assert found.num_tokens.tolist() == [1, 4, 16, 39]
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / 40, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(sum(expected) / 60), rel=1e-3)


def test_a_long_document_is_read_in_overlapping_windows_that_predict_every_token_once(model):
    tokens = document(50, 1)
    found = code_length(model, [tokens], [1], context_tokens=16, stride_tokens=8)
    expected = plain_nats(model, tokens[:17])
    for done in range(17, 50, 8):
        end = min(done + 8, 50)
        start = end - 17
        expected += plain_nats(model, tokens[start:end], begin=done - start)
    assert found.nats[0] == pytest.approx(expected, rel=1e-4)


def test_windows_of_one_context_each_and_empty_documents_are_possible(model):
    tokens = document(33, 2)
    found = code_length(model, [tokens, tokens[:1]], [9, 9], context_tokens=16, stride_tokens=16)
    assert found.nats[0] == pytest.approx(plain_nats(model, tokens[:17]) + plain_nats(model, tokens[16:33]), rel=1e-4)
    assert found.nats[1] == 0


def test_sampled_documents_are_whole_spread_and_the_same_every_time():
    documents = in_memory("x", [[1, 2]] * 100, num_bytes=[10] * 100)
    chosen = sample_documents(documents, 200)
    assert len(chosen) == 20
    assert chosen == sample_documents(documents, 200)
    assert np.diff(chosen).max() <= 10
    assert sample_documents(documents, 10_000) == list(range(100))
    assert len(sample_documents(documents, 1)) == 1


def test_an_evaluation_that_runs_out_of_memory_halves_its_batches(monkeypatch, model):
    asked, whole = [], perplexity.code_length

    def small(model, documents, num_bytes, *, context_tokens, batch_tokens):
        asked.append(batch_tokens)
        if batch_tokens > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, documents, num_bytes, context_tokens=context_tokens, batch_tokens=batch_tokens)

    documents = [np.arange(1, 40) % 50, np.arange(1, 70) % 50]
    monkeypatch.setattr(perplexity, "code_length", small)
    found = perplexity.code_length_in_memory(model, documents, [39, 69], context_tokens=32, batch_tokens=400)
    assert asked == [400, 200, 100]
    assert found.nats == pytest.approx(whole(model, documents, [39, 69], context_tokens=32).nats, rel=1e-5)
    with pytest.raises(CapacityError, match="one row of 128 tokens does not fit"):
        perplexity.code_length_in_memory(model, documents, [39, 69], context_tokens=128, batch_tokens=200)
