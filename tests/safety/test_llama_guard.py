"""A language model as guard: its first word's probability, and the policy in its prompt."""

import pytest
import torch

from herd.config import load
from herd.formats.checkpoint import save
from herd.infer.engine import Engine
from herd.safety.llama_guard import LlamaGuard, talk_of
from herd.safety.opened import open_any_guard
from herd.safety.policy import Policy
from herd.tokenizer.guard import render_guard
from tests.infer.models import small_tokenizer, tiny_model

TOKENIZER = small_tokenizer()
HATE = {"name": "Hate", "scope": "slurs", "on": ["input"]}
POLICY = load(Policy, values={"categories": {"S1": {"name": "Violence"}, "S10": HATE}})


def model_that_says(word):
    """A random model with a strong wish to begin with a word."""
    model = tiny_model(tie_word_embeddings=False, max_position_embeddings=2048, eos_token_id=list(TOKENIZER.stop_ids))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 50
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[TOKENIZER.encode(word)[0], 0] = 3
    return model


def test_the_probability_is_that_of_the_first_word():
    model = model_that_says("unsafe")
    guard = LlamaGuard(Engine.of(model, TOKENIZER), POLICY)
    verdict = guard.judge(["hello"], "output")[0]
    names = {"S1": "Violence"}  # hate does not count there
    prompt = render_guard(TOKENIZER, [{"role": "assistant", "content": "hello"}], categories=names).tokens
    with torch.inference_mode():
        logits = model(torch.tensor([prompt]))[0, -1].float()
    assert verdict.probability == pytest.approx(float(logits.softmax(0)[TOKENIZER.encode("unsafe")[0]]), abs=1e-3)
    assert verdict.flagged and verdict.where == "output"
    assert not LlamaGuard(Engine.of(model_that_says("safe"), TOKENIZER), POLICY).judge(["hello"])[0].flagged


def test_what_does_not_count_is_not_asked_for():
    guard = LlamaGuard(Engine.of(model_that_says("unsafe"), TOKENIZER), POLICY)
    assert not guard.judge(["hello"], "output", categories=["Hate"])[0].flagged
    assert guard.judge_together(["one", "two"]).reading == "joined"


def test_a_row_becomes_a_conversation_that_can_be_learned_from(tmp_path):
    talk = talk_of("kill them", "input", {"S10", "S1"}, POLICY)
    assert talk["messages"][1]["content"] == "unsafe\nS1,S10"
    assert "S10: Hate.\nslurs" in talk["messages"][0]["content"] and "User: kill them" in talk["messages"][0]["content"]
    assert talk_of("hello", "output", set(), POLICY)["messages"][1]["content"] == "safe"


def test_a_checkpoint_is_opened_as_a_guard(tmp_path):
    save(model_that_says("unsafe"), tmp_path / "model", TOKENIZER)
    guard = open_any_guard(tmp_path / "model")
    assert isinstance(guard, LlamaGuard) and "S14" in guard.labels
