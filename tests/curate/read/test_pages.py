"""Reading pages from files of every kind, sound and damaged."""

import gzip
import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.curate.read.pages import find_files, read_pages
from herd.curate.read.warc import read_warc, warc_record
from herd.errors import DataError

PAGE = b"<html><body><p>Bees fly early.</p></body></html>"


def read(path, **options):
    counts: Counter = Counter()
    return list(read_pages(Path(path), counts, **options)), counts


def archive(number=5):
    return [warc_record(f"http://a/{i}", "2024-01-01T00:00:00Z", "text/html", PAGE + b"%d" % i) for i in range(number)]


def test_a_written_archive_is_read_back(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(b"".join(archive()))
    pages, counts = read(tmp_path / "a.warc.gz")
    assert [page.url for page in pages] == [f"http://a/{i}" for i in range(5)]
    assert pages[3].content == PAGE + b"3" and pages[3].kind == "html" and pages[3].source == "web"
    assert pages[0].date == "2024-01-01T00:00:00Z" and counts["corrupt"] == 0


def test_a_truncated_archive_gives_the_pages_before_the_break(tmp_path):
    whole = b"".join(archive())
    (tmp_path / "a.warc.gz").write_bytes(whole[: len(whole) - 150])
    pages, counts = read(tmp_path / "a.warc.gz")
    assert len(pages) == 4 and counts["corrupt"] == 1


def test_reading_goes_on_after_a_damaged_record(tmp_path):
    records = archive()
    records[1] = records[1][:60] + bytes(60) + records[1][120:]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    pages, counts = read(tmp_path / "a.warc.gz")
    assert [page.url for page in pages] == ["http://a/0", "http://a/2", "http://a/3", "http://a/4"]
    assert counts["corrupt"] >= 1


@pytest.mark.parametrize("content", [b"", b"not an archive", bytes(range(256)) * 20])
def test_files_that_are_no_archives_give_nothing(tmp_path, content):
    for name in ("a.warc.gz", "a.warc", "a.parquet", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name)[0] == []


def test_every_archive_of_a_public_collection_is_read(shared_data):
    found = {}
    for file in sorted((shared_data / "warc-samples").glob("*.warc*")):
        pages, counts = read(file)
        found[file.name] = (sum(page.kind == "html" for page in pages), counts["corrupt"])
        assert all(b"<!doctype html>" in page.content[:20].lower() for page in pages if page.kind == "html")
    assert found["example.warc.gz"] == (1, 0) and found["example-iana.org-chunked.warc"] == (1, 0)
    assert found["example-trunc.warc"] == (1, 1) and found["post-test.warc.gz"] == (0, 0)


def test_json_lines_hold_html_or_text_and_bad_lines_are_counted(tmp_path):
    rows = [{"url": "http://a", "html": "<p>a"}, {"text": "plain"}, {"other": 1}, {"path": "a.py", "content": "x = 1"}]
    lines = [json.dumps(row) for row in rows] + ["{broken", ""]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    pages, counts = read(tmp_path / "a.jsonl.gz")
    assert [page.kind for page in pages] == ["html", "text", "code"]
    assert counts["corrupt"] == 1 and counts["no html or text in the row"] == 1


def test_zstd_and_parquet_are_read(tmp_path):
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(json.dumps({"text": "bee " * 500_000}).encode() + b"\n" + json.dumps({"text": "wasp"}).encode())
    assert [len(page.content) for page in read(tmp_path / "a.jsonl.zst")[0]] == [2_000_000, 4]
    pq.write_table(pa.table({"url": ["http://a"], "html": [PAGE], "date": ["2024-05-05"]}), tmp_path / "a.parquet")
    (page,) = read(tmp_path / "a.parquet")[0]
    assert (page.content, page.kind, page.date) == (PAGE, "html", "2024-05-05")


def test_files_of_a_folder_come_in_order_and_by_kind(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/z.html", "a.txt", "c.py", "unknown.xyz", ".hidden.html"):
        (tmp_path / name).write_bytes(PAGE)
    files = find_files([tmp_path])
    assert [file.name for file in files] == ["a.txt", "z.html", "c.py"]
    assert [read(file)[0][0].kind for file in files] == ["text", "html", "code"]


def test_pages_over_the_limit_come_without_content(tmp_path):
    (tmp_path / "a.html").write_bytes(b"x" * 1001)
    ((page,), _) = read(tmp_path / "a.html", max_bytes=1000)
    assert page.content == b"" and page.num_bytes == 1001
    (tmp_path / "a.warc.gz").write_bytes(warc_record("http://a", "2024-01-01T00:00:00Z", "text/html", b"x" * 1001))
    ((page,), _) = read(tmp_path / "a.warc.gz", max_bytes=1000)
    assert page.content == b"" and page.num_bytes == 1001


def test_missing_and_unknown_paths_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        find_files([tmp_path / "none"])
    with pytest.raises(DataError, match="no file of pages"):
        find_files([tmp_path])
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(DataError, match="cannot tell what kind"):
        find_files([tmp_path / "a.xyz"])


@pytest.mark.parametrize("kind", ["text", "noise"])
def test_an_archive_in_one_gzip_member_that_is_cut_counts_as_damaged(tmp_path, kind):
    import random

    draw = random.Random(0)
    contents = [draw.randbytes(3000) if kind == "noise" else b"bee " * 700 for _ in range(8)]
    records = [warc_record(f"http://a.org/{i}", "2024", "text/html", content) for i, content in enumerate(contents)]
    whole = gzip.compress(b"".join(map(gzip.decompress, records)))
    for cut, corrupt in ((len(whole), 0), (len(whole) - 1, 1), (len(whole) - 8, 1)):
        (tmp_path / "a.warc.gz").write_bytes(whole[:cut])
        counts = Counter()
        assert len(list(read_warc(tmp_path / "a.warc.gz", counts, 10**6))) == 8
        assert counts["corrupt"] == corrupt


def noise(number):
    return [json.dumps({"url": f"http://a/{i}", "text": random.Random(i).randbytes(400).hex()}) for i in range(number)]


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_cut_json_lines_give_the_rows_before_the_break_though_all_lie_in_one_member(tmp_path, codec):
    plain = "\n".join(noise(1500)).encode()
    packed = gzip.compress(plain) if codec == "gz" else pa.compress(plain, codec="zstd", asbytes=True)
    (tmp_path / f"a.jsonl.{codec}").write_bytes(packed[: len(packed) * 2 // 3])
    pages, counts = read(tmp_path / f"a.jsonl.{codec}")
    assert 600 < len(pages) < 1100 and counts["corrupt"] == 1


def test_rows_after_a_line_without_end_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("herd.curate.read.pages._MAX_LINE_BYTES", 3_000_000)
    (tmp_path / "a.jsonl").write_text("\n".join([*noise(2), '{"text": "' + "x" * 5_000_000, "", *noise(3)]))
    pages, counts = read(tmp_path / "a.jsonl")
    assert len(pages) == 5 and counts["corrupt"] == 1


def test_rows_that_python_cannot_hold_are_counted_and_lone_surrogates_are_escaped(tmp_path):
    rows = ["[" * 100_000, json.dumps({"url": "http://\ud800/", "date": "\ud800", "text": "bees"})]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    pages, counts = read(tmp_path / "a.jsonl")
    assert [page.url for page in pages] == ["http://\\ud800/"] and counts["corrupt"] == 1


def test_a_parquet_row_with_an_impossible_date_is_counted_and_the_others_are_read(tmp_path):
    dates = pa.array([0, 10**18, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["one", "two", "three"], "date": dates}), tmp_path / "a.parquet")
    pages, counts = read(tmp_path / "a.parquet")
    assert [page.content for page in pages] == [b"one", b"three"] and counts["corrupt"] == 1
    counts = Counter(records=7)  # another file of the same part came before
    assert [page.place[-2:] for page in read_pages(tmp_path / "a.parquet", counts)] == ["#1", "#3"]


def test_a_plain_archive_that_breaks_off_is_counted(tmp_path):
    whole = gzip.decompress(b"".join(archive()))
    for cut, damaged in ((0, 0), (20, 1)):
        (tmp_path / "a.warc").write_bytes(whole[: len(whole) - cut])
        assert read(tmp_path / "a.warc")[1]["corrupt"] == damaged


def test_files_with_odd_names_are_found_and_read(tmp_path):
    names = [b"a b.html", b"a#b.html", b"q?x=1.html", b"q.html?x=1", b"c::d.html", b"bad\xff.html", b"a\nb.html"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(PAGE)
    (tmp_path / "loop.html").symlink_to("loop.html")
    pages = [page for file in find_files([tmp_path]) for page in read(file)[0]]
    assert len(pages) == len(names) and all(page.url.encode() and page.content == PAGE for page in pages)


def test_a_value_of_60_mb_that_stands_in_all_rows_is_held_once_and_its_neighbours_are_read(tmp_path):
    texts = pa.DictionaryArray.from_arrays([0] + [1] * 255, ["small", "x" * 60_000_000])
    table = pa.table({"text": texts, "url": [f"http://a/{n}" for n in range(256)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    del table
    before = pa.total_allocated_bytes()
    pages, counts = read(tmp_path / "a.parquet")
    assert [len(page.content) for page in pages] == [5] + [0] * 255 and pages[9].num_bytes == 60_000_000
    assert not counts["corrupt"] and pa.total_allocated_bytes() - before < 200_000_000


def test_gigabytes_of_blank_lines_are_passed_over_and_end(tmp_path):
    row = b'{"text": "one"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(row + b"\n" * 50_000_000 + row, 1))
    assert [len(page.content) for page in read(tmp_path / "a.jsonl.gz")[0]] == [3, 3]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(row + b"\n" * 120_000_000 + row, 1))
    pages, counts = read(tmp_path / "b.jsonl.gz")
    assert len(pages) == 1 and counts["corrupt"] == 1


def test_scripts_and_style_sheets_are_no_pages_and_a_json_document_is_said_once(tmp_path):
    kinds = ("text/javascript", "text/css", "text/html", "text/plain")
    records = [warc_record(f"http://a/{i}", "2024", kind, PAGE) for i, kind in enumerate(kinds)]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    pages, counts = read(tmp_path / "a.warc.gz")
    assert [page.kind for page in pages] == ["html", "html"] and counts["not a page: text/css"] == 1
    (tmp_path / "all.json").write_text(json.dumps({"pages": ["a"] * 100}, indent=1))
    pages, counts = read(tmp_path / "all.json")
    assert pages == [] and counts == {"records": 1, "a JSON document, not JSON lines": 1}


def test_the_time_of_an_html_file_is_not_the_date_of_its_page(tmp_path):
    (tmp_path / "a.html").write_bytes(PAGE)
    assert read(tmp_path / "a.html")[0][0].date == ""
