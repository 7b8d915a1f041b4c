"""Likelihoods of continuations: equal to a forward pass over each alone, at the price of what they share."""

import pytest
import torch

from herd.evals.likelihood import Continuation, continuation, likelihoods, tree_attention, trees_of
from herd.infer.build import with_attention
from tests.post.models import tiny_model


def alone(model, one):
    log_probs = model(torch.tensor([one.ids])).log_softmax(-1)[0, :-1]
    found = log_probs.gather(1, torch.tensor(one.ids[1:])[:, None])[:, 0]
    return float(found[one.scored_from - 1 :].sum())


def test_continuations_that_share_a_beginning_are_as_likely_as_each_alone():
    model = tiny_model(seed=3)
    shots, generator = list(range(40, 80)), torch.Generator().manual_seed(0)
    asked = [Continuation([1, 2, 3, 4, *one], 4) for one in ([5], [6, 7, 8], [9, 9])]
    asked += [Continuation([*[7] * 20, *one], 20) for one in ([1, 2], [3])]
    asked += [Continuation([5, 5, 6], 1), Continuation([5, 5, 6], 2)]  # one within the other
    for question in range(5):  # behind the same examples
        own = [90 + question, *torch.randint(90, 200, (5,), generator=generator).tolist()]
        asked += [Continuation([*shots, *own, letter], 46 - question) for letter in (10, 11, 12)]
    with torch.inference_mode():
        found = likelihoods(with_attention(model, tree_attention), asked)
        assert [one.num_tokens for one in found] == [len(one.ids) - one.scored_from for one in asked]
        assert [one.nats for one in found] == pytest.approx([alone(model, one) for one in asked], abs=2e-4)
    sizes = sorted(len(tree.tokens) for tree in trees_of(asked))
    assert sizes == [2, 7, 21, 40 + 5 * 6]  # shared tokens stand once


def test_a_long_prompt_is_computed_once_for_all_its_choices_and_all_questions_behind_it():
    shots = [7 + place % 90 for place in range(2000)]
    asked = [Continuation([*shots, *[100 + question] * 30, letter], 2030) for question in range(3) for letter in (1, 2)]
    assert [len(tree.tokens) for tree in trees_of(asked)] == [2000 + 3 * 30]
    apart = [Continuation([1, 2, 3, 4, *[100 + number] * 10], 4) for number in range(4000)]
    sizes = [len(tree.tokens) for tree in trees_of(apart)]
    assert max(sizes) < 1000 and sum(sizes) < 4000 * 9 + len(sizes) * 4 + 1  # branches that share little do not pile up


def test_where_a_tokenizer_joins_prompt_and_answer_only_the_answers_part_is_scored():
    assert continuation([1, 2, 3], [1, 2, 30]) == Continuation([1, 2, 30], 2)
    assert continuation([1, 2, 3], [1, 2, 3, 5]) == Continuation([1, 2, 3, 5], 3)


def test_the_likeliest_tokens_are_greedy_and_no_others():
    model = tiny_model(seed=4)
    with torch.inference_mode():
        likeliest = int(model(torch.tensor([[1, 2, 3]]))[0, -1].argmax())
        other = (likeliest + 1) % 100
        asked = [Continuation([1, 2, 3, token], 3) for token in (likeliest, other)]
        found = likelihoods(with_attention(model, tree_attention), asked)
    assert [one.is_greedy for one in found] == [True, False]
