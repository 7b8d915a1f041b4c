"""Rows spread over files, and parts that know whether they are sound."""

import numpy as np
import pyarrow as pa
import pytest

from herd.curate.parts import read_record, save_array, save_table, write_record
from herd.curate.spill import MAX_FILES, Spill, num_partitions
from herd.errors import CapacityError


def test_rows_come_back_by_partition_in_the_order_they_came(tmp_path):
    dtype = [("key", "<u8"), ("doc", "<i8")]
    with Spill(tmp_path / "spill", dtype, 3) as spill:
        for first in (0, 500):
            rows = np.zeros(500, dtype=dtype)
            rows["doc"] = np.arange(first, first + 500)
            spill.add(rows, rows["doc"] % 3)
        found = [rows["doc"].tolist() for rows in spill.read()]
    assert found == [list(range(p, 1000, 3)) for p in range(3)]
    assert not (tmp_path / "spill").exists()


def test_what_a_killed_process_left_is_not_read(tmp_path):
    (tmp_path / "spill").mkdir()
    (tmp_path / "spill/0000").write_bytes(b"old rows")
    with Spill(tmp_path / "spill", [("doc", "<i8")], 1) as spill:
        assert [len(rows) for rows in spill.read()] == [0]


def test_partitions_follow_from_the_memory():
    assert num_partitions(0, 64, 1000) == 1
    assert num_partitions(1000, 64, 1000) == 64
    assert num_partitions(1000, 64, 64_000 // MAX_FILES) == MAX_FILES
    with pytest.raises(CapacityError, match="give at least 250_000_000"):
        num_partitions(10**9, 64, 1000)


def test_a_record_vouches_for_its_files(tmp_path):
    table, array, record = tmp_path / "a.parquet", tmp_path / "a.npy", tmp_path / "a.json"
    save_table(pa.table({"a": [1, 2]}), table)
    save_array(np.arange(3), array)
    assert read_record(record) is None
    write_record(record, 2, [table, array], note="kept")
    assert read_record(record)["note"] == "kept"
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    assert read_record(record) is None
    array.unlink()
    assert read_record(record) is None
    record.write_text('{"rows": 2, "fil')
    assert read_record(record) is None
