"""What a request may ask for beyond plain sampling: penalties, biases, best-of, prompt log-probabilities, forms."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
import torch

from herd.errors import RequestError
from herd.formats.checkpoint import save
from herd.formats.vocabulary import open_tokenizer
from herd.infer.engine import Engine
from herd.infer.request import repetition
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model
from tests.infer.test_engine import tiny_model_like

PROMPT = "What does this function do? It joins paths. "
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.of(tiny_model(), small_tokenizer())


def greedy(**settings) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 24} | settings)


def next_logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = tiny_model_like(engine)(torch.tensor([ids]))[0, -1]
    return logits.clone()


# ---- penalties and biases --------------------------------------------------------------------------------------------


def test_repetition_penalty_gives_the_answer_of_transformers(engine, tmp_path):
    transformers = pytest.importorskip("transformers")
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.tensor([engine.encode(PROMPT)])
    made = theirs.generate(
        ids,
        max_new_tokens=24,
        do_sample=False,
        temperature=None,
        top_p=None,
        repetition_penalty=1.4,
        eos_token_id=sorted(engine.stop_ids),
        pad_token_id=0,
    )
    answer = engine.generate(PROMPT, greedy(repetition_penalty=1.4))
    assert answer.tokens == made[0, ids.shape[1] :].tolist()
    assert answer.tokens != engine.generate(PROMPT, greedy()).tokens


def test_frequency_and_presence_penalties_follow_their_formula(engine):
    answer = engine.generate(PROMPT, greedy(frequency_penalty=0.5, presence_penalty=0.7))
    ids, counts = engine.encode(PROMPT), {}
    for token in answer.tokens:
        logits = next_logits(engine, ids)
        for seen, count in counts.items():
            logits[seen] -= 0.5 * count + 0.7
        assert token == int(logits.argmax())
        counts[token] = counts.get(token, 0) + 1
        ids.append(token)


def test_a_bias_forces_and_forbids_tokens(engine):
    free = engine.generate(PROMPT, greedy()).tokens
    assert free[0] not in engine.generate(PROMPT, greedy(logit_bias={free[0]: -100})).tokens
    assert engine.generate(PROMPT, greedy(logit_bias={65: 100}, max_tokens=3)).tokens == [65] * 3
    with pytest.raises(RequestError, match="no token 99999"):
        engine.generate(PROMPT, greedy(logit_bias={99999: 1}))


def test_one_answers_settings_leave_its_neighbours_alone(engine):
    plain = engine.generate(PROMPT, greedy()).tokens
    requests = [engine.request(PROMPT, greedy(**s)) for s in ({}, {"presence_penalty": 2.0}, {"choice": ("yes", "no")})]
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        engine.step()
    assert requests[0].leader.tokens == plain
    assert requests[1].leader.tokens != plain


def test_no_answer_ends_before_its_least_length():
    free = Engine.of(tiny_model(), small_tokenizer()).generate(PROMPT, greedy()).tokens
    engine = Engine.of(tiny_model(eos_token_id=[free[2]]), small_tokenizer())
    assert engine.generate(PROMPT, greedy()).tokens[-1] == free[2]
    longer = engine.generate(PROMPT, greedy(min_tokens=10))
    assert len(longer.tokens) >= 10 and free[2] not in longer.tokens[:10]


# ---- several answers, log-probabilities ------------------------------------------------------------------------------


def test_best_of_returns_the_answers_of_highest_mean_log_probability(engine):
    settings = {"temperature": 1.3, "top_p": 1.0, "max_tokens": 8, "seed": 4}
    drawn = engine.generate(PROMPT, SamplingParams(n=6, logprobs=0, **settings))
    means = [sum(entry.logprob for entry in a.logprobs) / len(a.tokens) for a in drawn]
    order = sorted(range(6), key=lambda index: -means[index])
    best = engine.generate(PROMPT, SamplingParams(n=2, best_of=6, **settings))
    assert [answer.tokens for answer in best] == [drawn[index].tokens for index in order[:2]]
    pieces = list(engine.stream(PROMPT, SamplingParams(n=2, best_of=6, **settings)))
    assert [piece.text for piece in pieces] == [answer.text for answer in best]
    assert [piece.index for piece in pieces] == [0, 1] and all(piece.finish_reason for piece in pieces)


def test_a_prompts_log_probabilities_are_those_of_recomputation_however_it_is_cut(engine):
    ids = engine.encode(PROMPT * 3)
    for max_prompt_tokens in (7, 512):
        cut = Engine.of(tiny_model(), small_tokenizer(), max_prompt_tokens=max_prompt_tokens)
        cut.generate(PROMPT * 3, greedy())  # a prefix that lies in the cache must not shorten the list
        answer = cut.generate(PROMPT * 3, greedy(prompt_logprobs=2, max_tokens=2, n=2))[0]
        assert answer.prompt_logprobs[0] is None and len(answer.prompt_logprobs) == len(ids)
        for place in (1, 2, len(ids) // 2, len(ids) - 1):
            expected = next_logits(engine, ids[:place]).log_softmax(-1)
            entry = answer.prompt_logprobs[place]
            assert entry.token == ids[place]
            assert entry.logprob == pytest.approx(float(expected[ids[place]]), abs=1e-4)
            assert [token for token, _ in entry.top] == expected.topk(2).indices.tolist()
    assert engine.generate(PROMPT, greedy()).prompt_logprobs is None


def test_repetition_is_reported():
    assert repetition([1, 2, 1, 2, 1, 2], 2) == pytest.approx(0.6)
    assert repetition([1, 2, 3]) == 0.0


def test_an_answer_that_goes_in_circles_reports_it(engine):
    assert engine.generate(PROMPT, greedy(logit_bias={65: 100})).repetition > 0.9


# ---- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_every_answer_to_a_json_schema_is_valid(engine, seed):
    params = SamplingParams(temperature=1.5, top_p=1.0, max_tokens=60, seed=seed, json_schema=SCHEMA, n=3)
    for answer in engine.generate(PROMPT, params):
        value = json.loads(answer.text)
        assert set(value) == {"name", "size"} and len(value["name"]) <= 4 and 0 <= value["size"] <= 99
        assert answer.finish_reason == "stop"


def test_regex_grammar_and_choice_hold(engine):
    hot = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 40}
    text = engine.generate(PROMPT, SamplingParams(regex=r"[0-9]{3}-[a-f]{4}", **hot)).text
    assert re.fullmatch(r"[0-9]{3}-[a-f]{4}", text)
    text = engine.generate(PROMPT, SamplingParams(grammar='start: ("ab" | "cd") "!"', **hot)).text
    assert text in ("ab!", "cd!")
    for seed in range(3):
        assert engine.generate(PROMPT, SamplingParams(choice=("Köln", "ja", 'a "b"'), seed=seed, **hot)).text in (
            "Köln",
            "ja",
            'a "b"',
        )


def test_every_choice_is_taken_literally_and_there_may_be_thousands(engine):
    odd = [
        '"',
        "\\",
        "\n",
        "a\u2028b",
        "🦙",
        " ",
        "/x/",
        "$",
        "\0",
        "\x7f",
        "a|b",
        "(?i)x",
        "#",
        "[a]",
        "^",
        "{2}",
        "%",
        "a-b",
    ]
    for text in odd:
        assert engine.generate(PROMPT, SamplingParams(choice=(text,), max_tokens=20)).text == text
    many = tuple(f"c{number}" for number in range(20_000))
    assert engine.generate(PROMPT, SamplingParams(choice=many, temperature=2.0, top_p=1.0, max_tokens=20)).text in many


ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


@pytest.mark.parametrize(
    "form",
    [
        {"json_schema": {"$ref": "#"}},
        {"grammar": "start: start"},
        {"json_schema": ENDLESS},
        {"regex": "(a|aa|aaa){500,5000}b"},
    ],
    ids=str,
)
def test_forms_that_no_text_fits_or_that_are_too_large_are_refused_even_midway(engine, form):
    params = SamplingParams(max_tokens=40, **form)
    with pytest.raises(RequestError, match=f"{next(iter(form))} cannot be followed to an end"):
        engine.generate(PROMPT, params)
    with pytest.raises(RequestError, match="cannot be followed to an end"):
        list(engine.stream(PROMPT, params))
    assert not engine.has_work and engine.loop.allocator.num_free == engine.loop.allocator.num_blocks


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": 10**20, "maximum": 10**20 + 5},
        {"minimum": 2**53 + 1, "maximum": 2**53 + 1},
        {"maximum": -(10**400)},
        {"exclusiveMaximum": 2**53 + 3},
    ],
    ids=str,
)
def test_bounds_that_would_be_kept_to_only_nearly_are_refused(engine, bounds):
    schema = {"type": "array", "items": {"type": "integer"} | bounds}
    with pytest.raises(RequestError, match=r"json_schema cannot be followed: \w*imum"):
        engine.generate(PROMPT, SamplingParams(json_schema=schema))
    wide = {"type": "integer", "minimum": 0, "maximum": 10**30}  # cut to 64 bits it is still kept to
    assert 0 <= int(engine.generate(PROMPT, SamplingParams(json_schema=wide, seed=1)).text) < 2**63
    assert engine.generate(PROMPT, SamplingParams(json_schema={"const": {"minimum": 10**20}})).text


def test_forms_hold_with_a_vocabulary_of_llama_2s_pieces_too(sentencepiece_style):
    tokenizer = open_tokenizer(sentencepiece_style)
    engine = Engine.of(tiny_model(vocab_size=tokenizer.vocab_size), tokenizer)
    answer = engine.generate(PROMPT, SamplingParams(regex="[a-z]{3} (ü|日本){2}", max_tokens=40, seed=1))
    assert re.fullmatch("[a-z]{3} (ü|日本){2}", answer.text) and answer.finish_reason == "stop"
    choice = ("small", " large")
    assert engine.generate(PROMPT, SamplingParams(choice=choice, max_tokens=20)).text in choice


def test_any_json_object_is_an_empty_schema(engine):
    answer = engine.generate(PROMPT, SamplingParams(temperature=0, max_tokens=40, json_schema={}, logit_bias={0: 0}))
    assert answer.text.startswith("{")


@pytest.mark.parametrize(
    "wrong",
    [{"regex": "(["}, {"grammar": "start: missing"}, {"json_schema": {"type": "wizard"}}],
    ids=str,
)
def test_forms_that_cannot_be_followed_are_refused(engine, wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        engine.generate(PROMPT, SamplingParams(**wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"repetition_penalty": 0},
        {"presence_penalty": 3},
        {"frequency_penalty": "much"},
        {"logit_bias": {1: 1000}},
        {"logit_bias": [1]},
        {"min_tokens": 300},
        {"n": 3, "best_of": 2},
        {"prompt_logprobs": 50},
        {"json_schema": 5},
        {"choice": ("",)},
        {"regex": "a", "choice": ("a",)},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(engine, wrong):
    with pytest.raises(RequestError, match=list(wrong)[-1]):
        engine.generate(PROMPT, SamplingParams(**wrong))


@pytest.mark.parametrize("wrong", [None, 3, {"role": "user"}, b"x"], ids=str)
def test_an_input_of_no_known_kind_is_refused_with_what_is_expected(engine, wrong):
    with pytest.raises(RequestError, match="expected a string"):
        engine.generate(wrong)


# ---- beside an event loop --------------------------------------------------------------------------------------------


def test_many_coroutines_share_one_engine(engine):
    async def ask():
        answers = await asyncio.gather(*(engine.agenerate(PROMPT[:n], greedy()) for n in range(5, 12)))
        pieces = [piece async for piece in engine.astream(PROMPT, greedy())]
        return answers, "".join(piece.text for piece in pieces)

    answers, streamed = asyncio.run(ask())
    assert [a.tokens for a in answers] == [engine.generate(PROMPT[:n], greedy()).tokens for n in range(5, 12)]
    assert streamed == engine.generate(PROMPT, greedy()).text


def test_a_cancelled_coroutine_frees_its_blocks(engine):
    async def leave():
        task = asyncio.create_task(engine.agenerate(PROMPT, greedy(max_tokens=200)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    engine.step()
    assert engine.loop.allocator.num_free == engine.loop.allocator.num_blocks


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e308},
        {"temperature": 1e-300},
        {"top_p": 1e-300},
        {"top_k": 2**63 - 1},
        {"repetition_penalty": 1e-308},
        {"repetition_penalty": 1e308},
        {"seed": -(2**63)},
    ],
)
def test_settings_at_their_limits_keep_to_the_form_and_disturb_no_neighbour(extreme):
    engine = Engine.of(tiny_model(), small_tokenizer())
    plain = SamplingParams(max_tokens=12, seed=5, temperature=1.0)
    alone = engine.generate("The quick", plain).tokens
    strange = engine.request(
        "The", SamplingParams(**{"max_tokens": 12, "temperature": 1.0, "choice": ("yes", "no"), **extreme})
    )
    neighbour = engine.request("The quick", plain)
    for request in (strange, neighbour):
        engine.submit(request)
    while engine.has_work:
        engine.step()
    assert engine.text_of(strange.leader) in ("yes", "no")
    assert neighbour.leader.tokens == alone


@pytest.mark.parametrize("field", ["top_k", "max_tokens", "n", "min_tokens", "best_of"])
def test_a_number_that_no_tensor_holds_is_refused_before_it_reaches_a_batch(field):
    engine = Engine.of(tiny_model(), small_tokenizer())
    with pytest.raises(RequestError, match=field):
        engine.request("x", SamplingParams(**{field: 2**63}))
