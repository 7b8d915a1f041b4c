"""A vote among answers, and a tree of steps that goes where the score is high."""

import json

import pytest

from herd import Engine, config
from herd.errors import ConfigError
from herd.rollout.search import TreeOptions, self_consistent, tree_search
from herd.run import read_manifest
from herd.stages.rl import search
from tests.post.models import save_model, save_reward_model
from tests.rollout.models import prepared


def test_the_answer_that_most_agree_on_is_chosen_in_its_shortest_form():
    answers = ["It is 12.", "I say 7", "so 12", "nothing", "7, no: 12.0 then"]
    found = self_consistent(answers)
    assert (found.text, found.worth, found.num_answers) == ("so 12", 0.6, 5)
    assert self_consistent(["Yes, sir!", "no", "yes sir"], by="words").text == "yes sir"
    assert self_consistent(["none", "no"]).text == ""


def test_a_tree_goes_on_where_the_score_is_high(tmp_path):
    engine = Engine(prepared(tmp_path) / "start")
    prompts = [[{"role": "user", "content": f"say {number}"}] for number in range(3)]
    seen = []

    def worth(text):
        return text.count("e") - 0.01 * len(text)

    def search_by(sign):
        def score(talks):
            seen.append(len(talks))
            return [sign * worth(talk[-1]["content"]) for talk in talks]

        options = TreeOptions(expansions=12, width=3, step_tokens=4, answer_tokens=12)
        return tree_search(engine, prompts, score, options)

    high, low = search_by(1), search_by(-1)
    assert sum(worth(one.text) for one in high) > sum(worth(one.text) for one in low)
    assert max(seen) <= 9  # three trees grow together, three steps each
    assert [one.text for one in search_by(1)] == [one.text for one in high]


def settings(folder, *words):
    places = [f"checkpoint={folder / 'start'}", f"prompts={folder / 'prompts.jsonl'}", f"out={folder / 'run'}"]
    return config.load(search.SearchSettings, None, [*places, "answer_tokens=8", "step_tokens=4", *words])


def test_a_vote_makes_conversations_and_says_what_it_was_worth(tmp_path):
    run = search.run(settings(prepared(tmp_path), "samples=6", "by=words", "least=0.1"))
    figures = read_manifest(run)["figures"]
    rows = [json.loads(line) for line in (run / "conversations.jsonl").read_text().splitlines()]
    assert figures["prompts"] == 9 == figures["kept"] + figures["left_out"] and len(rows) == figures["kept"]
    assert rows and all(row["messages"][-1]["role"] == "assistant" and row["score"] >= 0.1 for row in rows)
    assert {"right", "right_alone"} <= figures.keys()


def test_a_tree_of_the_command_asks_the_reward_model(tmp_path):
    save_model(tmp_path / "start")
    reward = save_reward_model(tmp_path / "reward")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "What does mod1.open do?"}\n')
    run = search.run(settings(tmp_path, "how=tree", f"reward={reward}", "expansions=3", "width=2"))
    (row,) = [json.loads(line) for line in (run / "conversations.jsonl").read_text().splitlines()]
    assert row["source"] == "search" and row["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["how=tree"], "a tree needs `reward`"), (["by=letters"], "by must be one of"), (["temperature=0"], "above 0")],
)
def test_settings_that_cannot_be_are_refused(tmp_path, words, said):
    with pytest.raises(ConfigError, match=said):
        settings(tmp_path, *words)
