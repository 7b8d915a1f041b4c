"""Speculation, determinism and the int8 cache: the same answers, whatever the way they are computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import CheckpointError
from herd.formats.checkpoint import save
from herd.infer.blocks import BlockAllocator
from herd.infer.engine import Engine
from herd.infer.request import Request
from herd.infer.scheduler import Scheduler
from herd.infer.speculate import PromptLookup, Speculation
from herd.kernels import decoding
from herd.ops.paged_attention import (
    DecodeGroup,
    LayerCache,
    PagedContext,
    PromptChunk,
    decode_mask,
    paged_attention,
    prompt_mask,
    reference_paged_attention,
)
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model
from tests.infer.test_engine import GREEDY, PROMPTS
from tests.ops import kernels as kernels_of

HOT = SamplingParams(temperature=1.2, top_p=0.95, max_tokens=24, seed=5)


def engine_of(**options) -> Engine:
    engine = Engine.of(tiny_model(), small_tokenizer(), **options)
    if engine.loop.speculation is not None:
        engine.loop.speculation.always = True
    return engine


@pytest.fixture(scope="module")
def drafter(tmp_path_factory):
    """A draft model that is often right: the model itself with a little noise."""
    folder, model = tmp_path_factory.mktemp("drafter"), tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.001 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    save(model, folder / "model", small_tokenizer())
    return folder / "model"


@pytest.mark.parametrize("params", [GREEDY, HOT], ids=["greedy", "sampled"])
@pytest.mark.parametrize("how", ["lookup", "draft model"])
def test_speculation_gives_the_same_tokens(drafter, how, params):
    plain = engine_of().generate(PROMPTS, params)
    engine = engine_of(speculate=drafter if how == "draft model" else "lookup", max_prompt_tokens=40)
    answers = engine.generate(PROMPTS, params)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in plain]
    assert engine.loop.speculation.num_drafted > 0 or (how == "lookup" and params is HOT)
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks
    if how == "draft model":
        least = 0.3 if params is GREEDY else 0.05
        assert engine.loop.speculation.num_accepted > least * engine.loop.speculation.num_drafted


def test_samples_of_one_prompt_and_stop_strings_go_with_speculation(drafter):
    params = SamplingParams(temperature=1.2, max_tokens=20, n=4, seed=3, stop=("e",), logprobs=2)
    plain = engine_of().generate(PROMPTS[0], params)
    drafted = engine_of(speculate=drafter).generate(PROMPTS[0], params)
    assert [(a.text, a.tokens, a.finish_reason) for a in plain] == [
        (a.text, a.tokens, a.finish_reason) for a in drafted
    ]
    assert [len(a.logprobs) for a in plain] == [len(a.logprobs) for a in drafted]


@pytest.mark.slow
def test_drafted_samples_follow_the_models_distribution(drafter):
    """Chi-square of the second token over many seeds against the exact distribution given the first."""
    engine, bias = engine_of(speculate=drafter, max_sequences=256), 2000
    prompt = engine.encode(PROMPTS[0])
    params = [SamplingParams(temperature=1.0, top_p=1.0, top_k=8, max_tokens=4, seed=seed) for seed in range(bias)]
    requests = [engine.request(prompt, p) for p in params]
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        engine.step()
    firsts = [request.leader.tokens[0] for request in requests]
    first = max(set(firsts), key=firsts.count)
    seconds = [r.leader.tokens[1] for r in requests if r.leader.tokens[0] == first and len(r.leader.tokens) > 1]
    with torch.inference_mode():
        logits = tiny_model()(torch.tensor([[*prompt, first]]))[0, -1]
    values, ids = logits.topk(8)
    expected = dict(zip(ids.tolist(), (values.softmax(-1) * len(seconds)).tolist(), strict=True))
    assert set(seconds) <= set(expected)
    statistic = sum((seconds.count(token) - e) ** 2 / e for token, e in expected.items())
    assert statistic < 24.3  # the 0.1 % point of chi-square with 7 degrees of freedom


def test_repeated_text_is_guessed_from_the_prompt():
    request = Request([1, 2, 3, 4, 5, 9, 1, 2, 3], SamplingParams(), 0)
    assert PromptLookup().guess(request.leader, 4) == [4, 5, 9, 1]
    request.leader.tokens = [4]
    assert PromptLookup().guess(request.leader, 2) == [5, 9]
    assert PromptLookup().guess(Request([1, 2, 3, 4], SamplingParams(), 0).leader, 4) == []


def test_speculation_that_does_not_gain_is_switched_off():
    class Wrong(PromptLookup):
        def guess(self, answer, most):
            return [7] * most

    engine = engine_of(speculate="lookup")
    engine.loop.speculation = Speculation(Wrong())
    for seed in range(4):
        engine.generate(PROMPTS[0], SamplingParams(max_tokens=120, temperature=1.5, seed=seed))
    assert engine.loop.speculation.num_drafted < 0.5 * 4 * 4 * 120


def test_a_draft_model_of_another_tokenizer_is_refused(tmp_path):
    save(tiny_model(), tmp_path / "model", type(small_tokenizer()).train(["other words"], 530))
    with pytest.raises(CheckpointError, match="same tokenizer"):
        engine_of(speculate=tmp_path / "model")


@pytest.mark.parametrize("more_of", ["drafter", "model"])
def test_either_model_may_have_rows_to_spare(tmp_path, more_of):
    rows = small_tokenizer().vocab_size
    sizes = {"drafter": rows, "model": rows} | {more_of: rows + 40}
    save(tiny_model(1, vocab_size=sizes["drafter"]), tmp_path / "model", small_tokenizer())
    model = tiny_model(vocab_size=sizes["model"])
    params = SamplingParams(temperature=3.0, top_p=1.0, max_tokens=60, seed=3, n=4)
    engine = Engine.of(model, small_tokenizer(), speculate=tmp_path / "model")
    engine.loop.speculation.always = True
    drafted = engine.generate(PROMPTS[0], params)
    plain = Engine.of(model, small_tokenizer()).generate(PROMPTS[0], params)
    assert [answer.tokens for answer in drafted] == [answer.tokens for answer in plain]
    assert more_of == "drafter" or any(token >= rows for answer in plain for token in answer.tokens)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=8), st.randoms())
def test_rolled_back_drafts_lose_no_block_and_share_none_wrongly(shapes, random):
    """The scheduler alone, with drafts of random length of which a random part holds; two requests share prompts."""
    allocator = BlockAllocator(24, 2)
    scheduler = Scheduler(allocator, max_sequences=4, max_prompt_tokens=6, max_context=48)
    for length, most in shapes:
        scheduler.add(Request([1] * length, SamplingParams(max_tokens=most, n=1 + most % 2), 0))
    answers = [answer for request in list(scheduler.waiting) for answer in [request]]
    content_of: dict[int, list[int]] = {}
    for _ in range(400):
        if not scheduler.has_work:
            break
        plan = scheduler.plan(lambda answer, most: [random.randrange(3) for _ in range(min(most, 4))])
        drawing = list(plan.decode)
        for chunk in plan.chunks:
            if chunk.is_last:
                drawing += [chunk.answer]
                drawing += scheduler.fork(chunk.answer)[0] if chunk.answer is chunk.answer.request.leader else []
        for answer in drawing:
            held = random.randrange(len(answer.drafts) + 1)
            for token in [*answer.drafts[:held], random.randrange(3)]:
                if not answer.finish_reason:
                    answer.tokens.append(token)
                    if len(answer.tokens) == answer.request.params.max_tokens or random.random() < 0.05:
                        scheduler.finish(answer, "stop")
            if not answer.finish_reason:
                scheduler.settle(answer)
        for block in range(24):
            holders = [a for a in scheduler.running if block in a.blocks]
            assert allocator.num_holders(block) == len(holders)
            places = {a.blocks.index(block) for a in holders}
            texts = {tuple(a.token_range(0, min((p + 1) * 2, a.num_computed))) for a in holders for p in places}
            assert len(holders) < 2 or len(texts) == 1
        assert scheduler.num_reserved_blocks == sum(a.reserved_blocks for a in scheduler.running) <= allocator.num_free
    assert not scheduler.has_work and allocator.num_free == 24
    assert all(answer.finish_reason for answer in answers) and not content_of


# ---- determinism -----------------------------------------------------------------------------------------------------


def test_a_deterministic_answer_does_not_depend_on_the_batch():
    """In bfloat16, where the rounding of a product shows its number of rows; compared to the last bit."""
    model = tiny_model().bfloat16()
    params = SamplingParams(temperature=0.9, max_tokens=30, seed=2, logprobs=0)
    alone = Engine.of(model, small_tokenizer(), deterministic=True, max_prompt_tokens=24).generate(PROMPTS[5], params)
    crowded = Engine.of(model, small_tokenizer(), deterministic=True, max_prompt_tokens=24)
    crowded.generate([PROMPTS[5], *PROMPTS], GREEDY)  # what lies in the cache must not matter either
    for others in (PROMPTS, PROMPTS[:2], [PROMPTS[5]] * 3):
        requests = [crowded.request(text, GREEDY) for text in others]
        mine = crowded.request(PROMPTS[5], params)
        for request in [*requests, mine]:
            crowded.submit(request)
        while not mine.finished:
            crowded.step()
        assert mine.leader.tokens == alone.tokens
        assert [entry.logprob for entry in mine.leader.logprobs] == [entry.logprob for entry in alone.logprobs]


@pytest.mark.parametrize("how", ["lookup", "draft model"])
def test_guesses_of_a_deterministic_engine_depend_on_no_clock(drafter, how):
    engine = Engine.of(
        tiny_model().bfloat16(),
        small_tokenizer(),
        deterministic=True,
        speculate=drafter if how == "draft model" else "lookup",
    )
    params = SamplingParams(temperature=0, max_tokens=40, logprobs=0)
    alone = engine.generate(PROMPTS[5], params)
    for speed in engine.loop.speculation._speeds.values():
        speed.drafted, speed.plain = 1e-9, 1e9  # as measured on a busy machine
    crowd = engine.generate([PROMPTS[5], *PROMPTS], params)
    assert crowd[0].logprobs == alone.logprobs and engine.loop.speculation.num_drafted > 0


def test_what_ends_before_its_turn_in_a_deterministic_step_leaves_the_neighbours_cache_alone():
    engine = Engine.of(tiny_model(), small_tokenizer(), deterministic=True, max_sequences=4, cache_bytes=2**18)
    expected = engine.generate(PROMPTS[0], GREEDY).tokens
    failing = SamplingParams(max_tokens=24, n=3, temperature=1.0)
    neighbour, mine = engine.request(PROMPTS[0], GREEDY), engine.request("q", failing, lambda piece: None)
    for request in (neighbour, mine):
        engine.submit(request)
    for _ in range(6):
        engine.step()
    computed = []
    run = engine.loop.runner.run
    engine.loop.runner.run = lambda plan: (computed.extend(plan.decode), run(plan))[1]

    def fails(piece):
        raise ValueError("no more")

    mine.listener = fails  # at the first of the three, the two others end too
    engine.step()
    assert [answer.request for answer in computed if answer.request is mine] == [mine]
    while engine.has_work:
        engine.step()
    assert neighbour.leader.tokens == expected


# ---- the cache in 8 bits ---------------------------------------------------------------------------------------------


def scene(dtype: torch.dtype, cache_dtype: torch.dtype, num_channels: int) -> tuple:
    """Three decoding sequences and a chunk of a prompt over a cache with something in it."""
    generator = torch.Generator().manual_seed(0)
    lengths, num_heads, num_kv_heads = torch.tensor([5, 16, 33]), 4, 2
    blocks = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 3, 4]])
    shape = (9, 16, num_kv_heads, num_channels)
    pools = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]
    scales = []
    if cache_dtype == torch.int8:
        pools = [torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8) for _ in range(2)]
        scales = [(torch.rand(shape[:-1], generator=generator) / 50).to(torch.bfloat16) for _ in range(2)]
    q, k, v = (
        torch.randn(1, 8, heads, num_channels, generator=generator).to(dtype)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    slots = torch.tensor([4, 1 * 16 + 15, 4 * 16, *(6 * 16 + place for place in range(4, 9))])
    context = PagedContext(
        slots=slots,
        decode=(DecodeGroup(slice(0, 3), blocks, lengths, decode_mask(lengths, 48, dtype)),),
        prompts=(PromptChunk(slice(3, 8), torch.tensor([6]), 4, prompt_mask(4, 5)),),
    )
    return q, k, v, context, lambda: LayerCache(*(pool.clone() for pool in pools), *(scale.clone() for scale in scales))


@pytest.mark.parametrize("way", [*kernels_of.KINDS, "PyTorch alone"])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_channels", [16, 32, 64, 128])
def test_paged_attention_agrees_with_its_twin(monkeypatch, way, cache_dtype, dtype, num_channels):
    if way == "PyTorch alone":
        monkeypatch.setattr(decoding, "_library", None)
    else:
        kernels_of.use(way, monkeypatch)
    q, k, v, context, cache = scene(dtype, cache_dtype or dtype, num_channels)
    fast, slow = paged_attention(q, k, v, context, cache()), reference_paged_attention(q, k, v, context, cache())
    torch.testing.assert_close(fast, slow, rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else (
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    )


def test_an_int8_cache_takes_half_the_memory_and_predicts_nearly_the_same():
    options = {"cache_bytes": 2**20}
    model = tiny_model().bfloat16()
    plain, small = (Engine.of(model, small_tokenizer(), cache_dtype=kind, **options) for kind in (None, "int8"))
    assert (
        small.loop.allocator.num_blocks > 1.7 * plain.loop.allocator.num_blocks
        or small.loop.allocator.num_blocks >= 256 * 16
    )
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    for prompt in PROMPTS[3:]:
        first, second = (dict(engine.generate(prompt, params).logprobs[0].top) for engine in (plain, small))
        for token in list(first)[:3]:
            assert abs(first[token] - second.get(token, -9)) < 0.5


def test_an_int8_cache_answers_the_same_however_prompts_are_shared():
    engine = Engine.of(tiny_model(), small_tokenizer(), cache_dtype="int8")
    first = engine.generate(PROMPTS, GREEDY)
    assert [a.tokens for a in engine.generate(PROMPTS, GREEDY)][4:] == [a.tokens for a in first][4:]
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks
