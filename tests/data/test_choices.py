"""Preferences in the forms in which they are published, written here by hand."""

import json

import pytest

from herd.data.choices import choices_of
from herd.data.preferences import load_pairs
from herd.data.rows import read_rows
from herd.data.talks import Notes
from herd.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the cat sat on the mat and asked what is the use of a hat " * 3], 540)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


CALLING = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
RESULT = {"role": "ipython", "content": "2"}
Q, GOOD, BAD = [user("q")], [assistant("a")], [assistant("b")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, Q),
        ({"prompt": "q", "system": "s", "chosen": "a", "rejected": "b"}, [system("s"), *Q]),
        ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, [system("s"), *Q]),
        ({"prompt": "q", "chosen": Q + GOOD, "rejected": Q + BAD, "messages": Q + GOOD, "score_chosen": 8.0}, Q),
        ({"prompt": Q, "chosen": GOOD, "rejected": BAD}, Q),
        ({"messages": Q + GOOD, "rejected_response": "b"}, Q),
        ({"messages": Q + GOOD, "rejected_messages": Q + BAD}, Q),
        ({"instruction": "q", "chosen_response": "a", "rejected_response": "b"}, Q),
        ({"prompt": "q", "preferred": "a", "dispreferred": "b"}, Q),
        ({"prompt": "q", "accepted": "a", "rejected": "b"}, Q),
        ({"instruction": "q", "generations": ["b", "a"], "ratings": [1.0, 5.0]}, Q),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [0.9, 0.1]}, Q),
        ({"conversation": [{"input": "q", "output": None}], "chosen": Q + GOOD, "rejected": Q + BAD}, Q),
        ({"prompt": [system("s")], "chosen": Q + GOOD, "rejected": Q + BAD}, [system("s"), *Q]),
        ({"prompt": "q", "chosen": [user("p"), assistant("o"), *Q, *GOOD], "rejected": [
            user("p"), assistant("o"), *Q, *BAD]}, [user("p"), assistant("o"), *Q]),
        ({"chosen": "\n\nHuman: p\n\nAssistant: o\n\nHuman: q\n\nAssistant: a",
          "rejected": "\n\nHuman: p\n\nAssistant: o\n\nHuman: q\n\nAssistant: b"},
         [user("p"), assistant("o"), *Q]),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}, Q),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
          "rejected": {"from": "gpt", "value": "b"}}, Q),
        ({"input": {"messages": Q, "tools": [], "parallel_tool_calls": True}, "preferred_output": GOOD,
          "non_preferred_output": BAD}, Q),
        ({"instruction": "q", "input": "i", "response1": "b", "response2": "a", "annotator1": 2, "annotator2": 2,
          "annotator3": 1}, [user("q\n\ni")]),
        ({"input": "q", "output_1": "b", "output_2": "a", "label": 2}, Q),
        ({"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0}, Q),
        ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}, Q),
        ({"question": "q", "response_j": "a", "response_k": "b"}, Q),
        ({"instruction": "q", "completions": [{"response": "b", "overall_score": 2.0}, {
            "response": "c", "overall_score": 5.0}, {"response": "a", "overall_score": 8.5}]}, Q),
        ({"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "b", "rank": 7.0}, {
            "answer": "a", "rank": 1.0}]}, Q),
        ({"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter", "replies": [
            {"text": "b", "role": "assistant", "rank": 1, "replies": []},
            {"text": "a", "role": "assistant", "rank": 0, "replies": []}]}}, Q),
    ],
)  # fmt: skip
def test_every_published_form_gives_the_prompt_and_the_better_and_the_worse_response(row, prompt):
    notes = Notes()
    (choice,) = choices_of(row, notes)
    assert choice.prompt == prompt
    assert choice.responses == {"chosen": GOOD, "rejected": BAD}
    assert not {"`prompt`", "`instruction`", "`input`", "`system`", "`chosen`"} & notes.unread.keys()


@pytest.mark.parametrize("prompt", [{}, {"prompt": Q}, {"prompt": "q"}])
def test_all_messages_of_a_response_count_and_its_tools_are_told(tmp_path, prompt):
    chosen = [CALLING, RESULT, assistant("a")]
    repeated = [] if prompt.get("prompt") == Q else Q
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    row = prompt | {"chosen": repeated + chosen, "rejected": repeated + BAD, "tools": tools}
    (choice,) = choices_of(row, Notes())
    assert choice.prompt == Q and choice.responses["chosen"] == chosen and choice.tools == tools
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    pairs = load_pairs(tmp_path / "p.jsonl", TOKENIZER, 2048)
    tokens = pairs.documents.tokens(0).tolist()
    kept = [token for token, on in zip(tokens, pairs.documents.is_trained(0, 0, len(tokens)), strict=True) if on]
    assert '"x"' in TOKENIZER.decode(kept) and "q" not in TOKENIZER.decode(kept) and kept[-1] == TOKENIZER.eot_id
    assert '"name": "f"' in TOKENIZER.decode(tokens)


def test_what_is_no_choice_is_left_out_and_counted_and_the_rest_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"chosen": [user("q"), *GOOD], "rejected": [user("p"), *BAD]},
        {"prompt": "x", "chosen": [user("q"), *GOOD], "rejected": [user("q"), *BAD]},
        {"chosen": [*Q, assistant("o"), *Q, *GOOD], "rejected": [*Q, assistant("u"), *Q, *BAD]},
        {"instruction": "q", "response1": "a", "response2": "b", "annotator1": 0, "annotator2": 0},
        {"prompt": "q", "chosen": "a", "rejected": "b", "rationale": "it is"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_pairs(tmp_path / "p.jsonl", TOKENIZER, 256)) == 2
    said = capsys.readouterr().err
    for words in ("responses are the same (1)", "prompts differ (3)", "none is preferred (1)", "`rationale` (1)"):
        assert said.count(words) == 1, words


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("post-hh-rlhf/harmless_base_test.jsonl.gz", 2200),
        ("post-llmbar/llmbar.jsonl.gz", 326),
        ("post-pandalm/testset.jsonl.gz", 420),
        ("post-oasst/en_100_tree.jsonl.gz", 100),
    ],
)
def test_published_preferences_are_read_as_they_lie(shared_data, name, count):
    notes = Notes()
    found = [choice for _, row in read_rows(shared_data / name) for choice in choices_of(row, notes)]
    assert len(found) >= count, notes.left_out
    assert all(choice.prompt[-1]["role"] == "user" for choice in found)
    assert all(response[0]["role"] == "assistant" for choice in found for response in choice.responses.values())
