"""Files and folders of rows as programs leave them: encodings, delimiters, nests of JSON, folders of `datasets`."""

import gzip
import json

import pyarrow as pa
import pytest

from herd.data.rows import RowSettings, read_rows
from herd.errors import DataError
from herd.tuning.reading import by_split

ROWS = [{"text": "a, b; c", "label": "x"}, {"text": "é", "label": "y"}]


def rows_of(path):
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_is_read_whatever_parts_its_columns_and_however_it_is_encoded(tmp_path, delimiter, encoding):
    lines = [f"text{delimiter}label", f'"a, b; c"{delimiter}x', f"é{delimiter}y"]
    (tmp_path / "t.csv").write_bytes("\r\n".join(lines).encode(encoding))
    assert rows_of(tmp_path / "t.csv") == ROWS


def test_json_lines_in_utf_16_and_an_object_around_the_rows_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    text = "\n".join(map(json.dumps, ROWS))
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-16"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode("utf-16")))
    (tmp_path / "c.json").write_text(json.dumps({"version": "1", "data": ROWS}, indent=2))
    (tmp_path / "d.json").write_text(json.dumps(ROWS, separators=(",", ":")))
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.json"):
        assert rows_of(tmp_path / name) == ROWS, name
    assert "the rows are its `data`; not read: version" in capsys.readouterr().err
    talk = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "e.json").write_text(json.dumps(talk, indent=2))
    assert rows_of(tmp_path / "e.json") == [talk]
    (tmp_path / "f.json").write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(DataError, match=r"several lists \(train, test\)"):
        rows_of(tmp_path / "f.json")


def test_quotes_of_tables_are_never_guessed_in_silence(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"So it began\tx\nhe said "no"\ty\n')
    assert rows_of(tmp_path / "a.tsv") == [
        {"text": '"So it began', "label": "x"}, {"text": 'he said "no"', "label": "y"}
    ]  # fmt: skip
    (tmp_path / "b.csv").write_text('text,label\n"he said \\"no\\" twice",x\n')
    with pytest.raises(DataError, match=r"after line 1: .*written twice"):
        rows_of(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_bytes("text,label\né,x\n".encode("cp1252"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        rows_of(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="two columns are called 'text'"):
        rows_of(tmp_path / "d.csv")


def save_to_disk(folder, rows):
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}, indent=2))
    (folder / "state.json").write_text(json.dumps({"_split": None}, indent=2))


def test_what_datasets_saves_to_disk_is_read_and_its_splits_are_kept_apart(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    save_to_disk(tmp_path / "one", rows)
    assert rows_of(tmp_path / "one") == rows
    for name in ("train", "validation", "test"):
        save_to_disk(tmp_path / "all" / name, rows)
    (tmp_path / "all/dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    with pytest.raises(DataError, match="splits test, train, validation"):
        rows_of(tmp_path / "all")
    learned, judged = by_split([tmp_path / "all"])
    assert [path.parent.name for path in (*learned, *judged)] == ["train", "test"]
    (tmp_path / "one/data-00000-of-00001.arrow").write_bytes(b"ARROW1 no")
    with pytest.raises(DataError, match="cannot be read as Arrow"):
        rows_of(tmp_path / "one")


def test_files_in_folders_below_are_read_where_the_folder_has_none_else_named(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "settings.json").write_text('{"a": 1}')
    assert rows_of(tmp_path) == ROWS[:1]
    (tmp_path / "own.jsonl").write_text(json.dumps(ROWS[1]))
    assert rows_of(tmp_path) == ROWS[1:]
    assert f"its own files are read, not those in {tmp_path / 'data'}" in capsys.readouterr().err


def test_capital_letters_of_columns_do_not_hide_them(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"Question": "q", "Response": "a", "human_ref_A": "x"}, {"INSTRUCTION": "i", "A": 1, "a": 2}]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = [list(row) for _, row in read_rows(file, RowSettings())]
    assert found == [["question", "response", "human_ref_A"], ["instruction", "A", "a"]]
