"""Sampling in parts: deterministic, and a killed run goes on as if nothing had happened."""

import pytest

import herd.post.sampling as sampling
from herd.post.sampling import sample_answers
from herd.types import SamplingParams
from tests.post.models import save_model

PROMPTS = [[{"role": "user", "content": f"What does mod{number}.open do?"}] for number in range(10)]


@pytest.fixture(autouse=True)
def chunks_of_four_prompts(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK_ANSWERS", 12)


PARAMS = SamplingParams(temperature=1.0, max_tokens=6, n=3, seed=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "checkpoint")


def test_answers_come_in_order_n_each_and_repeat_with_the_seed(model, tmp_path):
    first = sample_answers(model, PROMPTS, PARAMS, tmp_path / "a")
    again = sample_answers(model, PROMPTS, PARAMS, tmp_path / "b")
    assert first == again
    assert [len(answers) for answers in first] == [3] * 10
    assert len({answer for answers in first for answer in answers}) > 10


def test_one_answer_a_prompt_is_a_list_of_one(model, tmp_path):
    found = sample_answers(model, ["Open the"], SamplingParams(temperature=0, max_tokens=3), tmp_path)
    assert [len(answers) for answers in found] == [1]


def test_answers_that_did_not_end_can_be_left_empty_and_are_counted(model, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    kept = sample_answers(model, PROMPTS[:2], PARAMS, tmp_path / "kept")
    assert all(answer for answers in kept for answer in answers)
    whole = sample_answers(model, PROMPTS[:2], PARAMS, tmp_path / "whole", whole_only=True)
    assert all(answer in ("", one) for pair in zip(whole, kept) for answer, one in zip(*pair))
    cut = sum(not answer for answers in whole for answer in answers)
    assert cut and f"{cut} of 6 answers did not end within 6 tokens" in capsys.readouterr().err


def test_an_interrupted_run_continues_with_the_parts_it_has(model, tmp_path, monkeypatch):
    whole = sample_answers(model, PROMPTS, PARAMS, tmp_path / "whole")
    made = []

    class Flaky(sampling.Engine):
        def generate(self, inputs, params=None):
            made.append(len(inputs))
            if len(made) == 2:
                raise KeyboardInterrupt
            return super().generate(inputs, params)

    monkeypatch.setattr(sampling, "Engine", Flaky)
    with pytest.raises(KeyboardInterrupt):
        sample_answers(model, PROMPTS, PARAMS, tmp_path / "broken")
    assert sample_answers(model, PROMPTS, PARAMS, tmp_path / "broken") == whole
    assert made == [4, 4, 4, 2]
