"""Likelihoods of continuations: equal to a forward pass over each alone, at the price of one prompt."""

import pytest
import torch

from herd.evals.likelihood import likelihoods, row_of, tree_attention
from herd.infer.build import with_attention
from tests.post.models import tiny_model


def alone(model, prompt, continuation):
    tokens = torch.tensor([[*prompt, *continuation]])
    log_probs = model(tokens).log_softmax(-1)[0, len(prompt) - 1 : -1]
    return float(log_probs.gather(1, torch.tensor(continuation)[:, None]).sum())


def test_continuations_that_share_a_prompt_are_as_likely_as_each_alone():
    model = tiny_model(seed=3)
    asked = [([1, 2, 3, 4], [[5], [6, 7, 8], [9, 9]]), ([7] * 20, [[1, 2], [3]]), ([5], [[5, 6]])]
    rows = [row_of(prompt, [[*prompt, *one] for one in ones]) for prompt, ones in asked]
    assert [row.num_tokens for row in rows] == [10, 23, 3]  # each prompt once
    with torch.inference_mode():
        found = likelihoods(with_attention(model, tree_attention), rows)
        for (prompt, ones), ours in zip(asked, found, strict=True):
            assert [one.num_tokens for one in ours] == [len(one) for one in ones]
            assert [one.nats for one in ours] == pytest.approx([alone(model, prompt, one) for one in ones], abs=1e-4)


def test_where_a_tokenizer_joins_prompt_and_answer_only_the_answers_part_is_scored():
    row = row_of([1, 2, 3], [[1, 2, 30, 4], [1, 2, 3, 5]])
    assert row.stem == [1, 2]
    assert row.branches == [[30, 4], [3, 5]]
    assert row.skipped == [1, 1]
