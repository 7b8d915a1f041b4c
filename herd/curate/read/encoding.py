"""Bytes to text when the declaration is missing, wrong or contradicted by the bytes.

Source: the WHATWG Encoding Standard for labels (ISO-8859-1 means windows-1252 on the web); the order of belief is ours.
"""

from __future__ import annotations

import codecs
import re

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"""<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_:.-]{2,40})""", re.I)
_WEB_LABELS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
_WEB_LABELS |= {"iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "x-sjis": "cp932"}
_WEB_LABELS |= {"ks_c_5601-1987": "cp949", "euc-kr": "cp949", "iso-8859-9": "cp1254", "tis-620": "cp874"}
_WEB_LABELS |= {"windows-874": "cp874", "utf8": "utf-8", "unicode": "utf-8", "utf-16": "utf-8"}
_NOT_OF_PAGES = {"idna", "punycode", "undefined", "unicode_escape", "unicode-escape", "raw_unicode_escape"}
_NOT_OF_PAGES |= {"raw-unicode-escape", "mbcs", "oem"}  # Python's own; some fail on bytes that they do not like
_MAX_DAMAGE = 0.01  # share of undecodable bytes up to which declared UTF-8 is taken for damaged UTF-8


def decode(content: bytes, declared: str = "") -> tuple[str, str]:
    """Text and the encoding it was read with. Never fails: what cannot be decoded becomes U+FFFD.

    Belief goes to a byte order mark, then to bytes that are valid UTF-8 (chance hardly makes them), then to the
    server's declaration, then to the page's own, then to UTF-8 with a little damage, then to windows-1252.
    """
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace"), encoding
    if wide := _wide(content):
        return content.decode(wide, "replace"), wide
    try:
        text = content.decode("utf-8")
        if not _is_escaped_multibyte(text, declared):
            return text, "utf-8"
    except UnicodeDecodeError:
        pass
    in_page = _META.search(content[:4096])
    for label in (declared, in_page[1].decode("ascii") if in_page else ""):
        encoding = _known(label)
        if encoding and encoding != "utf-8":
            return content.decode(encoding, "replace"), encoding
    text = content.decode("utf-8", "replace")
    damage = text.count("�")
    if damage <= _MAX_DAMAGE * len(content) and damage < sum(map(ord_above_ascii, text)) / 2:
        return text, "utf-8"
    return content.decode("cp1252", "replace"), "cp1252"


def ord_above_ascii(character: str) -> bool:
    return character > "\x7f"


def _wide(content: bytes) -> str:
    """UTF-16 without a byte order mark: of a page's markup every second byte is zero."""
    head = content[:400]
    zeros = head[0::2].count(0), head[1::2].count(0)
    if len(head) < 40 or max(zeros) < 0.3 * len(head) or min(zeros) > 0.02 * len(head):
        return ""
    return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"


def _is_escaped_multibyte(text: str, declared: str) -> bool:
    """ISO-2022-JP and its kin write other scripts in ASCII bytes, so valid UTF-8 does not speak against them."""
    return "\x1b" in text and declared.lower().startswith("iso-2022")


def _known(label: str) -> str:
    label = label.strip().strip("\"'").lower()
    label = _WEB_LABELS.get(label, label)
    try:
        found = codecs.lookup(label) if label else None
    except (LookupError, ValueError):
        return ""
    if found is None or found.name in _NOT_OF_PAGES:
        return ""
    return found.name if getattr(found, "_is_text_encoding", True) else ""  # `base64` makes bytes of bytes
