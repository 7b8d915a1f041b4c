"""Rewards by name: an answer, checks of form, unit tests in the sandbox, and whether it is an answer at all."""

import pytest

from herd.errors import ConfigError, DataError, SandboxError
from herd.rollout.rewards import open_reward
from herd.rollout.sample import Sample
from herd.rollout.watch import WINDOW, Watch
from herd.sandbox import strongest


def said(text, tokens=(1, 2, 3)):
    return Sample(
        [0], [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}], [*tokens], [True] * len(tokens)
    )


def test_an_answer_is_compared_by_the_scorer_that_is_named():
    row, texts = {"prompt": "6 * 7", "answer": "42"}, ["It is 42.", "41, or 42, no: 43", "none"]
    found = open_reward("answer").reward([row] * 3, [said(text) for text in texts])
    assert found == [1.0, 0.0, 0.0]
    assert open_reward("answer", scorer="contains").reward([row] * 3, [said(text) for text in texts]) == [1.0, 1.0, 0.0]
    with pytest.raises(DataError, match="without an `answer`"):
        open_reward("answer").reward([{"prompt": "6 * 7"}], [said("42")])


def test_checks_give_their_share_or_all_or_nothing():
    row = {"prompt": "q", "instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    samples = [said('"so it is"'), said("so it is"), said("so, it is")]
    assert open_reward("checks").reward([row] * 3, samples) == [1.0, 0.5, 0.0]
    assert open_reward("all_checks").reward([row] * 3, samples) == [1.0, 0.0, 0.0]


def test_unit_tests_run_in_the_sandbox_and_leaving_early_does_not_pass():
    row = {"prompt": "q", "tests": "assert double(4) == 8"}
    texts = ["```python\ndef double(x):\n    return 2 * x\n```", "def double(x):\n    return x", "exit()"]
    try:
        judge = open_reward("tests", sandbox=strongest())
        assert judge.reward([row] * 3, [said(text) for text in texts]) == [1.0, 0.0, 0.0]
    except SandboxError as error:
        pytest.skip(str(error))


def test_what_is_no_answer_is_not_sound():
    judge = open_reward("sound")
    row = {"prompt": "Tell me all about the green bees."}
    texts = ["They are small.", "", "...", "Tell me all about the green bees"]
    assert judge.reward([row] * 4, [said(text) for text in texts]) == [1.0, 0.0, 0.0, 0.0]
    assert judge.reward([row], [said("no no no no no", [5] * 12)]) == [0.0]


def test_a_function_of_another_name_is_found_and_a_missing_one_is_told(tmp_path):
    (tmp_path / "mine.py").write_text("def strict(row, answer):\n    return 0.5\n")
    assert open_reward(f"{tmp_path}/mine.py:strict").reward([{}], [said("x")]) == [0.5]
    with pytest.raises(ConfigError, match="no function `reward`"):
        open_reward(f"{tmp_path}/mine.py")
    (tmp_path / "broken.py").write_text("def reward(:\n")
    with pytest.raises(ConfigError, match="SyntaxError"):
        open_reward(f"{tmp_path}/broken.py")


def test_the_watch_is_quiet_while_as_many_are_refused_as_at_the_start():
    watch = Watch()
    assert not any(watch.add(16, 2) for _ in range(40))


def test_the_watch_tells_of_rewarded_answers_that_are_refused_more_and_more():
    watch = Watch()
    told = [watch.add(16, min(step, 16)) for step in range(20)]
    assert not any(told[:4]) and "the reward is gamed" in told[-1] and f"the first {WINDOW}" in told[-1]
