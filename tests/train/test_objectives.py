import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from herd.train.objectives import dpo, next_token, reward_pairs
from herd.types import IGNORE, Batch
from tests.train.tiny import tiny_loader, tiny_model


def batch_of(tokens, labels, **columns):
    tokens = torch.tensor(tokens)
    return Batch(
        tokens=tokens,
        labels=torch.tensor(labels),
        positions=torch.arange(tokens.shape[1]).expand_as(tokens),
        document_ids=torch.zeros_like(tokens, dtype=torch.int32),
        columns={name: torch.tensor(column) for name, column in columns.items()},
    )


class PlainHead(nn.Module):
    """Log-probabilities given directly: `hidden` holds logits."""

    def cross_entropy_sum(self, hidden, labels):
        return F.cross_entropy(hidden.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")

    def log_probs(self, hidden, ids):
        return hidden.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


def test_next_token_sums_only_labelled_places():
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 7)
    batch = batch_of([[1, 2, 3]], [[2, IGNORE, 4]])
    loss = next_token(logits, PlainHead(), batch)
    expected = -(logits.log_softmax(-1)[0, 0, 2] + logits.log_softmax(-1)[0, 2, 4])
    torch.testing.assert_close(loss.sum, expected)
    assert loss.count.item() == 2


def test_the_losses_of_the_sources_add_up_to_the_loss():
    loader, model = tiny_loader(micro_tokens=256), tiny_model()
    [batch] = loader.batches(0)
    plain = model.run(next_token, batch)
    loss = model.run(lambda *parts: next_token(*parts, sources=loader.names), batch)
    torch.testing.assert_close(loss.sum, plain.sum)
    assert set(loss.metrics) == {"loss/library", "loss/pydoc"}
    torch.testing.assert_close(sum(total for total, _ in loss.metrics.values()), plain.sum.detach())
    assert sum(count.item() for _, count in loss.metrics.values()) == plain.count.item()


def dpo_batch():
    """One pair: chosen in row 0, rejected in row 1; the last label of each is its terminator."""
    return batch_of(
        [[1, 2, 3, 4], [1, 2, 5, 6]],
        [[IGNORE, 3, 4, 6], [IGNORE, 5, 6, 6]],
        response=[[-1, 0, 0, 0], [-1, 1, 1, 1]],
        counted=[[False, True, True, False], [False, True, True, False]],
        reference=[-3.0, -2.5],
    )


def test_dpo_is_its_formula_written_out():
    torch.manual_seed(0)
    logits, batch = torch.randn(2, 4, 8), dpo_batch()
    loss = dpo(logits, PlainHead(), batch, beta=0.1, nll=0.2)
    table = logits.log_softmax(-1)
    chosen = (table[0, 1, 3] + table[0, 2, 4]).item()
    rejected = (table[1, 1, 5] + table[1, 2, 6]).item()
    margin = 0.1 * ((chosen + 3.0) - (rejected + 2.5))
    nll = -(chosen + table[0, 3, 6].item()) / 3  # per token, the terminator too
    assert loss.sum.item() == pytest.approx(math.log(1 + math.exp(-margin)) + 0.2 * nll, rel=1e-5)
    assert loss.count.item() == 1
    assert loss.metrics["margin"][0].item() == pytest.approx(margin, rel=1e-4)


def test_dpo_without_masking_is_the_loss_of_trl():
    """TRL's sigmoid loss: logits = (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)."""
    torch.manual_seed(1)
    logits, batch = torch.randn(2, 4, 8), dpo_batch()
    batch.columns["counted"] = batch.columns["response"] >= 0
    loss = dpo(logits, PlainHead(), batch, beta=0.3, nll=0.0)
    per_token = torch.gather(logits.log_softmax(-1), 2, batch.labels.clamp(min=0)[..., None]).squeeze(-1)
    policy = (per_token * (batch.labels != IGNORE)).sum(-1)
    logratios = (policy[0] - policy[1]) - (batch.columns["reference"][0] - batch.columns["reference"][1])
    torch.testing.assert_close(loss.sum, -F.logsigmoid(0.3 * logratios))


def test_ipo_is_its_formula_over_gains_per_token():
    torch.manual_seed(2)
    logits, batch = torch.randn(2, 4, 8), dpo_batch()
    loss = dpo(logits, PlainHead(), batch, beta=0.5, nll=0.0, loss="ipo")
    table = logits.log_softmax(-1)
    chosen, rejected = (table[0, 1, 3] + table[0, 2, 4] + 3.0) / 2, (table[1, 1, 5] + table[1, 2, 6] + 2.5) / 2
    assert loss.sum.item() == pytest.approx((chosen - rejected - 1).item() ** 2, rel=1e-5)


def test_formatting_tokens_get_no_gradient_from_the_preference():
    logits, batch = torch.randn(2, 4, 8, requires_grad=True), dpo_batch()
    dpo(logits, PlainHead(), batch, nll=0.0).sum.backward()
    assert logits.grad[:, 3].abs().max() == 0
    assert logits.grad[:, 1].abs().max() > 0


def test_the_reward_loss_is_its_formula_for_edited_chosen_and_rejected():
    head = nn.Linear(4, 1, bias=False)
    hidden = torch.randn(2, 5, 4)
    ends = {"edited": (0, 1), "chosen": (0, 4), "rejected": (1, 2)}
    order = [("edited", "chosen"), ("edited", "rejected"), ("chosen", "rejected")]
    better, worse = ([ends[pair[i]] for pair in order] for i in (0, 1))
    batch = batch_of([[0] * 5] * 2, [[0] * 5] * 2, better=better, worse=worse)
    loss = reward_pairs(hidden, head, batch)
    score = {name: head(hidden[place]).item() for name, place in ends.items()}
    expected = sum(math.log(1 + math.exp(score[b] - score[a])) for a, b in order)
    assert loss.sum.item() == pytest.approx(expected, rel=1e-5)
    assert loss.count.item() == 3
    assert loss.metrics["accuracy"][0].item() == sum(score[a] > score[b] for a, b in order)
