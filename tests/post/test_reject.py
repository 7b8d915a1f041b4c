"""Rejection sampling: the highest reward wins, and what that was worth is measured by F1."""

from herd.post.reject import best_of, keep_best, selection_figures


def question(number, kind="summary"):
    messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"right {number}"}]
    return {"messages": messages, "answer": f"right {number}", "kind": kind, "name": f"n{number}", "group": "g"}


def test_the_answer_of_the_highest_reward_is_kept_and_the_first_of_equals():
    rows = best_of([question(0), question(1)], [["a", "b", "c"], ["d", "e", "f"]], [[0.1, 0.9, 0.3], [2.0, 2.0, 1.0]])
    assert [row["messages"][-1] for row in rows] == [
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "d"},
    ]
    assert [row["score"] for row in rows] == [0.9, 2.0]
    assert rows[0]["messages"][0] == {"role": "user", "content": "q0"}
    assert len(rows[0]["messages"]) == 2  # the reference answer is not among them


def test_empty_answers_are_never_kept():
    rows = best_of([question(0), question(1)], [["", "b"], ["", ""]], [[9.0, 0.0], [1.0, 1.0]])
    assert [row["messages"][-1]["content"] for row in rows] == ["b"]


def test_the_best_share_is_kept_of_each_kind():
    rows = [
        {"kind": kind, "score": float(score), "name": f"{kind}{score}"} for kind in ("a", "b") for score in range(10)
    ]
    kept = keep_best([row | {"score": row["score"] + 100 * (row["kind"] == "b")} for row in rows], 0.3)
    assert [row["name"] for row in kept] == ["a7", "a8", "a9", "b7", "b8", "b9"]
    assert keep_best(rows, 1.0) == rows
    assert keep_best([], 0.5) == []


def test_the_worth_of_a_selection_lies_between_the_mean_and_the_best():
    answers = [["right 0", "wrong", "wrong"], ["wrong", "wrong", "right 1"]]
    figures = selection_figures([question(0), question(1)], answers, [[1, 0, 0], [1, 0, 0]])
    f1 = {"f1_of_samples": 0.3333, "f1_of_chosen": 0.5, "f1_of_best": 1.0}
    gain = {"gain_prompts": 2, "gain": 0.1667}
    interval = {name: figures.pop(name) for name in ("gain_low", "gain_high")}
    assert figures == {"reward_of_samples": 0.3333, "reward_of_chosen": 1.0} | f1 | gain
    assert interval["gain_low"] < 0.1667 < interval["gain_high"]
    alike = selection_figures([question(0)], [["wrong", "wrong"]], [[1, 0]])
    assert alike["gain_prompts"] == 0 and "gain" not in alike
