"""Bytes to text."""

import pytest
from faker import Faker

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


FAMILIES = {
    "windows-1251": ("ru_RU", "bg_BG"),
    "koi8-r": ("ru_RU",),
    "gbk": ("zh_CN",),
    "big5": ("zh_TW",),
    "shift_jis": ("ja_JP",),
    "euc-jp": ("ja_JP",),
    "euc-kr": ("ko_KR",),
    "windows-1250": ("pl_PL", "cs_CZ", "hu_HU"),
    "windows-1253": ("el_GR",),
    "windows-1255": ("he_IL",),
    "windows-1256": ("ar_AA", "fa_IR"),
    "windows-874": ("th_TH",),
    "utf-16-le": ("ru_RU", "ja_JP", "th_TH"),
}


@pytest.mark.parametrize("declared", ["", "utf-8", "iso-8859-1"])
@pytest.mark.parametrize("encoding", FAMILIES)
def test_pages_of_other_scripts_are_read_though_nothing_or_a_wrong_thing_is_declared(encoding, declared):
    """Sentences of words that faker draws: nine pages of each family, eight of them must come out to the letter."""
    right = 0
    codec = {"windows-874": "cp874"}.get(encoding, encoding)
    for seed in range(9):
        words = Faker(FAMILIES[encoding][seed % len(FAMILIES[encoding])])
        words.seed_instance(seed)
        text = "\n".join(words.text(400).encode(codec, "ignore").decode(codec) for _ in range(4))
        page = f"<html><head><title>x</title></head><body><p>{text}</p></body></html>"
        right += decode(page.encode(codec), declared)[0] == page
    assert right >= 8


@pytest.mark.parametrize(("encoding", "locale"), [("cp1252", "de_DE"), ("cp1252", "fr_FR"), ("koi8-r", "ru_RU")])
def test_a_true_declaration_is_believed_also_of_short_texts(encoding, locale):
    words = Faker(locale)
    words.seed_instance(1)
    for _ in range(30):
        text = words.text(60).encode(encoding, "ignore").decode(encoding)
        assert decode(f"<p>{text}".encode(encoding), encoding)[0] == f"<p>{text}"
