"""Task sets of the `verifiers` package: their prompts are asked, their rewards judge; what is not there is told."""

import importlib.util
import sys

import pytest

from herd.errors import ConfigError
from herd.rollout.environments import Environment
from herd.run import read_metrics
from herd.stages import rl
from tests.rollout.models import prepared, settings

INSTALLED = importlib.util.find_spec("verifiers") is not None
TASKS = """
import verifiers.v1 as vf


class Data(vf.TaskData):
    wanted: str


class OneTask(vf.Task[Data]):
    @vf.reward
    async def says_it(self, trace) -> float:
        return float(self.data.wanted in trace.last_reply)

    @vf.reward(weight=0.0)
    async def is_short(self, trace) -> float:
        return float(trace.num_turns == 1)


class Digits(vf.Taskset[OneTask]):
    def load(self):
        return [OneTask(Data(prompt=f"say {n}", system_prompt="say", wanted=str(n))) for n in range(6)]


__all__ = ["Digits"]
"""


@pytest.mark.skipif(INSTALLED, reason="verifiers is installed")
def test_without_the_package_its_extra_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"pip install '.\[verifiers\]'"):
        rl.run(settings(prepared(tmp_path), "reward=verifiers:digits", "prompts=null"))


@pytest.mark.skipif(not INSTALLED, reason="the extra `verifiers` is not installed")
def test_a_task_set_gives_the_prompts_and_judges_the_answers(tmp_path, monkeypatch):
    (tmp_path / "digits_of_ours.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "digits_of_ours", raising=False)
    environment = Environment("verifiers:digits-of-ours")
    assert environment.rows(2)[1]["messages"][0] == {"role": "system", "content": "say"}
    run = rl.run(settings(prepared(tmp_path), "reward=verifiers:digits-of-ours", "prompts=null", "cut_is_wrong=false"))
    assert len(read_metrics(run)) == 4 and sum(row["reward"] for row in read_metrics(run)) > 0
    with pytest.raises(ConfigError, match="no task set of this name"):
        Environment("verifiers:nothing-of-ours")


def test_prompts_are_needed_without_an_environment_and_useless_with_one(tmp_path):
    with pytest.raises(ConfigError, match="brings its own prompts"):
        rl.run(settings(prepared(tmp_path), "reward=verifiers:digits"))
    with pytest.raises(ConfigError, match="give `prompts`"):
        rl.run(settings(tmp_path, "prompts=null"))
