"""A reward model's scores: one a conversation, whatever the batch, read where the answer ends."""

import json

import numpy as np
import pytest
import torch

from herd.errors import CheckpointError, DataError
from herd.formats.reward import REWARD_RECORD, reward_record
from herd.post.reward import RewardModel, distribution_shift
from herd.run import atomic_write
from herd.tokenizer.chat import render
from tests.post.models import save_model, save_reward_model, small_tokenizer


def conversation(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


CONVERSATIONS = [
    conversation("What does mod1.open do?", "Open the thing."),
    conversation("What does mod1.open do?", "Open the thing with much more care than that, please."),
    conversation("Which parameters", "path"),
    conversation("Which", "mode='r' " * 9),
]


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    return RewardModel(save_reward_model(tmp_path_factory.mktemp("reward") / "checkpoint"))


def test_scores_are_read_at_the_last_token_of_each_conversation(reward):
    expected = []
    for item in CONVERSATIONS:
        tokens = torch.tensor([render(small_tokenizer(), item).tokens])
        assert tokens[0, -1] == small_tokenizer().eot_id
        with torch.no_grad():
            expected.append(reward.model(tokens)[0, -1, 0].item())
    assert reward.score(CONVERSATIONS) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == len(expected)


def test_scores_do_not_depend_on_the_batch_or_the_order(reward):
    whole = reward.score(CONVERSATIONS)
    assert reward.score(CONVERSATIONS, batch_tokens=1) == pytest.approx(whole, abs=1e-5)
    assert reward.score(CONVERSATIONS[::-1])[::-1] == pytest.approx(whole, abs=1e-5)
    assert reward.score([]) == []


def test_a_language_model_and_a_too_long_conversation_are_refused(reward, tmp_path):
    with pytest.raises(CheckpointError, match="reward model"):
        RewardModel(save_model(tmp_path / "model"))
    with pytest.raises(DataError, match="conversation 1 has"):
        reward.score([CONVERSATIONS[0], conversation("Open", "the thing " * 300)])


def test_a_template_other_than_the_one_trained_on_is_refused(tmp_path):
    folder = save_reward_model(tmp_path / "checkpoint")
    atomic_write(folder / REWARD_RECORD, json.dumps(reward_record(small_tokenizer())))
    RewardModel(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    changed = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": changed}))
    with pytest.raises(CheckpointError, match="trained in the chat template Llama 3"):
        RewardModel(folder)


def test_each_step_of_an_answer_is_scored_as_if_it_ended_there(reward):
    prompt = CONVERSATIONS[0][:1]
    found = reward.score_steps(prompt, ["Open ", "the thing."])
    assert found[1] == pytest.approx(reward.score([CONVERSATIONS[0]])[0], abs=1e-5)
    assert found[0] == pytest.approx(reward.score([conversation("What does mod1.open do?", "Open ")])[0], abs=1e-5)


def test_rewards_that_moved_are_told_apart_from_those_that_differ_by_chance():
    draw = np.random.default_rng(0)
    before, same, worse = (draw.normal(mean, 1, (120, 4)).tolist() for mean in (0, 0, -0.5))
    alike, moved = distribution_shift(before, same), distribution_shift(before, worse)
    assert alike["reward_answers"] == 480
    assert alike["reward_change_low"] < 0 < alike["reward_change_high"]
    assert alike["reward_distance"] < alike["reward_distance_by_chance"]
    assert moved["reward_change_high"] < 0 and moved["reward_distance"] > moved["reward_distance_by_chance"]
