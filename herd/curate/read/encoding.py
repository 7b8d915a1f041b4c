"""Bytes to text when the declaration is missing, wrong or contradicted by the bytes.

Where bytes are no UTF-8, charset-normalizer guesses the script; among the encodings of Latin letters, which differ in a
few of them only, and between the guess and what was declared, the language model decides: in whose reading the words
with other than ASCII letters are surest of their language.

Source: the WHATWG Encoding Standard for labels (ISO-8859-1 means windows-1252 on the web); the order of belief is ours.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from contextlib import suppress
from itertools import pairwise

from charset_normalizer import from_bytes

from herd.curate.filters.language import language

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"""<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_:.-]{2,40})""", re.I)
_WEB_LABELS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
_WEB_LABELS |= {"iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "x-sjis": "cp932"}
_WEB_LABELS |= {"ks_c_5601-1987": "cp949", "euc-kr": "cp949", "iso-8859-9": "cp1254", "tis-620": "cp874"}
_WEB_LABELS |= {"big5": "big5hkscs", "cn-big5": "big5hkscs", "euc_kr": "cp949", "uhc": "cp949", "gb_2312-80": "gb18030"}
_WEB_LABELS |= {"shift-jis": "cp932", "sjis": "cp932", "x-gbk": "gb18030", "iso-8859-11": "cp874", "johab": "cp949"}
_WEB_LABELS |= {"windows-874": "cp874", "utf8": "utf-8", "unicode": "utf-8", "utf-16": "utf-8"}
_NOT_OF_PAGES = {"idna", "punycode", "undefined", "unicode_escape", "unicode-escape", "raw_unicode_escape"}
_NOT_OF_PAGES |= {"raw-unicode-escape", "mbcs", "oem"}  # Python's own; some fail on bytes that they do not like
_MAX_DAMAGE = 0.01  # share of undecodable bytes up to which declared UTF-8 is taken for damaged UTF-8


_LATIN = {
    "cp1252": "",  # what is left
    "cp1250": "pl cs sk hu ro hr sl sq sh bs sr",
    "iso8859-2": "pl cs sk hu ro hr sl sq sh bs sr",
    "cp1254": "tr az",
    "cp1257": "lt lv et",
    "cp1258": "vi",
}
"""Encodings of Latin letters that are guessed among, and the languages that speak for each."""
_MACINTOSH_SURER = 0.3  # by which the Macintosh's letters must be surer than Windows'
_OTHERS = {"gb18030": "zh yue wuu", "big5hkscs": "zh yue wuu", "cp932": "ja", "euc_jp": "ja", "cp949": "ko"}
_SOUTH_SLAVIC = "čćđšž"
_ALPHABETS = {"pl": "ąćęłńóśźż", "cs": "áčďéěíňóřšťúůýž", "sk": "áäčďéíĺľňóôŕšťúýž", "hu": "áéíóöőúüű", "ro": "ăâîşţșț"}
_ALPHABETS |= dict.fromkeys(("hr", "sr", "bs", "sh", "sl"), _SOUTH_SLAVIC)
"""Letters beyond ASCII of languages whose two encodings differ in a few of them; other letters are foreign names'."""
_SCRIPTS = {"cp1251": "ru uk bg be sr mk kk", "koi8-r": "ru uk bg be", "cp1253": "el", "cp1255": "he yi"}
_SCRIPTS |= {"iso8859-5": "ru uk bg be sr mk", "cp866": "ru uk be", "iso8859-6": "ar fa"}
_SCRIPTS |= {"cp1256": "ar fa ur ps ckb arz", "cp874": "th"}
"""Encodings of other letters, one byte each, and the languages that they were made for."""
_OF_PAGES = re.compile(r"cp(125\d|874|866|932|949)|iso8859|koi8|gb|big5|euc|shift_jis|utf|iso2022")
_KIN = (("cp1253", "iso8859-7"), ("cp1255", "iso8859-8"), ("koi8-r", "koi8-u"))  # the one that reads more letters
_NO_GREEK = re.compile(r"[άέήίόύώΐΰ](?=\w*[άέήίόύώΐΰ])|ς(?=\w)")  # a word has one accent, and this sigma at its end
_FREQUENT = dict.fromkeys(("ru", "uk", "bg", "be", "sr", "mk", "kk"), "оеаинтсрвлкмдпуіјы")
_FREQUENT |= {
    "th": "านรอกเงมยลวดทสต่้ัิีไบปคะข",
    "el": "αοιετσνηυρπκμλςόήάίέύ",
    "he": "יוהלאמרתבשנםד",
    "ar": "اليمونرتبعدسفهةكقأ",
}
"""The letters that make up most of a text: reading the bytes as of another encoding gives rare ones."""
_MOSTLY_FREQUENT = 0.75
_NO_HEBREW = re.compile(r"[ךםןףץ](?=[א-ת])")  # these end a word
_NO_THAI = re.compile(r"(?<![ก-ฮิ-ูั])[ิ-ูั็-์]|[เ-ไ](?![ก-ฮ])|[็-์]{2,}")  # signs that stand on no letter
_NO_KOREAN = re.compile(r"[\u3131-\u318e\u4e00-\u9fff\uf900-\ufaff]")
_LONG_WORD, _MOSTLY, _SURE = 3, 0.6, 0.6  # bytes of a word; share of the sample in such words; least sureness
_OTHER_LATIN = {code for languages in _LATIN.values() for code in languages.split()}

_TAGS = re.compile(rb"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^<>]*>", re.S | re.I)
_HIGH_WORDS = re.compile(rb"[^\s<>]*[\x80-\xff][^\s<>]*")
_SHIFTS = ((b"\x1b$B", "iso2022_jp"), (b"\x1b$@", "iso2022_jp"), (b"\x1b$)C", "iso2022_kr"))
_WIDE_MARKUP = ((re.compile(rb"<\0[!/?A-Za-z]\0"), "utf-16-le"), (re.compile(rb"\0<\0[!/?A-Za-z]"), "utf-16-be"))
_QUOTES = b"\x82\x84\x85\x8b\x91\x92\x93\x94\x95\x96\x97\x9b\xa0\xab\xbb"  # the same in all encodings of Latin letters
_LEAST_HIGH_BYTES = 10  # fewer do not tell one script from another
_MANY_HIGH_BYTES = 200  # so many are surely words, of whatever script
_FEW_HIGH_BYTES = 4  # fewer do not tell one encoding of Latin letters from another
_SAMPLE_BYTES = 4000
_MUCH_SURER = 0.4  # the same for another script than charset-normalizer found
_SURER = 0.05  # probability by which a guess must be surer of its language than a declaration that it contradicts


def decode(content: bytes, declared: str = "") -> tuple[str, str]:
    """Text and the encoding it was read with. Never fails: what cannot be decoded becomes U+FFFD.

    Belief goes to a byte order mark, then to bytes that are valid UTF-8 (chance hardly makes them), then to the
    declarations (the server's, the page's own), unless the bytes speak clearly against them, then to UTF-8 with a
    little damage, then to what the bytes look like.
    """
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace"), encoding
    if wide := _wide(content):
        return content.decode(wide, "replace"), wide
    head = content[:100_000]
    if b"\x1b$" in head and (shifted := next((name for mark, name in _SHIFTS if mark in head), "")):
        with suppress(UnicodeDecodeError):
            return content.decode(shifted), shifted
    try:
        text = content.decode("utf-8")
        if not _is_escaped_multibyte(text, declared):
            return text, "utf-8"
    except UnicodeDecodeError:
        pass
    in_page = _META.search(content[:4096])
    labels = [_known(label) for label in (declared, in_page[1].decode("ascii") if in_page else "")]
    told = next((name for name in labels if name and name != "utf-8"), "")
    if told.startswith("iso2022"):
        return content.decode(told, "replace"), told
    text = content.decode("utf-8", "replace")
    damage = text.count("�")
    if not told and damage <= _MAX_DAMAGE * len(content) and damage < sum(map(ord_above_ascii, text)) / 2:
        return text, "utf-8"
    found = _looks_like(content, told)
    return content.decode(found, "replace"), found


def ord_above_ascii(character: str) -> bool:
    return character > "\x7f"


def _wide(content: bytes) -> str:
    """UTF-16 and UTF-32 without a byte order mark: of markup every second byte is zero, or three of four."""
    head = content[:4000]
    if len(head) > 40 and min(head[1::4].count(0), head[2::4].count(0)) > 0.9 * (len(head) // 4):
        return "utf-32-le" if head[0] else "utf-32-be"
    for pattern, encoding in _WIDE_MARKUP:
        if sum(match.start() % 2 == 0 for match in pattern.finditer(head)) >= 3:
            return encoding
    zeros = head[0::2].count(0), head[1::2].count(0)
    if len(head) < 40 or max(zeros) < 0.3 * len(head) or min(zeros) > 0.02 * len(head):
        return ""
    return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"


# ---- what the bytes look like ----------------------------------------------------------------------------------------


def _looks_like(content: bytes, told: str) -> str:
    """The encoding of bytes that are no UTF-8: the declared one (`told`, may be empty) unless they speak against it."""
    text = _TAGS.sub(b" ", content[:200_000])
    words = b" ".join(_HIGH_WORDS.findall(text) or _HIGH_WORDS.findall(content))
    if sum(byte > 0x7F for byte in words) < _LEAST_HIGH_BYTES:  # the words around them tell the language
        around = b" ".join(line for line in text.split(b"\n") if not line.isascii())
        if around and language(_read(around, "cp1252"))[0] != "en":  # English words around them tell nothing
            words = around
    sample = words[:_SAMPLE_BYTES]
    guess = _guess(sample)
    if told == "cp1252" and guess == "iso8859-15":
        return guess
    if not told or told == guess or _read(sample, told) == _read(sample, guess):
        return told or guess
    return guess if _sureness(sample, guess) > _sureness(sample, told) + _SURER else told


def _other_script(sample: bytes) -> str:
    """The encoding of a sample whose words are of other letters than Latin ones, where one is clearly the surest."""
    words = [word for word in sample.split() if len(word) >= _LONG_WORD]
    high = sum(byte > 0x7F for byte in sample)
    if sum(len(word) for word in words if all(byte > 0x7F for byte in word)) < _MOSTLY * high:
        return ""
    sure = {name: _sureness(sample, name) for name in (*_SCRIPTS, *_OTHERS)}
    best, second = sorted(sure, key=lambda name: -sure[name])[:2]
    return best if sure[best] >= _SURE and sure[best] > sure[second] + _SURER else ""


def _guess(sample: bytes) -> str:
    high = sum(byte > 0x7F for byte in sample)
    if sum(byte > 0x7F for byte in sample.translate(None, _QUOTES)) < _FEW_HIGH_BYTES:
        return "cp1252"
    if found := _other_script(sample):
        return next((_more_letters(kin, sample) for kin in _KIN if found in kin), found)
    best = from_bytes(sample).best() if high >= _LEAST_HIGH_BYTES else None
    name = _known(best.encoding) if best is not None else ""
    if name == "utf-8" or not _OF_PAGES.match(name):
        name = "cp1252"
    letters = [c for c in _read(sample, name) if c > "\x7f" and c.isalpha()]
    if sum("LATIN" in unicodedata.name(c, "") for c in letters) < 0.5 * len(letters):
        if name not in _OTHERS:
            likely = [one for one in _SCRIPTS if one != "cp874" or high >= _MANY_HIGH_BYTES]  # all bytes look Thai
            fitting = [one for one in likely if language(_read(sample, one))[0] in _SCRIPTS[one].split()]
            surest = max([name, *fitting], key=lambda one: _sureness(sample, one))
            name = surest if _sureness(sample, surest) > _sureness(sample, name) + _MUCH_SURER else name
        return _more_letters(next((kin for kin in _KIN if name in kin), (name,)), sample)
    telling = [word for word in sample.split() if not word.translate(None, _QUOTES).isascii()]
    sample = b" ".join(telling) or sample
    sure = {latin: _sureness(sample, latin) for latin in _LATIN}
    surest = max(sure, key=lambda latin: sure[latin])
    if sure[surest] > sure["cp1252"]:
        return surest
    if any(0x80 <= byte < 0xA0 for byte in sample.translate(None, _QUOTES)):
        return "mac_roman" if _sureness(sample, "mac_roman") > sure["cp1252"] + _MACINTOSH_SURER else "cp1252"
    return "iso8859-15" if b"\xa4" in sample else "cp1252"  # nobody writes the sign that the euro's place had


def _more_letters(kin: tuple[str, ...], sample: bytes) -> str:
    """Of kindred encodings the one that reads more letters; of equal ones the first."""
    return max(kin, key=lambda one: sum(map(str.isalpha, _read(sample, one))))


def _sureness(sample: bytes, encoding: str) -> float:
    """How sure the language model is of these words, 0 to 1; less for characters that no text has."""
    text = _read(sample, encoding)
    code, probability = language(text)
    languages = (_LATIN | _OTHERS | _SCRIPTS).get(encoding)
    if languages is not None and code not in (languages.split() or {code} - _OTHER_LATIN):
        return 0.0
    odd = sum(unicodedata.category(c) in ("Cc", "Cn", "Co", "So", "Sc", "Sk", "Sm") or c == "�" for c in text)
    odd += sum(a.islower() and b.isupper() and b > "\x7f" for a, b in pairwise(text))
    if code == "el":
        odd += len(_NO_GREEK.findall(text))
    odd += len(_NO_HEBREW.findall(text)) if code == "he" else len(_NO_THAI.findall(text)) if code == "th" else 0
    if encoding == "cp949":  # letters of syllables apart, and Chinese ones between syllables: other bytes misread
        odd += len(_NO_KOREAN.findall(text))
    if own := _ALPHABETS.get(code) if encoding in _LATIN else None:
        odd += sum(c > "\x7f" and c.isalpha() and c.lower() not in own for c in text)
    high = sum(map(ord_above_ascii, text))
    if frequent := _FREQUENT.get(code):
        letters = [c for c in text.lower() if c > "\x7f" and c.isalpha()]
        share = sum(map(frequent.__contains__, letters)) / max(1, len(letters))
        probability *= min(1.0, share / _MOSTLY_FREQUENT)
    return probability * max(0.0, 1 - 3 * odd / max(1, high))


def _read(sample: bytes, encoding: str) -> str:
    """A sample as one encoding reads it; a character that its end cuts is left out."""
    return codecs.getincrementaldecoder(encoding)("replace").decode(sample, final=False)


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
