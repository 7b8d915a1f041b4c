"""Token F1, bootstrap intervals and the baselines that know nothing."""

import numpy as np
import pytest

from herd.evals import qa


def question(name, text, answer, kind="summary"):
    return {"messages": [{"role": "user", "content": text}], "name": name, "kind": kind, "answer": answer, "group": ""}


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat", "cat sat", 1.0),  # articles do not count
        ("The cat, sat!", "cat sat", 1.0),  # nor do case and punctuation
        ("cat", "cat sat on mat", 2 * 1.0 * 0.25 / 1.25),
        ("cat cat", "cat sat", 0.5),  # a word counts as often as it stands in both
        ("os.path.join", "join", 2 * (1 / 3) / (1 + 1 / 3)),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),  # both are empty without articles
    ],
)
def test_token_f1_is_what_one_computes_by_hand(prediction, reference, expected):
    assert qa.token_f1(prediction, reference) == pytest.approx(expected)


def test_token_f1_equals_squads_script_on_plain_words():
    """The published definition, written out again over words without any punctuation."""
    words = ["return", "the", "list", "of", "names", "a", "file", "open"]
    generator = np.random.default_rng(0)
    for _ in range(200):
        left, right = (list(generator.choice(words, size=generator.integers(1, 7))) for _ in range(2))
        a, b = ([word for word in side if word not in ("a", "an", "the")] for side in (left, right))
        shared = sum(min(a.count(word), b.count(word)) for word in set(a))
        if not a or not b:
            expected = float(a == b)
        elif shared == 0:
            expected = 0.0
        else:
            precision, recall = shared / len(a), shared / len(b)
            expected = 2 * precision * recall / (precision + recall)
        assert qa.token_f1(" ".join(left), " ".join(right)) == pytest.approx(expected)


def test_the_bootstrap_interval_covers_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(1)
    samples = generator.beta(0.5, 1.0, size=(400, 60))  # skewed and bounded, like F1
    intervals = [qa.bootstrap(sample, resamples=500, seed=index) for index, sample in enumerate(samples)]
    covered = np.mean([interval.low <= 1 / 3 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98


def test_the_bootstrap_is_deterministic_and_knows_the_mean_and_its_error():
    values = np.random.default_rng(2).normal(size=500)
    first, second = qa.bootstrap(values), qa.bootstrap(values)
    assert first == second
    assert first.value == pytest.approx(values.mean())
    assert first.stderr == pytest.approx(values.std() / np.sqrt(500), rel=0.1)
    assert qa.bootstrap([]).n == 0


def test_a_paired_comparison_sees_a_small_difference_that_overlapping_intervals_hide():
    generator = np.random.default_rng(3)
    base = generator.uniform(size=200)
    better = np.clip(base + 0.03, 0, 1)
    assert qa.bootstrap(better).low < qa.bootstrap(base).high
    assert qa.paired_difference(better, base).low > 0


def test_bm25_puts_the_text_with_the_rare_shared_word_first():
    index = qa.Bm25(["what does json.dump do", "what does re.match do", "what does os.path.join do"])
    assert int(index.scores("explain json.dumps and json").argmax()) == 0
    assert int(index.scores("path").argmax()) == 2
    assert index.scores("nothing of this").max() == 0


def test_the_retrieved_answer_is_the_most_similar_others_and_never_the_questions_own():
    pool = [
        question("json.dump", "What does json.dump do?", "Write JSON to a file."),
        question("json.dump", "Explain json.dump.", "Write JSON to a file."),
        question("json.load", "What does json.load do?", "Read JSON from a file."),
        question("re.match", "What does re.match do?", "Match at the start."),
        question("json.dump", "What arguments does json.dump take?", "(obj, fp)", kind="signature"),
        question("json.load", "What arguments does json.load take?", "(fp)", kind="signature"),
    ]
    asked = [
        question("json.dump", "Tell me the purpose of json.dump", "Write JSON to a file."),
        question("json.dump", "Which arguments has json.dump?", "(obj, fp)", kind="signature"),
    ]
    assert qa.retrieved_answers(asked, pool) == ["Read JSON from a file.", "(fp)"]
    assert qa.retrieved_answers(asked, []) == ["", ""]


def test_shuffled_answers_stay_within_their_kind_and_nobody_keeps_their_own():
    asked = [question(str(number), f"q{number}", f"answer {number}") for number in range(20)]
    asked += [question(f"s{number}", f"s{number}", f"({number})", kind="signature") for number in range(5)]
    shuffled = qa.shuffled_answers(asked, seed=4)
    assert shuffled == qa.shuffled_answers(asked, seed=4)
    assert all(answer != row["answer"] for answer, row in zip(shuffled, asked))
    assert sorted(shuffled[:20]) == sorted(row["answer"] for row in asked[:20])
    assert all(answer.startswith("(") for answer in shuffled[20:])


def test_a_prompt_is_the_conversation_up_to_the_question():
    row = {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "first"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "second"},
        ]
    }
    assert [message["content"] for message in qa.prompt_of(row)] == ["one", "first", "two"]
    assert qa.question_text(row) == "two"
    assert qa.completion_prompt(row) == "Question: two\nAnswer:"


def test_a_name_that_an_answer_begins_with_earns_nothing():
    row = question("os.path.join", "What does os.path.join do?", "Join two paths.")
    said = [
        "os.path.join: Join two paths.",
        "Join two paths.",
        "os.path.join: Delete all.",
        "os.path.split: Join two paths.",
    ]
    scores = qa.f1_scores(said, [row] * 4)
    assert scores[:3] == [1.0, 1.0, 0.0]
    assert scores[3] < 1  # another name is part of a wrong answer
    assert qa.scored_part("os.path.join(a, *p)", row) == "(a, *p)"
    wanted = question("len", "Which name counts?", "len", kind="reverse")
    assert qa.f1_scores(["len", "max"], [wanted] * 2) == [1.0, 0.0]  # here the name is what is asked for
