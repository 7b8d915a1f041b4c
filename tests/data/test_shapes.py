"""Rows in the forms in which conversations are published, written here by hand."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.data.conversations import load_conversations
from herd.data.rows import read_rows
from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.errors import DataError
from herd.tokenizer.chat import in_format
from herd.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the cat sat on the mat and asked what is the use of a hat " * 3], 540)


def read(row, notes=None):
    return talks_of(row, notes or Notes())


def spoken(row, notes=None):
    (talk,) = read(row, notes)
    return [(message["role"], message["content"]) for message in talk.messages]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learned(tmp_path, rows, tokenizer=TOKENIZER):
    """What is learned of rows, as texts."""
    sources = load_conversations(write(tmp_path / "rows.jsonl", rows), tokenizer, 512)
    found = []
    for documents in sources.values():
        for i in range(len(documents)):
            tokens = documents.tokens(i).tolist()
            trained = documents.is_trained(i, 0, len(tokens))
            kept = [token for token, on in zip(tokens, trained, strict=True) if on]
            found.append(tokenizer.decode(kept, skip_special=True))
    return found


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
QA = [("user", "q"), ("assistant", "a")]
CALL = {"name": "weather", "arguments": {"city": "Paris"}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "q", "context": "c", "response": "a", "category": "open_qa"}, [("user", "q\n\nc"), QA[1]]),
        ({"instruction": "q", "input": "i", "output": "a"}, [("user", "q\n\ni"), QA[1]]),
        ({"instruction": "q", "output": "a", "history": [["p", "b"]]}, [("user", "p"), ("assistant", "b"), *QA]),
        ({"system_prompt": "s", "question": "q", "response": "a"}, [("system", "s"), *QA]),
        ({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
         [("system", "s"), *QA]),
        ({"conversation": [{"human": "q", "assistant": "a"}]}, QA),
        ({"data": ["q", "a"]}, QA),
        ({"messages": json.dumps([USER, ANSWER])}, QA),
        ({"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]}, [("system", "s"), *QA]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}, QA),
        ({"messages": [USER, {"role": "assistant", "content": None, "refusal": "no"}]}, [QA[0], ("assistant", "no")]),
        ({"query": "q", "response": "a"}, QA),
        ({"problem": "q", "solution": "a"}, QA),
        ({"input": "q", "output": "a"}, QA),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "completion": " a"}, [QA[0], ("assistant", " a")]),
        ({"text": "### Human: q\n### Assistant: a"}, QA),
        ({"question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [0, 1]}},
         [("user", "q\n\nc"), QA[1]]),
        ({"instruction": "q", "instances": [{"input": "", "output": "a"}]}, QA),
        ({"utterances": [{"speaker": "user", "text": "q"}, {"speaker": "assistant", "text": "a"}]}, QA),
        ({"turns": ["q", "q2"], "reference_answer": ["a", "b"]}, [*QA, ("user", "q2"), ("assistant", "b")]),
    ],
)  # fmt: skip
def test_what_a_row_says_is_heard(row, expected):
    assert spoken(row) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": {
            "name": "weather", "arguments": {"city": "Paris", "unit": None}}}]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": CALL | {"arguments": {"city": "Paris", "day": None}}}]}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(CALL)}]},
        {"query": "q", "answers": json.dumps([CALL]), "tools": json.dumps([{"name": "weather"}])},
        {"context": [{"role": "user", "text": "q"}], "reward": 1.0,
         "generation": {"role": "agent", "api": {"weather": {"city": "Paris"}}}},
    ],
)  # fmt: skip
def test_a_call_of_a_function_is_one_in_every_dialect(row):
    (talk,) = read(row)
    (call,) = talk.messages[-1]["tool_calls"]
    assert call.get("function", call) == CALL


def test_nulls_that_parquet_adds_to_arguments_are_taken_out_and_counted(tmp_path):
    calls = [CALL, {"name": "clock", "arguments": {"zone": "CET"}}]
    talks = [[USER, {"role": "assistant", "content": "", "tool_calls": [call]}] for call in calls]
    pq.write_table(pa.Table.from_pylist([{"messages": talk} for talk in talks]), tmp_path / "rows.parquet")
    notes = Notes()
    found = [talk for _, row in read_rows(tmp_path / "rows.parquet") for talk in read(row, notes)]
    assert [talk.messages[1]["tool_calls"] for talk in found] == [[call] for call in calls]
    assert notes.changed.total() == 2


def test_what_stands_below_a_message_and_is_not_read_is_named():
    notes = Notes()
    read({"messages": [USER | {"annotations": [{"value": "get_menu"}], "index": 0}, ANSWER]}, notes)
    assert notes.unread == {"`annotations` of messages": 1}


def test_a_label_of_another_task_drops_no_row():
    assert spoken({"question": "q", "answer": "a", "label": False}) == QA
    assert read({"messages": [USER, ANSWER], "label": False}) == []
    assert read({"conversations": [USER, ANSWER], "kto_tag": False}) == []


def test_parallel_calls_stay_together_and_their_answers_follow():
    calls = [{"id": str(i), "type": "function", "function": CALL} for i in range(2)]
    answers = [{"role": "tool", "tool_call_id": str(i), "content": "rain"} for i in range(2)]
    row = {
        "messages": [USER, {"role": "assistant", "tool_calls": calls}, *answers, ANSWER],
        "parallel_tool_calls": True,
    }
    (talk,) = read(row)
    assert len(talk.messages[1]["tool_calls"]) == 2
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "ipython", "ipython", "assistant"]


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}])
@pytest.mark.parametrize("format_", ["llama3", "tulu"])
def test_a_message_that_is_switched_off_is_read_and_not_learned(tmp_path, off, format_):
    tokenizer = in_format(TOKENIZER, format_) if format_ == "llama3" else TOKENIZER.with_template(TULU)
    talk = [USER, {"role": "assistant", "content": "the mat"} | off, USER, {"role": "assistant", "content": "a hat"}]
    (text,) = learned(tmp_path, [{"messages": talk}], tokenizer)
    assert "a hat" in text and "mat" not in text


TULU = (
    "{%- for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{%- endif %}"
)


def test_what_is_not_learned_is_counted_and_named_once(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    rows = [
        {"prompt": "q", "completion": "the cat", "label": True},
        {"prompt": "q", "completion": "the mat", "label": False},
        {"prompt": "q", "completion": ""},
        {"prompt": "q", "completion": "a hat", "category": "hats"},
        {"messages": [USER, {"role": "assistant", "content": None}]},
        {"messages": [USER, ANSWER | {"weight": 0}]},
        {"messages": [USER, ANSWER | {"reasoning_content": "hm"}]},
    ]
    assert learned(tmp_path, rows) == ["the cat", "a hat", "a"]
    said = capsys.readouterr().err
    kinds = ["labelled as bad", "rows with an empty answer", "conversations with an empty answer"]
    for words in [*kinds, "nothing switched on to learn", "`category`", "`reasoning_content` of messages"]:
        assert said.count(f"{words} (1)") == 1, words


def test_what_a_template_writes_is_not_named_as_unread(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    thinking = TULU.replace("message.content", "(message.reasoning_content or '') + message.content")
    rows = [{"messages": [USER, ANSWER | {"reasoning_content": "the cat"}]}]
    assert "the cat" in learned(tmp_path, rows, TOKENIZER.with_template(thinking))[0]
    assert "reasoning_content" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "<|im_start|>user\nq<|im_end|>", "completion": "a"}, "rendered already .*im_start"),
        ({"prompt": "<s>[INST] q [/INST]", "completion": "a"}, "rendered already"),
        ({"chosen": "a", "rejected": "b", "prompt": "q"}, "preference pair"),
        ({"message_id": "1", "parent_id": None, "text": "q", "role": "prompter"}, "one message of a tree"),
        ({"text": "a page"}, "raw text is for `herd pack`"),
        ({"system": "s", "messages": [{"role": "system", "content": "t"}, USER, ANSWER]}, "two system prompts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER]}, "no text"),
        ({"messages": [{"content": "q"}]}, "has no role"),
        ({"conversations": [{"from": "function_call", "value": "weather?"}]}, "no JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(row, message):
    with pytest.raises(DataError, match=message):
        read(row)


def test_of_a_tree_the_best_reply_is_taken_and_the_others_are_counted():
    def node(text, role, rank=None, replies=()):
        return {"text": text, "role": role, "rank": rank, "replies": list(replies)}

    good = node("good", "assistant", 0, [node("more", "prompter", replies=[node("well", "assistant", 0)]),
                                         node("thanks", "prompter")])  # fmt: skip
    notes = Notes()
    talks = read({"prompt": node("q", "prompter", replies=[node("bad", "assistant", 1), good])}, notes)
    texts = [[message["content"] for message in talk.messages] for talk in talks]
    assert texts == [["q", "good", "more", "well"], ["q", "good"]]
    assert notes.left_out["lower ranked replies of trees"] == 1


def test_arrays_tables_and_parquet_are_read_like_json_lines(tmp_path):
    rows = [{"instruction": 'a, "b"\nc', "output": "x" * 200_000}, {"instruction": "é", "output": "y"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.csv").write_bytes(
        ("\ufeffinstruction,output\r\n" + '"a, ""b""\nc",' + "x" * 200_000 + "\r\né,y\r\n").encode()
    )
    (tmp_path / "d.tsv").write_text('instruction\toutput\n"a, ""b""\nc"\t' + "x" * 200_000 + "\né\ty\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    for name in ("a.json", "b.json", "c.csv", "d.tsv", "e.parquet"):
        assert [row for _, row in read_rows(tmp_path / name)] == rows, name
    (tmp_path / "f.csv").write_text("a,b\n1\n")
    with pytest.raises(DataError, match=r"row 1 \(line 2\): expected 2 columns"):
        list(read_rows(tmp_path / "f.csv"))


def test_the_splits_of_a_folder_are_not_mixed(tmp_path):
    for name in ("train-00000.jsonl", "test-00000.jsonl"):
        write(tmp_path / name, [{"prompt": "q", "completion": "a"}])
    with pytest.raises(DataError, match=r"splits test, train.*train-00000"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("post-gpteacher/codegen_instruct.jsonl.gz", 4535),
        ("post-oasst/en_100_tree.jsonl.gz", 100),
        ("post-p3/instructions.jsonl.gz", 18000),
        ("post-self-instruct/seed_tasks.jsonl.gz", 175),
        ("post-self-instruct/user_oriented_instructions.jsonl.gz", 126),
        ("post-taskmaster/coffee_dialogs.jsonl.gz", 300),
        ("post-taskmaster/coffee_reward.jsonl.gz", 500),
        ("post-taskmaster/movie_reward.jsonl.gz", 270),
        ("post-mt-bench/question.jsonl.gz", 20),
    ],
)
def test_published_files_are_read_as_they_lie(shared_data, name, count):
    notes = Notes()
    talks = [talk for _, row in read_rows(shared_data / name) for talk in read(row, notes)]
    assert len(talks) >= count
    assert all(any(message["role"] == "assistant" for message in talk.messages) for talk in talks)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "q", "output": ["a", "worse"]}, QA),
        ({"turns": [USER, ANSWER]}, QA),
        ({"chat": [USER, ANSWER]}, QA),
        ({"items": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, QA),
        ({"question": "q", "passage": "p", "answer": "a"}, [("user", "q\n\np"), QA[1]]),
        ({"instruction": "q", "generation": "a"}, QA),
        ({"messages": [{"role": "Benutzer", "content": "q"}, {"role": "Assistent", "content": "a"}]}, QA),
        ({"conversations": [{"from": "用户", "value": "q"}, {"from": "助手", "value": "a"}]}, QA),
        ({"messages": [USER, ANSWER], "images": []}, QA),
    ],
)
def test_rarer_forms_of_conversations_are_read_too(row, expected):
    assert spoken(row) == expected


def test_a_message_without_loss_is_not_learned_and_further_answers_are_counted():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]
    (talk,) = read({"messages": [*turns, USER, ANSWER]})
    assert talk.trained == [False, True]
    read({"instruction": "q", "output": ["a", "b", "c"]}, notes := Notes())
    assert notes.left_out == {"further answers of a list": 2}


IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE]}, ANSWER]}, "no text (image_url)"),
        ({"contents": [{"role": "user", "parts": [{"fileData": {"fileUri": "x"}}]}]}, "no text (fileData)"),
        ({"messages": [{"role": "user", "content": "<image>q"}, ANSWER], "images": ["x.jpg"]}, "has `images`"),
        ({"prompt": "q", "completion": "a", "audio": {"path": "x.wav"}}, "has `audio`"),
        ({"question": "q", "choices": ["a", "b"], "answer": 1}, "a question with `choices`"),
    ],
)
def test_what_is_more_than_text_is_refused_by_its_name(row, named):
    with pytest.raises(DataError, match=re.escape(named)):
        read(row)
