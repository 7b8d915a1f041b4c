"""Archives with damages in them: what is sound is read, and each damage counts once."""

import gzip
import random
import zlib
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from herd.curate.read.pages import read_pages
from herd.curate.read.warc import read_warc, warc_record

BODY = b"<html><body>Bees fly early, whatever the heading of their page may say.</body></html>"


def pages(folder, data, suffix=""):
    (folder / f"a.warc{suffix}").write_bytes(data)
    counts: Counter = Counter()
    return list(read_warc(folder / f"a.warc{suffix}", counts, 10**6)), counts


def packed(plain, suffix):
    if suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(plain)
        return sink.getvalue().to_pybytes()
    return gzip.compress(plain, mtime=0) if suffix == ".gz" else plain


def answer(headers, body):
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + headers + b"\r\n" + body
    head = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/\r\nContent-Type: application/http\r\n"
        b"Content-Length: %d\r\n\r\n"
    )
    return head % len(http) + http + b"\r\n\r\n"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), damages=st.integers(0, 6))
@example(seed=225, damages=5)  # a cut frame of stored bytes, which runs on into the next
def test_every_sound_record_is_read_after_any_number_of_damages(tmp_path_factory, suffix, seed, damages):
    draw = random.Random(seed)
    plain = [
        gzip.decompress(warc_record(f"http://a/{i}", "2024", "text/html", draw.randbytes(draw.randrange(100, 900))))
        for i in range(30)
    ]
    records = [packed(record, suffix) for record in plain]
    places, offset = {}, 0
    bad = draw.sample(range(0, 30, 2), damages)  # the record after a damaged one is sound
    for i in bad:
        if suffix == "":  # what no checksum guards: the head, and the length
            records[i] = records[i].replace(b"Content-Length: ", draw.choice([b"Content-Length: 9", b"Content-Len"]))
        elif draw.random() < 0.5:
            records[i] = records[i][: draw.randrange(30, len(records[i]) - 20)]  # cut
        else:
            middle = draw.randrange(20, len(records[i]) - 20)
            records[i] = records[i][:middle] + draw.randbytes(12) + records[i][middle + 12 :]
    for i, record in enumerate(records):
        places[f"http://a/{i}"] = offset
        offset += len(record)
    found, counts = pages(tmp_path_factory.mktemp("a"), b"".join(records), suffix)
    read = {page.url: page.offset for page in found}
    sound = {url: place for url, place in places.items() if int(url.rpartition("/")[2]) not in bad}
    assert {url: place for url, place in read.items() if url in sound} == sound
    if suffix != ".zst":  # its frames have no checksum here
        assert counts["corrupt"] == damages
        assert read == (places if suffix == "" else sound)  # up to the next head, where only the length is wrong


@pytest.mark.parametrize(
    ("headers", "body", "lies"),
    [
        (b"Content-Encoding: gzip\r\n", BODY, 1),
        (b"Content-Encoding: deflate\r\n", BODY, 1),
        (b"Content-Encoding: br\r\n", BODY, 1),
        (b"Content-Encoding: none\r\n", BODY, 1),
        (b"Transfer-Encoding: chunked\r\n", BODY, 1),
        (b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", gzip.compress(BODY, mtime=0), 1),
        (b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), 1),
        (b"Content-Encoding: gzip\r\n", gzip.compress(BODY, mtime=0), 0),
        (b"Content-Encoding: deflate\r\n", zlib.compress(BODY), 0),
        (b"Content-Encoding: deflate\r\n", zlib.compress(BODY, wbits=-15), 0),
        (b"", BODY, 0),
    ],
)
def test_bodies_are_read_as_they_are_whatever_their_headers_say(tmp_path, headers, body, lies):
    records = [gzip.compress(answer(headers, body)), gzip.compress(answer(b"", BODY))] * 3
    found, counts = pages(tmp_path, b"".join(records), ".gz")
    assert [page.content for page in found] == [BODY] * 6
    assert counts["body not encoded as it says"] == 3 * lies and counts["corrupt"] == 0


def test_a_sound_members_bounds_are_believed_where_its_head_lies_about_its_length(tmp_path):
    records = []
    for lie in (0, -30, -1, 5, 1000):
        plain = gzip.decompress(warc_record(f"http://a/{lie}", "2024", "text/html", BODY))
        records.append(gzip.compress(plain.replace(b"Length: %d" % len(BODY), b"Length: %d" % (len(BODY) + lie))))
    records.insert(3, gzip.compress(plain.replace(b"Content-Length: %d\r\n" % len(BODY), b"")))
    found, counts = pages(tmp_path, b"".join(records), ".gz")
    assert [page.content for page in found] == [BODY] * 6
    assert counts["length of a record not as declared"] == 5 and counts["corrupt"] == 0


@pytest.mark.parametrize("lie", [b"7", b"150", b"99999999", b"-3", b"many"])
def test_a_plain_record_of_a_wrong_length_is_read_up_to_the_next_head(tmp_path, lie):
    plain = [gzip.decompress(warc_record(f"http://a/{i}", "2024", "text/html", BODY)) for i in range(4)]
    wrong = plain[1].replace(b"Length: %d" % len(BODY), b"Length: " + lie)
    found, counts = pages(tmp_path, plain[0] + wrong + plain[2] + plain[1][:-60] + plain[3], "")
    assert [page.url[-1] for page in found] == ["0", "1", "2", "3"] and [page.content for page in found] == [BODY] * 4
    assert counts["corrupt"] == 2 and counts["length of a record not as declared"] == 1


def test_what_is_no_record_costs_none_of_those_around_it(tmp_path):
    first, second = (gzip.decompress(warc_record(f"http://a/{i}", "2024", "text/html", BODY)) for i in range(2))
    noise, packed = b"no record\r\n" * 300, [gzip.compress(data) for data in (first, BODY, second)]
    for data, suffix in (
        (first + noise + second, ""),
        (b"\xef\xbb\xbf" + first + second, ""),
        (
            first.replace(b"\r\n", b"\n")
            + second.replace(b"\r\n", b"\n").replace(b"Content-Length: ", b"content-length :"),
            "",
        ),
        (b"".join(packed), ".gz"),
        (noise + packed[0] + packed[2], ".gz"),
        (packed[0] + bytes(900) + packed[2], ".gz"),
        (gzip.compress(first[:40]) + gzip.compress(first[40:]) + packed[2], ".gz"),
    ):
        found, counts = pages(tmp_path, data, suffix)
        assert [page.url for page in found] == ["http://a/0", "http://a/1"] and counts["corrupt"] <= 1
        assert [page.content for page in found] == [BODY] * 2


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_arc_files_of_older_crawls_are_read(tmp_path, suffix):
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + BODY
    records = [b"filedesc://x.arc 0.0.0.0 20050101000000 text/plain 12\n1 0 Archive\n\n"]
    records += [b"http://a.org/%d x 1.2.3.4 20050102030405 text/html %d\n%s\n" % (i, len(http), http) for i in range(3)]
    records.insert(2, b"damage that is no record\n")
    (tmp_path / f"a.arc{suffix}").write_bytes(b"".join(map(gzip.compress, records) if suffix else records))
    counts: Counter = Counter()
    found = list(read_pages(tmp_path / f"a.arc{suffix}", counts))
    assert [(page.url, page.date, page.content) for page in found] == [
        (f"http://a.org/{i} x", "20050102030405", BODY) for i in range(3)
    ]
    assert counts["corrupt"] == 1 and counts["records"] == 4


def test_a_cut_member_counts_once(tmp_path):
    records = [warc_record(f"http://a/{i}", "2024", "text/html", random.Random(i).randbytes(200_000)) for i in range(3)]
    found, counts = pages(tmp_path, records[0] + records[1][:90_000] + records[2], ".gz")
    assert [page.url for page in found] == ["http://a/0", "http://a/2"] and counts["corrupt"] == 1
