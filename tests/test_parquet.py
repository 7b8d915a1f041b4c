"""Parquet files made to do harm: what is too large is counted, what is damaged takes nothing else along."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.parquet import Length, read_rows, whole_rows, whole_tables

WITHIN_A_GIGABYTE = """
import json, resource, sys
from collections import Counter
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
from herd.parquet import whole_rows
counts = Counter()
rows = sum(1 for _ in whole_rows(Path(sys.argv[1]), counts))
print(json.dumps([rows, counts["rows lost"]]))
"""


def read_apart(file: Path) -> tuple[int, int]:
    """How many rows are read and lost, in a process that may not have more than a gigabyte."""
    words = [sys.executable, "-c", WITHIN_A_GIGABYTE, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    rows, lost = json.loads(done.stdout)
    return rows, lost


def flat(values: pa.Array) -> pa.Array:
    return values


def listed(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(list(range(len(values) + 1)), pa.StructArray.from_arrays([values], ["content"]))


def paired(values: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([values], ["chosen"])


@pytest.mark.parametrize("make", [flat, listed, paired])
@pytest.mark.parametrize("is_dictionary", [True, False])
def test_one_huge_value_in_every_row_takes_no_memory(tmp_path, make, is_dictionary):
    if is_dictionary:
        values = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), ["x" * 70_000_000])
    else:
        values = pa.array(["x" * 1_000_000] * 256)
    table = pa.table({"text": make(values)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=is_dictionary)
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    assert read_apart(tmp_path / "a.parquet") == (0, 256)


def test_a_damaged_row_group_takes_no_other_along(tmp_path):
    table = pa.table({"text": [f"row {i} " * 50 for i in range(400)], "n": list(range(400))})
    file = tmp_path / "a.parquet"
    pq.write_table(table, file, row_group_size=100, use_dictionary=False)
    start = pq.read_metadata(file).row_group(1).column(0).data_page_offset
    data = bytearray(file.read_bytes())
    data[start : start + 200] = b"\xff" * 200
    file.write_bytes(bytes(data))
    counts: Counter[str] = Counter()
    rows = list(whole_rows(file, counts))
    assert [row["n"] for row in rows] == [*range(100), *range(200, 400)]
    assert counts["rows lost"] == 100 and counts["corrupt"] == 1


def test_a_long_value_is_known_by_its_length_and_its_row_goes_on(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b" * 1000, None], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    rows = list(read_rows(tmp_path / "a.parquet", Counter(), max_bytes=100))
    assert rows == [{"text": "a", "n": 1}, {"text": 1000, "n": 2}, {"text": None, "n": 3}]
    assert isinstance(rows[1]["text"], Length)


def test_rows_of_every_type_come_as_they_were_written(tmp_path):
    rows = [
        {"text": "a", "list": ["b", None], "deep": {"x": [{"y": "z"}]}, "bytes": b"\x00", "n": 1.5},
        {"text": None, "list": None, "deep": None, "bytes": None, "n": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows * 300), tmp_path / "a.parquet", row_group_size=77)
    assert list(whole_rows(tmp_path / "a.parquet", Counter())) == rows * 300
    large = pa.table({"text": pa.array(["a", "b"], pa.large_string()), "c": pa.array(["a", "a"]).dictionary_encode()})
    pq.write_table(large, tmp_path / "b.parquet")
    assert list(whole_rows(tmp_path / "b.parquet", Counter())) == [{"text": "a", "c": "a"}, {"text": "b", "c": "a"}]


def test_tables_hold_a_part_of_the_rows_and_none_that_is_too_long(tmp_path):
    texts = ["a", None, "x" * 70_000_000, "b" * 40, "c" * 40, "d"]
    pq.write_table(pa.table({"text": texts, "n": list(range(6))}), tmp_path / "a.parquet")
    counts: Counter = Counter()
    tables = list(whole_tables(tmp_path / "a.parquet", counts, max_bytes=50))
    assert [table["n"].to_pylist() for table in tables] == [[0, 1], [3], [4, 5]]
    assert tables[0].schema == pa.schema({"text": pa.string(), "n": pa.int64()}) and counts["rows lost"] == 1


def test_a_row_that_is_no_text_is_left_out_of_the_tables_alone(tmp_path):
    broken = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    counts: Counter = Counter()
    (table,) = whole_tables(tmp_path / "a.parquet", counts)
    assert table["text"].to_pylist() == ["a", "c"] and counts["rows lost"] == 1


def test_one_huge_value_of_64_bit_lengths_is_read_a_few_rows_at_a_time(tmp_path):
    table = pa.table({"text": pa.concat_arrays([pa.array(["x" * 20_000_000], pa.large_string())] * 60)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=True)
    del table
    assert read_apart(tmp_path / "a.parquet") == (60, 0)


def test_a_column_of_categories_that_are_numbers_is_read(tmp_path):
    codes = pa.array([1, 2, 1]).dictionary_encode()
    pq.write_table(pa.table({"n": codes}), tmp_path / "a.parquet")
    assert [row["n"] for row in whole_rows(tmp_path / "a.parquet", Counter())] == [1, 2, 1]
    assert pa.concat_tables(whole_tables(tmp_path / "a.parquet", Counter()))["n"].to_pylist() == [1, 2, 1]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.large_binary()], ids=str)
def test_a_text_of_64_bit_lengths_that_is_too_long_is_left_out(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["x" * 65_000_000, "b"], kind)}), tmp_path / "a.parquet")
    counts: Counter = Counter()
    assert len(list(whole_rows(tmp_path / "a.parquet", counts))) == 1 and counts["rows lost"] == 1
