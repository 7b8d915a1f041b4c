"""What answers are worth: by hand, as TRL reckons it, and the gate against shaped rewards."""

import numpy as np
import pytest
import torch

from herd.rollout.advantages import advantages
from herd.train.objectives import policy_gradient
from herd.types import IGNORE, Batch

REWARDS = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
LENGTHS = np.array([[4.0, 9.0, 2.0, 7.0], [10.0, 30.0, 1.0, 60.0]])


def test_grpo_is_the_distance_from_the_mean_over_the_deviation():
    found = advantages(REWARDS, LENGTHS)
    assert found[1] == pytest.approx([1, 1, -1, -1], abs=1e-3)
    assert found[0] == pytest.approx([1.732, -0.577, -0.577, -0.577], abs=1e-3)
    assert advantages(REWARDS, LENGTHS, scale=False)[0] == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_rloo_is_the_distance_from_the_mean_of_the_others():
    assert advantages(REWARDS, LENGTHS, algorithm="rloo")[0] == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_a_bonus_for_brevity_chooses_between_right_answers_only():
    found = advantages(REWARDS, LENGTHS, scale=False, shorter=0.5)
    assert found[1][0] > found[1][1] > 0
    assert found[1][2] == found[1][3] < 0  # a short wrong answer is as wrong as a long one


@pytest.mark.parametrize("rewards", [0.0, 1.0])
def test_a_group_that_is_all_right_or_all_wrong_teaches_nothing_however_its_lengths_differ(rewards):
    same = np.full((1, 4), rewards)
    assert not advantages(same, LENGTHS[:1], shorter=0.3).any()
    ungated = advantages(same, LENGTHS[:1], shorter=0.3, gate=False)
    assert ungated.max() > 1  # the phantom: a mild bonus, blown up to a full advantage


def batch_of(advantage, sampled, fresh=True):
    shape = (1, len(advantage))
    ones = torch.ones(shape)
    columns = {"advantage": torch.tensor([advantage]), "sampled": torch.tensor([sampled]), "weight": ones}
    columns |= {"counted": ones, "fresh": torch.full(shape, fresh)}
    labels = torch.tensor([[2] * len(advantage)])
    zeros = torch.zeros(shape, dtype=torch.int64)
    return Batch(tokens=zeros, labels=labels, positions=zeros, document_ids=zeros.int(), columns=columns)


class Says:
    """A head for which every label has the log-probability that its hidden state is."""

    def log_probs(self, hidden, ids):
        return hidden[:, 0]


def test_the_ratio_is_clipped_only_where_that_makes_the_loss_worse():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    hidden = ratio.log()[None, :, None].requires_grad_(True)
    loss = policy_gradient(hidden, Says(), batch_of([1.0, 1.0, -1.0, -1.0], [0.0] * 4), clip_low=0.2, clip_high=0.2)
    assert loss.sum.item() == pytest.approx(-1.2 - 0.5 + 1.5 + 0.8)
    loss.sum.backward()
    assert (hidden.grad[0, :, 0] != 0).tolist() == [False, True, True, False]
    assert loss.metrics["clipped"] == (torch.tensor(2), torch.tensor(4))
    assert loss.metrics["max_engine_gap"][0].item() == pytest.approx(abs(np.log(0.5)))


def test_the_kl_term_is_nothing_where_policy_and_reference_agree_and_above_elsewhere():
    hidden = torch.tensor([[[-1.0], [-2.0]]])
    batch = batch_of([0.0, 0.0], [-1.0, -2.0])
    batch.columns["reference"] = torch.tensor([[-1.0, -1.0]])
    loss = policy_gradient(hidden, Says(), batch, kl=0.5)
    assert loss.sum.item() == pytest.approx(0.5 * (np.e - 2))


def test_a_batch_without_a_label_counts_nothing():
    batch = batch_of([0.0], [0.0])
    batch.labels.fill_(IGNORE)
    batch.columns["counted"].fill_(0)
    loss = policy_gradient(torch.zeros(1, 1, 1), Says(), batch)
    assert loss.sum.item() == 0 and loss.count == 0 and loss.metrics["max_engine_gap"][1] == 0
