"""The model against `transformers`, and against itself: packed rows, saved folders, parameter counts."""

from dataclasses import replace

import pytest
import torch
import transformers

from herd.formats import checkpoint
from herd.model.config import ModelConfig, RopeScaling, num_parameters
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM, empty_model
from herd.ops.attention import AttentionContext, reference_attention
from herd.types import IGNORE, Batch, Loss

TINY = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=131_072,
    rope_scaling=RopeScaling(original_max_position_embeddings=64),
)
VARIANTS = {
    "llama 1 and 2": replace(TINY, num_key_value_heads=4, rope_theta=10_000.0, rope_scaling=None, rms_norm_eps=1e-6),
    "llama 3": replace(TINY, rope_scaling=None),
    "llama 3.1": TINY,
    "llama 3.2, tied": replace(TINY, tie_word_embeddings=True, rope_scaling=RopeScaling(factor=32.0)),
    "one key-value head": replace(TINY, num_key_value_heads=1),
    "heads wider than hidden / heads": replace(TINY, head_dim=32),
    "biases": replace(TINY, attention_bias=True, mlp_bias=True),
}
FAMILY = {  # hidden, ffn, layers, heads, tied -> parameters (released models)
    "1B": (2048, 8192, 16, 32, True, 1_235_814_400),
    "3B": (3072, 8192, 28, 24, True, 3_212_749_824),
    "8B": (4096, 14_336, 32, 32, False, 8_030_261_248),
    "70B": (8192, 28_672, 80, 64, False, 70_553_706_496),
    "405B": (16_384, 53_248, 126, 128, False, 405_853_388_800),
}


def build(config: ModelConfig, seed: int = 0) -> LlamaForCausalLM:
    model = LlamaForCausalLM(config)
    initialize(model, seed)
    for parameter in model.parameters():  # norms too, and wider than at the start: a swapped weight must show
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def theirs(folder, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def batch_of(rows: list[list[list[int]]]) -> Batch:
    tokens = torch.tensor([[t for document in row for t in document] for row in rows])
    ids = torch.tensor([[i for i, document in enumerate(row) for _ in document] for row in rows], dtype=torch.int32)
    positions = torch.tensor([[p for document in row for p in range(len(document))] for row in rows])
    return Batch(tokens=tokens, labels=tokens.roll(-1, 1), positions=positions, document_ids=ids)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_folder_gives_the_same_logits_in_transformers(variant, tmp_path):
    torch.manual_seed(0)
    model = build(VARIANTS[variant])
    checkpoint.save(model, tmp_path / "model")
    tokens = torch.randint(0, TINY.vocab_size, (2, 150))
    with torch.no_grad():
        expected = theirs(tmp_path / "model")(tokens).logits
        torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(checkpoint.load(tmp_path / "model")(tokens), model(tokens), atol=0, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_that_transformers_saved_gives_the_same_logits_here(variant, tmp_path):
    torch.manual_seed(1)
    checkpoint.save(build(VARIANTS[variant]), tmp_path / "ours")
    model = theirs(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    tokens = torch.randint(0, TINY.vocab_size, (1, 40))
    with torch.no_grad():
        ours = checkpoint.load(tmp_path / "theirs")(tokens)
        torch.testing.assert_close(ours, model(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_documents_packed_into_a_row_get_the_logits_of_transformers_under_a_document_mask(variant, tmp_path):
    torch.manual_seed(8)
    model = build(VARIANTS[variant])
    checkpoint.save(model, tmp_path / "model")
    draw = lambda n: torch.randint(0, TINY.vocab_size, (n,)).tolist()  # noqa: E731
    batch = batch_of([[draw(30), draw(1), draw(65)], [draw(96)]])
    same = batch.document_ids[:, None, :, None] == batch.document_ids[:, None, None, :]
    mask = torch.where(same & torch.ones(96, 96, dtype=torch.bool).tril(), 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = theirs(tmp_path / "model")(batch.tokens, attention_mask=mask, position_ids=batch.positions).logits
        hidden = model.model(model.model.embed(batch.tokens), batch.positions, AttentionContext(batch.document_ids))
        torch.testing.assert_close(model.lm_head.logits(hidden), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padded_rows_get_the_logits_of_transformers(variant, side, tmp_path):
    torch.manual_seed(9)
    model = build(VARIANTS[variant])
    checkpoint.save(model, tmp_path / "model")
    lengths, width = (50, 17), 50
    tokens, real = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        tokens[row, place], real[row, place] = torch.randint(0, TINY.vocab_size, (length,)), True
    positions = (real.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = theirs(tmp_path / "model")(tokens, attention_mask=real.long(), position_ids=positions).logits
        hidden = model.model(model.model.embed(tokens), positions, AttentionContext(real.int()))
        torch.testing.assert_close(model.lm_head.logits(hidden)[real], expected[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("start", [0, 8_190, 131_008])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_at_long_positions(variant, start, tmp_path):
    torch.manual_seed(2)
    config = VARIANTS[variant]
    if config.rope_scaling:
        config = replace(config, rope_scaling=replace(config.rope_scaling, original_max_position_embeddings=8192))
    model = build(config)
    checkpoint.save(model, tmp_path / "model")
    tokens = torch.randint(0, config.vocab_size, (1, 64))
    positions = torch.arange(start, start + 64)[None]
    with torch.no_grad():
        expected = theirs(tmp_path / "model")(tokens, position_ids=positions).logits
        hidden = model.model(model.model.embed(tokens), positions)
        torch.testing.assert_close(model.lm_head.logits(hidden), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_logits_are_within_the_rounding_of_transformers(variant, tmp_path):
    torch.manual_seed(3)
    model = build(VARIANTS[variant])
    checkpoint.save(model, tmp_path / "model")
    tokens = torch.randint(0, TINY.vocab_size, (2, 64))
    with torch.no_grad():
        exact = theirs(tmp_path / "model")(tokens).logits
        rounded = theirs(tmp_path / "model", torch.bfloat16)(tokens).logits.float()
        ours = checkpoint.load(tmp_path / "model", dtype=torch.bfloat16)(tokens).float()
    assert (ours - exact).abs().mean() <= 1.2 * (rounded - exact).abs().mean()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_packed_rows_give_the_hidden_states_of_single_documents(dtype, tolerance):
    torch.manual_seed(4)
    model = build(TINY).to(dtype)
    draw = lambda n: torch.randint(0, TINY.vocab_size, (n,)).tolist()  # noqa: E731
    rows = [[draw(40), draw(3), draw(85)], [draw(128)], [draw(1), draw(127)]]
    batch = batch_of(rows)
    with torch.no_grad():
        packed = model.model(model.model.embed(batch.tokens), batch.positions, AttentionContext(batch.document_ids))
        for row, hidden in zip(rows, packed, strict=True):
            single = [model.model(model.model.embed(torch.tensor([d])), torch.arange(len(d))[None])[0] for d in row]
            torch.testing.assert_close(hidden, torch.cat(single), atol=tolerance, rtol=tolerance)


def test_run_hands_hidden_states_and_head_to_the_objective():
    torch.manual_seed(5)
    model = build(TINY)
    batch = batch_of([[list(range(30)), list(range(34))]])

    def objective(hidden, head, batch):
        return Loss(head.cross_entropy_sum(hidden, batch.labels), (batch.labels != IGNORE).sum(), {})

    loss = model.run(objective, batch)
    loss.sum.backward()
    logits = model.lm_head.logits(
        model.model(model.model.embed(batch.tokens), batch.positions, AttentionContext(batch.document_ids))
    )
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss.sum, expected)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_every_parameter_equal_those_of_transformers(variant, tmp_path):
    torch.manual_seed(6)
    model = build(VARIANTS[variant])
    checkpoint.save(model, tmp_path / "model")
    peer = theirs(tmp_path / "model")
    batch = batch_of([[torch.randint(0, TINY.vocab_size, (90,)).tolist()] for _ in range(2)])
    loss = model.run(lambda hidden, head, batch: Loss(head.cross_entropy_sum(hidden, batch.labels), None, {}), batch)
    loss.sum.backward()
    logits = peer(batch.tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum").backward()
    expected = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4 * scale, rtol=0, msg=name)


@pytest.mark.parametrize("size", FAMILY)
def test_parameter_counts_equal_the_released_models(size):
    hidden, ffn, layers, heads, tied, expected = FAMILY[size]
    config = ModelConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        tie_word_embeddings=tied,
    )
    model = empty_model(config)
    assert num_parameters(config) == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (LlamaForCausalLM(TINY) for _ in range(3))
    initialize(first, 7)
    torch.randn(3)
    initialize(again, 7)
    initialize(other, 8)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_a_layer_gets_its_own_cache_entry_as_last_argument():
    seen = []

    def attend(q, k, v, context, cache):
        seen.append((context, cache))
        return q

    model = LlamaForCausalLM(TINY, attend)
    model.model(model.model.embed(torch.zeros(1, 4, dtype=torch.long)), torch.arange(4)[None], "context", "abc")
    assert seen == [("context", "a"), ("context", "b"), ("context", "c")]


def test_one_compiled_block_serves_all_layers_whatever_their_caches():
    config = replace(TINY, num_hidden_layers=32)
    compilations = []

    def attend(q, k, v, context, cache):
        cache.copy_(k)
        return reference_attention(q, cache, v, context)

    def backend(graph, inputs):
        compilations.append(graph)
        return graph

    model = LlamaForCausalLM(config, attend).eval()
    initialize(model, 0)
    x, positions = model.model.embed(torch.arange(9)[None]), torch.arange(9)[None]
    caches = [torch.zeros(1, 9, 2, 16) for _ in range(32)]
    with torch.no_grad():
        expected = model.model(x, positions, None, caches)
        for layer in model.model.layers:
            layer.compile(backend=backend, fullgraph=True)
        torch.testing.assert_close(model.model(x, positions, None, caches), expected)
    assert len(compilations) <= 2
