"""HTTP answers are read whatever shape servers and crawlers gave them."""

import gzip
import zlib

import pytest

from herd.curate.read.answers import media_type_of, read_answer, read_head

BODY = b"<html><body>Bees fly early, whatever the heading of their page may say.</body></html>"
TWO_CHUNKS = BODY[:20], len(BODY) - 20, BODY[20:]
TYPE = b"Content-Type: text/html\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n",
        b"HTTP/2 200\r\ncontent-type: text/html\r\n\r\n",
        b":status: 200\r\ncontent-type: text/html\r\n\r\n",
        b"HTTP/1.1  200 OK\r\nCONTENT-TYPE : text/html\r\n\r\n",
        b"ICY 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Note: a\r\n  folded: line\r\nContent-Type: text/html, text/html\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\nContent-Type: TEXT/HTML\r\nContent-Length: 3\r\n\r\n",
    ],
)
def test_heads_of_all_shapes_give_status_type_and_the_whole_body(head):
    answer = read_answer(head + BODY, 10**6)
    assert (answer.status, answer.media_type, answer.body, answer.lied, answer.cut) == (
        200,
        "text/html",
        BODY,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("headers", "body", "lied"),
    [
        (b"Content-Encoding: x-gzip\r\n", gzip.compress(BODY), False),
        (b"", gzip.compress(BODY), True),
        (b"Content-Encoding: gzip\r\n", gzip.compress(gzip.compress(BODY)), False),
        (b"Content-Encoding: deflate\r\n", gzip.compress(BODY), False),
        (b"Content-Encoding: gzip\r\n", zlib.compress(BODY), False),
        (b"Content-Encoding: gzip\r\n", gzip.compress(BODY) + b"\0\0", False),
        (b"Content-Encoding: gzip\r\n", gzip.compress(BODY[:20]) + gzip.compress(BODY[20:]), False),
        (b"Transfer-Encoding: Chunked\r\n", b"14;x=1\r\n%s\r\n%x \r\n%s\r\n0\r\nA: b\r\n\r\n" % TWO_CHUNKS, False),
        (b"", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), True),
    ],
)  # fmt: skip
def test_bodies_are_unpacked_as_they_are(headers, body, lied):
    answer = read_answer(b"HTTP/1.1 200 OK\r\n" + TYPE + headers + b"\r\n" + body, 10**6)
    assert (answer.body, answer.lied, answer.cut) == (BODY, lied, False)


def test_what_breaks_off_is_said_and_what_is_damaged_is_refused():
    packed = gzip.compress(BODY * 50, mtime=0)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    cut = read_answer(head + packed[:-20], 10**6)
    assert cut.cut and (BODY * 50).startswith(cut.body)
    with pytest.raises(ValueError, match="damaged"):
        read_answer(head + packed[:20] + b"\xff" * 30 + packed[50:], 10**6)
    assert read_answer(b"no answer at all", 100).status == 0
    chunk = read_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nBees", 10**6)
    assert chunk.cut and chunk.body == b"Bees"


def test_bombs_are_held_to_the_limit():
    assert (
        len(read_answer(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"a" * 10**7), 1000).body)
        == 1001
    )


def test_packed_files_are_no_lies_and_types_are_taken_apart():
    archive = gzip.compress(BODY)
    assert read_answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\n\r\n" + archive, 10**6).body == archive
    assert media_type_of('Text/HTML; Charset="Windows-1251"') == ("text/html", "windows-1251")
    assert read_head(b"WARC/1.0\nA: b\n\tc\na: d\n\nrest") == ({"a": "b c"}, 23)
