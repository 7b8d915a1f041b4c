"""What DPO does beside its margin is told, and warned of where it is clear."""

from herd.post.watch import answers_now, drift_of_answers, drift_of_likelihoods, lengths_of_pairs, refuses
from herd.tokenizer.chat import render
from tests.post.models import small_tokenizer, tiny_model


def test_refusals_are_told_by_their_first_words():
    assert all(
        map(refuses, ["I’m sorry, but no.", "I cannot help with that.", "I do not know that name.", "As an AI, I"])
    )
    assert not any(map(refuses, ["It opens a file.", "", "It says that one does not. " * 9 + "I cannot."]))


def test_answers_that_grow_or_refuse_more_are_warned_of_and_small_changes_are_not():
    before = [f"one two three four {number}" for number in range(20)]
    figures, warnings = drift_of_answers(before, [text + " and much more of it" for text in before])
    assert (figures["answer_words_before"], figures["answer_words_after"]) == (5.0, 10.0)
    assert len(warnings) == 1 and "longer" in warnings[0]
    assert drift_of_answers(before, before)[1] == []
    _, warnings = drift_of_answers(before, ["I do not know that name" if n % 2 else before[n] for n in range(20)])
    assert [warning for warning in warnings if "refuses more: 50%" in warning]


def test_chosen_responses_that_become_less_likely_are_warned_of():
    figures, warnings = drift_of_likelihoods({"chosen_reward": -0.5, "rejected_reward": -2.0}, beta=0.1)
    assert figures == {"chosen_gain_nats": -5.0, "rejected_gain_nats": -20.0}
    assert "less likely" in warnings[0]
    assert drift_of_likelihoods({"chosen_reward": 0.1, "rejected_reward": -2.0}, beta=0.1)[1] == []


def test_pairs_of_unequal_length_are_warned_of():
    assert "longer" in lengths_of_pairs([20 + n for n in range(9)], [10 + n % 3 for n in range(9)])[1][0]
    assert lengths_of_pairs([10, 12, 14], [11, 11, 14])[1] == []


def test_a_model_in_memory_answers_as_it_is_now():
    prompt = render(small_tokenizer(), [{"role": "user", "content": "What does it do?"}], generation_prompt=True).tokens
    texts = answers_now(tiny_model(), small_tokenizer(), [prompt] * 2, 6)
    assert len(texts) == 2 and texts[0] == texts[1]
