"""Bytes to text."""

import pytest

from herd.curate.read.encoding import decode

TEXT = "Bienen fliegen früher, als man dachte: «naïve» café."


@pytest.mark.parametrize(
    ("content", "declared", "encoding"),
    [
        (TEXT.encode(), "", "utf-8"),
        (TEXT.encode(), "iso-8859-1", "utf-8"),  # a wrong declaration: the bytes are valid UTF-8
        (TEXT.encode("latin1"), "utf-8", "cp1252"),  # the other way round
        (TEXT.encode("latin1"), "", "cp1252"),
        (TEXT.encode("utf-8-sig"), "", "utf-8"),
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), "", "utf-16-le"),
        (b"<meta charset='windows-1252'>" + TEXT.encode("cp1252"), "", "cp1252"),
    ],
)
def test_text_is_found_whatever_was_declared(content, declared, encoding):
    text, used = decode(content, declared)
    assert text.endswith(TEXT) and used == encoding


def test_a_little_damage_in_utf8_stays_local():
    text, used = decode(TEXT.encode() * 10 + b"\xff" + TEXT.encode() * 10, "utf-8")
    assert used == "utf-8" and text.count("früher") == 20 and text.count("�") == 1


def test_unknown_labels_and_any_bytes_are_survived():
    assert decode(b"abc\xe9", "no-such-encoding")[0] == "abcé"
    assert isinstance(decode(bytes(range(256)))[0], str)


@pytest.mark.parametrize(
    "label", ["idna", "punycode", "undefined", "unicode_escape", "base64", "zlib", "a\0b", "rot13"]
)
def test_codecs_that_are_no_encodings_of_pages_are_not_believed(label):
    assert decode(b"bees \xff\xfe fly \\u12", label)[1] == "cp1252"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_wide_text_is_known_without_a_byte_order_mark(encoding):
    page = "<html><body><p>Die Bienen fliegen früh am Tag.</p></body></html>"
    assert decode(page.encode(encoding)) == (page, encoding)
