"""A reward model's scores: one a conversation, whatever the batch, read where the answer ends."""

import pytest
import torch

from herd.errors import CheckpointError, DataError
from herd.post.reward import RewardModel
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
