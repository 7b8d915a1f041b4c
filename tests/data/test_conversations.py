import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.data.conversations import load_conversations
from herd.data.loader import PackedLoader, Phase
from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.errors import DataError
from herd.tokenizer.template import TEMPLATES
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import IGNORE

TOKENIZER = Tokenizer.train(["the cat sat on the mat and asked what is the use of a hat " * 3], 540)
CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "what is a hat"},
    {"role": "assistant", "content": "the use of the cat"},
    {"role": "user", "content": "and a mat"},
    {"role": "assistant", "content": "what sat"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_and_their_stop_tokens_are_learned_and_nothing_else(tmp_path):
    sources = load_conversations(write(tmp_path / "c.jsonl", [{"messages": CHAT}] * 3), TOKENIZER, 128)
    loader = PackedLoader(sources, [Phase(batch_tokens=128, row_tokens=128, mixture={"conversations": 1.0})])
    batch = next(loader.epoch())
    learned = batch.labels[0][batch.labels[0] != IGNORE].tolist()
    answers = [TOKENIZER.encode(text) for text in ("the use of the cat", "what sat")]
    one = [token for answer in answers for token in (*answer, TOKENIZER.eot_id)]
    assert learned == one * (len(learned) // len(one))
    assert learned.count(TOKENIZER.eot_id) >= 2


def test_no_conversation_sees_another_in_its_row(tmp_path):
    sources = load_conversations(write(tmp_path / "c.jsonl", [{"messages": CHAT}] * 4), TOKENIZER, 256)
    loader = PackedLoader(sources, [Phase(batch_tokens=256, row_tokens=256, mixture={"conversations": 1.0})])
    batch = next(loader.epoch())
    begins = (batch.tokens[0] == TOKENIZER.bos_id).nonzero().squeeze(1)
    assert len(begins) > 1
    assert batch.positions[0, begins].tolist() == [0] * len(begins)
    assert len(batch.document_ids[0, begins].unique()) == len(begins)


def test_parquet_gzip_and_folders_are_read_like_json_lines(tmp_path):
    rows = [{"messages": CHAT, "source": "a"}, {"messages": CHAT[1:3], "source": "b"}]
    write(tmp_path / "plain.jsonl", rows)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    sources = load_conversations(tmp_path, TOKENIZER, 128)
    assert {name: len(documents) for name, documents in sources.items()} == {"a": 3, "b": 3}
    assert len({tuple(sources["a"].tokens(i).tolist()) for i in range(3)}) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
    ],
)
def test_the_common_chat_formats_are_read_as_they_are(row):
    assert talks_of(row, Notes())[0].messages == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]


def test_a_conversation_longer_than_a_row_is_left_out_never_cut(tmp_path):
    long = [{"role": "user", "content": "cat " * 300}, {"role": "assistant", "content": "hat"}]
    file = write(tmp_path / "c.jsonl", [{"messages": long}, {"messages": CHAT}])
    assert len(load_conversations(file, TOKENIZER, 128)["conversations"]) == 1
    with pytest.raises(DataError, match=r"raise batch\.row_tokens"):
        load_conversations(write(tmp_path / "d.jsonl", [{"messages": long}]), TOKENIZER, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json\n", r"c\.jsonl, row 1: not valid JSON"),
        ("[1]\n", r"row 1: expected an object"),
        ('{"text": "x"}\n', r"row 1: not a conversation: .*the row has text"),
        ('{"messages": []}\n', "no conversation to train on.*without messages"),
        ('{"messages": [{"role": "user", "content": "q"}]}\n', "no conversation to train on.*without an answer"),
        ('{"messages": 3}\n', "row 1: `messages` must be a list of messages, not a int"),
        ('{"messages": [{"role": "pope", "content": "q"}, {"role": "gpt", "content": "a"}]}\n', "row 1: .*'pope'"),
        ('{"conversations": [{"from": "dog", "value": "wuff"}]}\n', "unknown speaker 'dog'"),
        ("", "no rows"),
    ],
)
def test_a_bad_row_is_one_clear_message_with_its_place(tmp_path, text, message):
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        load_conversations(tmp_path / "c.jsonl", TOKENIZER, 128)


def test_missing_empty_and_truncated_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_conversations(tmp_path / "c.jsonl", TOKENIZER, 128)
    with pytest.raises(DataError, match="no data files"):
        load_conversations(tmp_path, TOKENIZER, 128)
    whole = gzip.compress(b'{"messages": []}\n' * 1000)
    (tmp_path / "c.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"c\.jsonl\.gz"):
        load_conversations(tmp_path / "c.jsonl.gz", TOKENIZER, 128)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="Parquet"):
        load_conversations(tmp_path / "c.parquet", TOKENIZER, 128)


def test_real_conversations_are_read(shared_data):
    sources = load_conversations(shared_data / "post-gpteacher/codegen_instruct.jsonl.gz", TOKENIZER, 4096)
    assert sum(len(documents) for documents in sources.values()) > 1000


def test_tools_that_the_template_passes_over_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    tool = {"type": "function", "function": {"name": "sit", "parameters": {"type": "object", "properties": {}}}}
    file = write(tmp_path / "c.jsonl", [{"messages": CHAT, "tools": [tool]}])
    load_conversations(file, TOKENIZER.with_template(TEMPLATES["tulu"]), 512)
    assert "`tools`, which the chat template passes over (1)" in capsys.readouterr().err
    load_conversations(file, TOKENIZER, 512)
    assert "passes over" not in capsys.readouterr().err
