"""The engine's answers: the same as recomputation, as `transformers`, as one at a time."""

from __future__ import annotations

import gc
import json
import sys
import threading

import pytest
import torch

import herd
from herd.errors import CapacityError, CheckpointError, ConfigError, DataError, RequestError
from herd.formats.checkpoint import save
from herd.formats.vocabulary import open_tokenizer
from herd.infer.engine import Engine
from herd.infer.request import Request
from herd.model.reward import as_reward_model
from herd.ops.paged_attention import paged_attention
from herd.types import SamplingParams
from tests.infer.models import SHAPES, TEXT, small_tokenizer, tiny_model

PROMPTS = [
    "The quick",
    "def main(argument)",
    "Grüße aus",
    "What does this function do? " * 4,
    "日本語",
    "It joins paths. " * 9,
    "q",
]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


def engine_of(model=None, **options) -> Engine:
    return Engine.of(model or tiny_model(), small_tokenizer(), **options)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of()


def recomputed(engine: Engine, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy decoding without any cache: the whole sequence again for every token."""
    model = tiny_model_like(engine)
    ids = list(prompt)
    while len(ids) < len(prompt) + num_tokens:
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] in engine.stop_ids:
            break
    return ids[len(prompt) :]


def tiny_model_like(engine: Engine):
    from herd.model.llama import empty_model

    model = empty_model(engine.model.config)
    model.load_state_dict(engine.model.state_dict(), assign=True)
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cached_paged_decoding_equals_recomputation(shape):
    engine = engine_of(tiny_model(**shape), max_prompt_tokens=40)
    for prompt, answer in zip(PROMPTS, engine.generate(PROMPTS, GREEDY), strict=True):
        assert answer.tokens == recomputed(engine, engine.encode(prompt), GREEDY.max_tokens)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_greedy_answers_equal_those_of_transformers(shape, tmp_path):
    transformers = pytest.importorskip("transformers")
    save(tiny_model(**shape), tmp_path / "model", small_tokenizer())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ours = Engine(tmp_path / "model")
    answers = ours.generate(PROMPTS, GREEDY)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([ours.encode(prompt)])
        stop = sorted(ours.stop_ids)
        made = theirs.generate(
            ids, max_new_tokens=24, do_sample=False, temperature=None, top_p=None, eos_token_id=stop, pad_token_id=0
        )
        assert answer.tokens == made[0, ids.shape[1] :].tolist()


def test_a_small_batch_small_chunks_and_a_small_cache_change_nothing():
    roomy, tight = engine_of(), engine_of(max_sequences=2, max_prompt_tokens=5, cache_bytes=2**17)
    assert tight.loop.allocator.num_blocks < 17
    expected = [answer.tokens for answer in roomy.generate(PROMPTS, GREEDY)]
    assert [answer.tokens for answer in tight.generate(PROMPTS, GREEDY)] == expected
    assert tight.loop.allocator.num_free == tight.loop.allocator.num_blocks


def test_where_a_prompt_is_cut_does_not_depend_on_the_load():
    prompt = "Nobody else begins like this. " * 8
    alone, crowd = (engine_of(max_prompt_tokens=24) for _ in range(2))
    assert chunks_of(alone, prompt, []) == chunks_of(crowd, prompt, PROMPTS)


def chunks_of(engine: Engine, prompt: str, others: list[str]) -> list[tuple[int, int]]:
    """The chunks in which a prompt is computed beside others."""
    requests = [engine.request(text, GREEDY) for text in [*others, prompt]]
    for request in requests:
        engine.submit(request)
    seen, run = [], engine.loop.runner.run

    def spy(plan):
        seen.extend((c.start, c.stop) for c in plan.chunks if c.answer.request is requests[-1])
        return run(plan)

    engine.loop.runner.run = spy
    while not requests[-1].finished:
        engine.step()
    assert len(seen) > 3 and seen[-1][1] == len(requests[-1].prompt)
    return seen


def test_one_input_gives_one_answer_and_several_samples_give_a_list(engine):
    conversation = [{"role": "user", "content": "What does this function do?"}]
    params = SamplingParams(max_tokens=3)
    assert isinstance(engine.generate("The quick", params), herd.Completion)
    assert isinstance(engine.generate(conversation, params), herd.Completion)
    assert len(engine.generate(["The quick", conversation], params)) == 2
    assert engine.generate([], params) == []
    nested = engine.generate(["The", conversation, "fox"], SamplingParams(max_tokens=3, n=2))
    assert [len(answers) for answers in nested] == [2, 2, 2]
    assert len(engine.generate("The", SamplingParams(max_tokens=3, n=5))) == 5


def test_a_string_is_completed_and_a_conversation_is_answered(engine):
    tokenizer = engine.tokenizer
    assert engine.encode("The quick") == [tokenizer.bos_id, *tokenizer.encode("The quick")]
    chat = engine.encode([{"role": "user", "content": "The quick"}])
    assert tokenizer.decode(chat).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_the_same_seed_gives_the_same_answer_alone_in_a_crowd_and_one_by_one(engine):
    params = SamplingParams(temperature=1.2, top_p=1.0, max_tokens=20, seed=11)
    alone = engine.generate("The quick", params)
    crowd = engine.generate([*PROMPTS[1:], "The quick"], params)[-1]
    streamed = list(engine.stream("The quick", params))
    assert alone.tokens == crowd.tokens == [token for piece in streamed for token in piece.tokens]
    assert alone.text == "".join(piece.text for piece in streamed)
    assert engine.generate("The quick", SamplingParams(temperature=1.2, max_tokens=20, seed=12)).tokens != alone.tokens


def test_a_seed_gives_the_same_answer_with_a_cold_and_a_warm_prefix_where_the_engine_is_deterministic():
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=24)
    prompts = [TEXT[:length] for length in (60, 110, 160)]  # one begins the next
    engine = Engine.of(tiny_model(), small_tokenizer(), deterministic=True)
    for prompt in prompts:
        cold = Engine.of(tiny_model(), small_tokenizer(), deterministic=True).generate(prompt, params)
        for _ in range(2):
            assert engine.generate(prompt, params).tokens == cold.tokens


def test_without_a_seed_answers_differ(engine):
    params = SamplingParams(temperature=1.5, top_p=1.0, max_tokens=20)
    assert engine.generate("The quick", params).tokens != engine.generate("The quick", params).tokens


def test_samples_of_one_prompt_differ_and_their_order_is_fixed(engine):
    params = SamplingParams(temperature=1.2, top_p=1.0, max_tokens=12, n=6, seed=3)
    first, second = engine.generate("The quick", params), engine.generate("The quick", params)
    assert [answer.tokens for answer in first] == [answer.tokens for answer in second]
    assert len({tuple(answer.tokens) for answer in first}) == 6


def test_more_samples_than_places_give_the_same_answers():
    params = SamplingParams(temperature=1.2, top_p=1.0, max_tokens=9, n=7, seed=3)
    expected = engine_of().generate(PROMPTS[:3], params)
    got = engine_of(max_sequences=3).generate(PROMPTS[:3], params)
    assert [[a.tokens for a in answers] for answers in got] == [[a.tokens for a in answers] for answers in expected]


def test_samples_hold_their_prompts_blocks_once(engine):
    prompt = "What does this function do? " * 6
    num_prompt_blocks = len(engine.encode(prompt)) // 16
    request = engine.request(prompt, SamplingParams(n=8, max_tokens=8, temperature=1.0, seed=0))
    engine.submit(request)
    while not request.leader.tokens:
        engine.step()
    shared = request.leader.blocks[:num_prompt_blocks]
    assert all(answer.blocks[:num_prompt_blocks] == shared for answer in request.answers)
    assert all(engine.loop.allocator.num_holders(block) == 8 for block in shared)
    used = engine.loop.allocator.num_blocks - engine.loop.allocator.num_free
    assert used <= num_prompt_blocks + 8
    engine.cancel(request)
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks


def test_the_next_turn_of_a_chat_reuses_the_last(engine):
    conversation = [{"role": "user", "content": "What does this function do? " * 5}]
    answer = engine.generate(conversation, GREEDY)
    conversation += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "Why?"}]
    request = engine.request(conversation, GREEDY)
    engine.submit(request)
    engine.step()
    before = answer.prompt_tokens // 16 * 16
    assert before > 0
    assert request.leader.num_computed - before < len(request.prompt)
    engine.cancel(request)
    blocks, _ = engine.loop.allocator.match(request.prompt)
    assert len(blocks) * 16 >= before
    engine.loop.allocator.release(blocks)


def test_a_sampled_token_has_its_log_probability(engine):
    params = SamplingParams(temperature=1.0, max_tokens=6, seed=5, logprobs=3)
    answer = engine.generate("The quick", params)
    model, ids = tiny_model_like(engine), engine.encode("The quick")
    assert [entry.token for entry in answer.logprobs] == answer.tokens
    for entry in answer.logprobs:
        with torch.inference_mode():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert entry.logprob == pytest.approx(float(expected[entry.token]), abs=1e-4)
        assert [token for token, _ in entry.top] == expected.topk(3).indices.tolist()
        ids.append(entry.token)


def test_answers_end_with_the_stop_token_the_limit_or_the_context(engine):
    short = engine.generate("The quick", SamplingParams(temperature=0, max_tokens=4))
    assert short.finish_reason == "length" and len(short.tokens) == 4
    assert short.prompt_tokens == len(engine.encode("The quick"))
    long = engine_of(max_context=40).generate("The quick", SamplingParams(temperature=0, max_tokens=1000))
    assert long.finish_reason == "length" and len(long.tokens) + long.prompt_tokens == 40
    tokens = engine.generate("The quick", GREEDY).tokens
    ended = stopping_engine(tokens[5]).generate("The quick", GREEDY)
    assert ended.finish_reason == "stop" and ended.tokens == tokens[: tokens.index(tokens[5]) + 1]


def stopping_engine(token: int) -> Engine:
    """The same model, for which one more token ends an answer."""
    return engine_of(tiny_model(eos_token_id=[token]))


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine):
    params = SamplingParams(temperature=0.8, max_tokens=60, seed=1)
    text = engine.generate("The quick", params).text
    stop = text[10:14]
    answer = engine.generate("The quick", SamplingParams(temperature=0.8, max_tokens=60, seed=1, stop=(stop,)))
    assert answer.text == text[: text.index(stop)]
    assert answer.finish_reason == "stop"
    streamed = engine.stream("The quick", SamplingParams(temperature=0.8, max_tokens=60, seed=1, stop=(stop,)))
    assert "".join(piece.text for piece in streamed) == answer.text


def test_streams_never_tear_a_character():
    tokenizer, engine = small_tokenizer(), engine_of()
    wanted = tokenizer.encode("naïve 🦙 日本")
    stream = feed(engine, wanted)
    assert "".join(stream) == "naïve 🦙 日本"
    assert not any("\ufffd" in piece for piece in stream)


def feed(engine: Engine, tokens: list[int]) -> list[str]:
    """The pieces of text of an answer that draws the given tokens."""
    pieces = []
    request = engine.request("x", SamplingParams(max_tokens=len(tokens)), lambda piece: pieces.append(piece.text))
    engine.submit(request)
    engine.loop.open_inbox()
    engine.loop.scheduler.plan()
    for token in tokens:
        engine.loop.accept(request.leader, token, None)
    return pieces


def test_leaving_a_stream_early_frees_its_blocks(engine):
    stream = engine.stream("The quick", SamplingParams(max_tokens=100))
    next(stream)
    assert engine.num_running == 1
    stream.close()
    assert engine.num_running == 0
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks


def test_a_stream_that_nobody_reads_computes_nothing(engine):
    stream = engine.stream("The quick", SamplingParams(max_tokens=100))
    assert not engine.has_work
    stream.close()
    assert not engine.has_work
    with pytest.raises(RequestError, match="max_tokens"):
        engine.stream("The quick", SamplingParams(max_tokens=0))  # refused at once all the same


def test_a_listener_that_fails_ends_its_own_request_and_no_other(engine):
    heard = []

    def fails(piece):
        heard.append(piece)
        if len(heard) == 3:
            raise ValueError("no more")

    expected = engine.generate(PROMPTS[0], GREEDY).tokens
    neighbour, mine = engine.request(PROMPTS[0], GREEDY), engine.request("q", SamplingParams(n=2, seed=1), fails)
    for request in (neighbour, mine):
        engine.submit(request)
    while engine.has_work:
        engine.step()
    assert neighbour.leader.tokens == expected and len(heard) == 3
    assert {answer.finish_reason for answer in mine.answers} == {"cancelled"}
    with pytest.raises(RuntimeError) as told:
        mine.raise_error()
    assert isinstance(told.value.__cause__, ValueError)
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks


def test_a_stream_ends_with_its_reason_and_tells_several_answers_apart(engine):
    pieces = list(engine.stream("The quick", SamplingParams(max_tokens=5, n=3, seed=0, logprobs=0)))
    answers = engine.generate("The quick", SamplingParams(max_tokens=5, n=3, seed=0))
    for index, answer in enumerate(answers):
        mine = [piece for piece in pieces if piece.index == index]
        assert [token for piece in mine for token in piece.tokens] == answer.tokens
        assert [piece.finish_reason for piece in mine] == [None] * (len(mine) - 1) + [answer.finish_reason]
        assert [entry.token for piece in mine for entry in piece.logprobs] == answer.tokens


def test_an_overlong_prompt_is_refused_with_the_counts_and_never_cut(engine):
    prompt = TEXT * 10
    count = len(engine.encode(prompt))
    with pytest.raises(RequestError, match=f"{count} tokens.*context is 256"):
        engine.generate(["fine", prompt], GREEDY)
    assert not engine.has_work


def test_a_small_cache_shortens_the_context_and_says_so(engine):
    small = engine_of(cache_bytes=2**15)
    assert small.max_context == 64
    answer = small.generate("The quick", SamplingParams(temperature=0, max_tokens=200))
    assert answer.prompt_tokens + len(answer.tokens) == 64 and answer.finish_reason == "length"
    with pytest.raises(RequestError, match="limited by the cache"):
        small.generate(TEXT, GREEDY)
    with pytest.raises(CapacityError, match="one block"):
        engine_of(cache_bytes=100)


@pytest.mark.parametrize("wrong", [[1, 2], [None], 5, [["nested"]], b"bytes"], ids=str)
def test_inputs_of_another_kind_are_refused(engine, wrong):
    with pytest.raises((RequestError, TypeError)):
        engine.generate(wrong, GREEDY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"max_tokens": 0},
        {"n": 0},
        {"n": True},
        {"seed": 2**70},
        {"stop": ("",)},
        {"stop": ("",)},
        {"logprobs": 21},
        {"temperature": "warm"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(engine, wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        engine.generate("The quick", SamplingParams(**wrong))


def test_malformed_conversations_are_refused(engine):
    for messages in ([{"role": "wizard", "content": "x"}], [{"role": "user", "content": 3}]):
        with pytest.raises(DataError):
            engine.generate(messages, GREEDY)


def test_unknown_token_ids_are_refused(engine):
    with pytest.raises(RequestError, match="999999"):
        engine.request([1, 999999], GREEDY)


def test_several_threads_share_one_engine(engine):
    expected = [answer.tokens for answer in engine.generate(PROMPTS, GREEDY)]
    got = {}

    def ask(number):
        got[number] = engine.generate(PROMPTS[number], GREEDY).tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[number] for number in range(len(PROMPTS))] == expected


def test_engines_in_threads_leave_the_number_of_cores_as_it_was():
    """Small steps run on one core; a thread that begins meanwhile must not take that for the usual number."""
    before, seen = torch.get_num_threads(), []

    def ask(engine):
        for _ in range(10):
            engine.generate("q", SamplingParams(max_tokens=3))
        seen.append(torch.get_num_threads())

    try:
        torch.set_num_threads(3)
        for _ in range(5):
            threads = [threading.Thread(target=ask, args=(engine_of(),)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert set(seen) == {3} and torch.get_num_threads() == 3
        after = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        after.start()
        after.join()
        assert seen[-1] == 3
    finally:
        torch.set_num_threads(before)


def test_a_failed_step_ends_its_requests_and_leaves_a_working_engine(monkeypatch):
    engine = engine_of()
    expected = engine.generate("The quick", GREEDY).tokens
    run = engine.loop.runner.run
    monkeypatch.setattr(engine.loop.runner, "run", lambda plan: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.generate(PROMPTS, GREEDY)
    monkeypatch.setattr(engine.loop.runner, "run", run)
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks
    assert engine.generate("The quick", GREEDY).tokens == expected


@pytest.mark.parametrize(
    "options",
    [{"max_sequences": 0}, {"max_prompt_tokens": 0}, {"max_context": 0}, {"max_context": -5}, {"cache_dtype": "int4"}],
)
def test_options_that_mean_nothing_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Engine.of(tiny_model(), small_tokenizer(), **options)


@pytest.mark.parametrize("options", [{"quantize": "int3"}, {"device": "meta"}, {"device": "banana"}])
def test_devices_and_schemes_that_there_are_not_are_refused_by_name(options, tmp_path):
    save(tiny_model(), tmp_path, tokenizer=small_tokenizer())
    with pytest.raises(ConfigError, match=next(iter(options))):
        Engine(tmp_path, **options)


def test_a_request_cancelled_before_it_is_queued_stays_ended_and_disturbs_nobody():
    engine, pieces = Engine.of(tiny_model(), small_tokenizer()), []
    few = SamplingParams(temperature=0, max_tokens=10)
    expected = engine.generate(PROMPTS[0], few).tokens
    gone = engine.request(PROMPTS[1], few, pieces.append)
    engine.cancel(gone)
    engine.submit(gone)
    assert engine.generate(PROMPTS[0], few).tokens == expected
    assert gone.finished and [piece.finish_reason for piece in pieces] == ["cancelled"]
    assert not engine.has_work and engine.free_share == 1


def test_cancelled_requests_in_any_order_lose_no_block():
    engine = engine_of(max_sequences=5, max_prompt_tokens=16, cache_bytes=2**19)
    order = torch.Generator().manual_seed(0)
    open_requests: list[Request] = []
    for _ in range(150):
        if torch.rand((), generator=order) < 0.5:
            prompt = PROMPTS[int(torch.randint(len(PROMPTS), (), generator=order))]
            count = int(torch.randint(1, 5, (), generator=order))
            request = engine.request(prompt, SamplingParams(max_tokens=7, n=count, seed=0))
            engine.submit(request)
            open_requests.append(request)
        if open_requests and torch.rand((), generator=order) < 0.3:
            engine.cancel(open_requests.pop(int(torch.randint(len(open_requests), (), generator=order))))
        engine.step()
        scheduler = engine.loop.scheduler
        assert scheduler.num_reserved_blocks == sum(answer.reserved_blocks for answer in scheduler.running)
        assert 0 <= scheduler.num_reserved_blocks <= engine.loop.allocator.num_free
    while engine.has_work:
        engine.step()
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks
    assert all(request.finished for request in open_requests)


def test_an_engine_around_a_model_in_training_follows_its_weights():
    model = tiny_model()
    engine = engine_of(model)
    assert engine.model.model.layers[0].mlp.gate_proj.weight.data_ptr() == (
        model.model.layers[0].mlp.gate_proj.weight.data_ptr()
    )
    assert model.model.layers[0].self_attn.attend is not paged_attention


def test_reward_models_and_foreign_tokenizers_are_refused(tmp_path):
    save(as_reward_model(tiny_model(), seed=0), tmp_path / "reward", small_tokenizer())
    with pytest.raises(CheckpointError, match="reward model"):
        Engine(tmp_path / "reward")
    save(tiny_model(vocab_size=512), tmp_path / "small", small_tokenizer())
    with pytest.raises(CheckpointError, match="do not belong together"):
        Engine(tmp_path / "small")
    with pytest.raises(CheckpointError):
        Engine(tmp_path / "nothing")


def test_a_checkpoint_on_disk_gives_the_same_answers_as_the_model_in_memory(tmp_path, engine):
    save(tiny_model(), tmp_path / "run" / "checkpoint", small_tokenizer())
    opened = herd.Engine(tmp_path / "run")
    assert opened.generate("The quick", GREEDY) == engine.generate("The quick", GREEDY)
    assert json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())["model_type"] == "llama"


def test_rows_of_the_model_that_the_tokenizer_lacks_have_no_text():
    tokenizer, engine = small_tokenizer(), engine_of(tiny_model(vocab_size=small_tokenizer().vocab_size + 9))
    spare = tokenizer.vocab_size + 5
    force = {"logit_bias": {spare: 100}, "max_tokens": 4, "temperature": 0, "logprobs": 2}
    answer = engine.generate("The quick", SamplingParams(**force))
    assert (answer.tokens, answer.text) == ([spare] * 4, "")
    assert [piece.text for piece in engine.stream("The quick", SamplingParams(**force, stop=("e",)))] == [""] * 4
    assert "".join(feed(engine, [*tokenizer.encode("na"), spare, *tokenizer.encode("ïve")])) == "naïve"


def test_an_answer_of_llama_2s_pieces_is_whole_what_it_is_in_a_stream(sentencepiece_style):
    tokenizer = open_tokenizer(sentencepiece_style)
    engine = Engine.of(tiny_model(vocab_size=tokenizer.vocab_size), tokenizer)
    for seed in range(8):
        params = SamplingParams(max_tokens=12, seed=seed, temperature=1.5, logit_bias={tokenizer.encode("the")[0]: 6})
        answer = engine.generate("The quick", params)
        assert answer.text == "".join(piece.text for piece in engine.stream("The quick", params))
        spoken = [token for token in answer.tokens if token not in tokenizer.special_ids]
        assert answer.text == b"".join(map(tokenizer.token_bytes, spoken)).decode(errors="replace")


def test_stop_ids_of_another_vocabulary_are_passed_over(tmp_path):
    save(tiny_model(), tmp_path, small_tokenizer())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [-1, 7, 128001]}))
    engine = herd.Engine(tmp_path)
    assert 7 in engine.stop_ids and not engine.stop_ids & {-1, 128001}
    assert len(engine.generate("The quick", SamplingParams(min_tokens=5, max_tokens=5)).tokens) == 5


@pytest.mark.parametrize("max_sequences", [1, 2, 256])
def test_a_context_beyond_the_trained_one_holds_for_few_answers_too(max_sequences):
    engine = engine_of(max_sequences=max_sequences, max_context=1000, cache_bytes=2**22)
    assert engine.max_context == 1000


def test_an_engine_thrown_away_in_the_middle_of_an_answer_says_nothing(monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    engine = Engine.of(tiny_model(), small_tokenizer())
    pieces = engine.stream("The quick", SamplingParams(max_tokens=50))
    next(pieces)
    engine.pieces = pieces  # they only hold each other
    del engine, pieces
    gc.collect()
    assert not complaints


def test_more_sequences_than_the_cache_has_blocks_take_no_memory():
    engine = Engine.of(tiny_model(), small_tokenizer(), cache_bytes=2**21, max_sequences=10**9)
    assert engine.generate(["a", "b"], SamplingParams(max_tokens=3))[1].tokens
    assert engine.loop.runner._tables.nbytes < 2**20
