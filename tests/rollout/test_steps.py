"""Steps are worth what their endings are, and the pairs train a reward model of beginnings."""

import itertools
import json

import pytest

from herd import Engine, config
from herd.errors import ConfigError, DataError
from herd.rollout.search import TreeOptions
from herd.rollout.steps import step_pairs
from herd.stages import reward
from herd.stages.rounds import steps
from tests.rollout.models import prepared, reward_file

LETTERS = "def reward(row, answer):\n    return min(answer.count('e') / 3, 1.0)\n"


def test_the_best_step_stands_against_the_worst_and_the_next_goes_on_from_it(tmp_path):
    engine = Engine(prepared(tmp_path) / "start")
    prompts = [[{"role": "user", "content": f"say {number}"}] for number in range(4)]
    options = TreeOptions(expansions=3, width=4, step_tokens=4, answer_tokens=12)

    def worth(places, texts):
        return [min(text.count("e"), 4) / 4 for text in texts]

    found = step_pairs(engine, prompts, worth, options, completions=2, min_gap=0.1)
    assert found == step_pairs(engine, prompts, worth, options, completions=2, min_gap=0.1)
    assert found and all(one.chosen_score - one.rejected_score >= 0.1 for one in found)
    assert sum(one.chosen.count("e") for one in found) > sum(one.rejected.count("e") for one in found)
    for place in range(4):
        own = [one.chosen for one in found if one.place == place]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(own))
    assert not step_pairs(
        engine, prompts, lambda places, texts: [1.0] * len(texts), options, completions=2, min_gap=0.1
    )


def settings(folder, *words):
    places = [f"checkpoint={folder / 'start'}", f"prompts={folder / 'prompts.jsonl'}", f"out={folder / 'steps'}"]
    sizes = ["answer_tokens=12", "step_tokens=4", "width=3", "completions=2", "min_gap=0.1"]
    return config.load(steps.StepsSettings, None, [*places, *sizes, *words])


def test_pairs_of_steps_train_a_reward_model(tmp_path):
    file = reward_file(prepared(tmp_path), LETTERS)
    run = steps.run(settings(tmp_path, f"reward={file}"))
    pairs = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    assert pairs and all(pair["kind"] == "step" and pair["chosen_score"] > pair["rejected_score"] for pair in pairs)
    words = [f"checkpoint={tmp_path / 'start'}", f"pairs=[{run / 'pairs.jsonl'}]", "batch.tokens=256", "holdout=0"]
    sizes = ["batch.row_tokens=128", "batch.micro_tokens=256", "min_strength=marginally_better", "compile=off"]
    trained = config.load(reward.RewardSettings, None, [*words, *sizes, f"out={tmp_path / 'reward'}"])
    assert (reward.run(trained) / "checkpoint").is_dir()


def test_an_environment_and_steps_of_equal_worth_are_refused(tmp_path):
    file = reward_file(prepared(tmp_path), LETTERS + "def reply(row, messages):\n    return None\n")
    with pytest.raises(ConfigError, match="without an environment"):
        steps.run(settings(tmp_path, f"reward={file}"))
    file.write_text("def reward(row, answer):\n    return 0.5\n")
    with pytest.raises(DataError, match="no two steps"):
        steps.run(settings(tmp_path, f"reward={file}"))
