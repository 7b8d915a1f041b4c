"""Personal data: found by pattern, confirmed by checksum where the format has one, and masked.

Digits are looked at once: every run of digits and the signs that part them is taken out by one pattern, and what it may
be (address, card, account, telephone, identity number) is decided on the run, what stands before it and what follows.
Numbers without a form of their own count as telephones or identity numbers only next to a word that says so. A date at
the start of a run is none of it, and several numbers in one run are told apart.

Source: the Llama 3 paper, section 3.1.1 (personal information is removed); FineWeb masks e-mail and public IP addresses
with reserved ones, which keeps the sentence natural; ISO 13616 (IBAN), ISO/IEC 7812 (Luhn).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from herd.curate.filters.addresses import registered_domain
from herd.curate.privacy.identity import is_identity_number
from herd.curate.privacy.secrets import find_secrets

MASKS = {
    "secret": "[secret]",
    "email": "email@example.com",  # RFC 2606
    "iban": "[IBAN]",
    "id": "[identity number]",
    "ip": "192.0.2.1",  # RFC 5737
    "card": "[card number]",
    "phone": "+1 555 0100",
}
"""What takes the place of each kind of personal data."""

KINDS = tuple(MASKS)

_LETTERS = r"A-Za-z\u00c0-\u024f\u0370-\u04ff"  # of names in scripts that put spaces between words
_EMAIL = re.compile(
    rf"(?<![{_LETTERS}0-9_.%+-])[{_LETTERS}0-9][{_LETTERS}0-9_.%+-]{{0,63}}@(?:[{_LETTERS}0-9-]{{1,63}}\.)+[{_LETTERS}]{{2,24}}"
    rf"(?![{_LETTERS}0-9])"
)
_WRITTEN_OUT = re.compile(  # joe [at] garden [dot] org
    r"(?<![\w.+-])[\w.+-]{1,64} ?[\[({] ?(?:at|ät|@) ?[\])}] ?[\w-]{1,63}"
    r"(?: ?(?:[\[({] ?(?:dot|punkt) ?[\])}]|\.) ?[\w-]{1,63}){1,5}",
    re.I,
)
_SPACED_OUT = re.compile(  # joe @ garden.org
    r"(?<![\w.+@-])([a-zA-Z0-9][\w.+-]{0,63})(?: @ ?|@ )((?:[a-z0-9-]{1,63}\.)+[a-z]{2,24})(?![\w@-])"
)
_MAIL_BEFORE = re.compile(r"mail|contact|kontakt|write (?:to|me)|schreib|reach|correo|courriel|почт|邮箱|メール", re.I)
# icon@2x.png is a picture, decorators@module.py code; .com.py is Paraguay
_ASSET = re.compile(r"@\dx\.|\.(?:png|jpe?g|gif|webp|svg|js|css)$|@[^.]*\.py$", re.I)
_IP6 = re.compile(  # global unicast; a port may follow a whole one
    r"[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{1,4}){7}(?![0-9A-Fa-f])|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:.]*[\w:])"
)
_RUN = re.compile(  # what a number with its signs is made of
    r"(?<!\w)(?:(?:\+\d\d )?(?:\(?0\) ?)?\(?0? ?\d{1,4}\)? / (?=\d))?"  # of two parts: 0 30 / 23 12 54
    r"(?:\+[ \xa0]?)?\(?\+?\d(?:(?:\)[ \xa0./-]?|[ \xa0]\(?|[.–/-]\(?|\(| - )?\d){3,37}(?!\d)",
    re.ASCII,
)
_RUN_START = re.compile(r"[+(0-9](?<!\w[+(0-9])(?=[0-9 \xa0()+./–-]{6})", re.ASCII)  # the shortest has seven characters
_LETTERED_START = re.compile(
    r"[A-Z0-9](?<=\b.)(?:(?<=[A-Z])(?=[A-Z]{0,5}[ -]?\d)|(?<=\d)(?=\d{5}|\d?\.\d{3}\.))", re.ASCII
)
_LETTERED = re.compile(
    r"\b(?=[A-Z0-9]*\d)[A-Z]{1,6}[ -]?\d[A-Z0-9 -]{6,38}\b"  # letters first: Italy, Spain's NIE, IBAN-like
    r"|\b\d{7,8}[- ]?[A-Z]\b|\b\d{6}[-+A]\d{3}[0-9A-Y]\b|\b\d{17}X\b"  # a letter last: Spain, Finland, China
    r"|\b[A-Z]{2} \d\d \d\d \d\d [A-D]\b"  # Britain
    r"|\b[A-Z]{1,2}\d{6}\([\dA]\)|\b[A-Z]{5}\d{4}[A-Z]\b"  # Hong Kong, India
    r"|\b\d{1,2}\.\d{3}\.\d{3}-[Kk]\b|\b\d{7}[A-W][A-IW]\b",  # Chile, Ireland
    re.ASCII,
)
_IP = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}")
_CARD = re.compile(r"\d(?:[ .-]?\d){12,18}(?!\d)")
_IBAN = re.compile(  # from its third character on, a digit: these are rarer than letters
    r"\d(?<=\b[A-Za-z]{2}\d)\d(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[A-Za-z0-9]{1,3})?\b", re.ASCII
)
_IBAN_LENGTHS = {
    code[:2]: int(code[2:])
    for code in """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21
    LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22
    RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20
    """.split()  # noqa: SIM905
}
_PHONE = re.compile(
    r"(?:\+[ \xa0]?|00)[1-9]\d{0,2}[ \xa0.–-]?(?:\(\d{1,5}\)[ \xa0.-]?)?\d{1,5}(?:[ \xa0.–/-]{1,1}\d{2,5}|\d){0,9}"
    r"|\(0?\d{2,5}\)[ \xa0/-]?\d{2,5}(?:[-. \xa0]\d{2,5}){0,3}"  # (555) 123-4567, (09193) 35056
    r"|\d{3}([-.])\d{3}\1\d{4}"  # 555-123-4567
    r"|1[-.]\d{3}[-.]\d{3}[-.]\d{4}|1 ?\(\d{3}\) ?\d{3}[-. ]\d{4}"  # 1-555-123-4567, 1 (555) 123-4567
    r"|0\d{1,4}[ \xa0/-]\d{2,4}(?:[ \xa0/-]?\d{2,4}){1,3}"  # 030 1234 5678, 06 12 34 56 78
)
_ANY_PHONE = re.compile(r"\+?[ \xa0]?\(?\+?\d(?:[ \xa0().–/-]{0,3}\d){6,16}")
_EXTENSION = re.compile(r"[ ]?(?:x|ext\.?|#)[ ]?\d{1,6}(?!\w)", re.I)
_PHONE_BEFORE = re.compile(
    r"phone|\btel\b|t[eé]l[eé]?f|\bt[eé]l\b|\btlf|fax|mobil|\bmob\b|handy|\bcall(?!s\b)|\bdial|\bring\b|"
    r"\bph\b|\bpuh|\bfon\b|\btelp|\bhp\b|τηλ|\bκιν|điện thoại|\bs?đt\b|\b(?-i:[TPMFC]) ?:|"
    r"\bcell(?:\W{0,3}$|\s?phone|\s(?:no|num|nr|is)\b)|\btext (?:me|us)\b|\breach|contact|hotline|"
    r"whatsapp|\bsms\b|viber|m[oó]vil|celular|\bportable\b|\bgsm\b|\bkom(?:[oó]rk|\.)|\btelefon|kontakt|rufen|anruf|\bappel|\bll[aá]m|"
    r"\bchiam|\bligue|\bligar|\bbel(?:len)?\b|zadzwo|\bzavol|тел|моб|звон|電話|电话|手机|手機|携帯|휴대|전화|연락|โทร|เบอร์|"
    r"फ़ोन|मोबाइल|هاتف|جوال|טלפון|נייד|☎|📞|✆",
    re.I,
)
_CARD_BEFORE = re.compile(
    r"card|karte|carte|tarjeta|cart[aã]|karta|visa|mastercard|amex|\bcc\b|kort|credit|カード|卡", re.I
)
_NO_NUMBER_BEFORE = re.compile(
    r"(?:[\w#$€£¥](?<![^\x00-\u04ff€£¥])|[\d\w][.,/-]|\b(?:version|release|build|rev|pp|isbn|issn|doi|pmid|arxiv|ean|rfc|gtin|sku|patent|"
    r"ndc|lot|lotto|loto|lottery|tirage|ziehung|draw|oclc|bibcode)\b.{0,12}|(?:https?:|www\.)\S{0,60})$",
    re.I,
)
_VERSION_BEFORE = re.compile(
    r"(?:\bv|ver\.?|version|release|build|python|chrome|firefox|\brev|section|§|==|[<>~^]=?)\s*:?\s*$", re.I
)
_ADDRESS_BEFORE = re.compile(r"\b(?:ip|ipv4|address|addr|host|server|dns|ping|gateway|from|to|at)\b", re.I)
_DATE = re.compile(r"(?:19|20)\d\d[-./ ]\d\d?[-./ ]\d\d?(?!\d)|\d\d?[-./ ]\d\d?[-./ ](?:19|20)\d\d(?!\d)")
_RESERVED_DOMAINS = (
    "example.com",
    "example.org",
    "example.net",
    ".example",
    ".invalid",
    ".test",
    "localhost",
    ".local",
)
_CONTEXT_CHARACTERS = 40


class Found(NamedTuple):
    """Personal data in a text."""

    start: int  # characters
    end: int
    kind: str


def find_pii(text: str, kinds: Iterable[str] = KINDS) -> list[Found]:
    """Where personal data stands in a text, in order, without overlaps; a kind earlier in `KINDS` wins.

    Addresses that are reserved for documentation or private networks are nobody's and are not found.
    """
    wanted = [kind for kind in KINDS if kind in set(kinds)]
    found: list[Found] = []
    for kind in wanted:
        if finder := _FINDERS.get(kind):
            found += (Found(start, end, kind) for start, end in finder(text))
    in_runs = [kind for kind in wanted if kind in _RUN_KINDS]
    if in_runs:
        for match in _matches(_RUN_START, _RUN, text):
            found += _judge_run(text, match, in_runs)
    order = {kind: rank for rank, kind in enumerate(KINDS)}
    taken: list[Found] = []
    for one in sorted(found, key=lambda one: (one.start, order[one.kind])):
        if not taken or one.start >= taken[-1].end:
            taken.append(one)
        elif order[one.kind] < order[taken[-1].kind] and one.start < taken[-1].end:
            taken[-1] = one
    return taken


def _matches(starts: re.Pattern, pattern: re.Pattern, text: str) -> Iterator[re.Match]:
    """What `finditer` gives of a pattern that begins at some starts: these are found much faster, and are few."""
    end = 0
    for start in starts.finditer(text):
        if start.start() >= end and (match := pattern.match(text, start.start())):
            yield match
            end = match.end()


def mask_pii(text: str, kinds: Iterable[str] = KINDS) -> tuple[str, Counter]:
    """The text with personal data masked, and how much of each kind there was."""
    found = find_pii(text, kinds)
    return mask_found(text, found), Counter(one.kind for one in found)


def mask_found(text: str, found: list[Found]) -> str:
    """The text with a mask in place of everything found."""
    pieces, end = [], 0
    for one in found:
        pieces += [text[end : one.start], MASKS[one.kind]]
        end = one.end
    return "".join([*pieces, text[end:]]) if found else text


# ---- what is found by itself -----------------------------------------------------------------------------------------


def _emails(text: str) -> Iterable[tuple[int, int]]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        domain = match[0].rpartition("@")[2].lower()
        is_service = match[0].lower().startswith("git@")  # `git@github.com:owner/name`
        if not domain.endswith(_RESERVED_DOMAINS) and not _ASSET.search(match[0]) and not is_service:
            yield match.span()


def _addresses(text: str) -> Iterable[tuple[int, int]]:
    yield from _emails(text)
    if any(
        mark in text for mark in ("at]", "at)", "at }", "at ]", "at )", "at}", "AT]", "AT)", "@]", "@)", "ät]", "ät)")
    ):
        yield from (match.span() for match in _WRITTEN_OUT.finditer(text))
    if " @" in text or "@ " in text:
        yield from (match.span() for match in _SPACED_OUT.finditer(text) if _is_address(text, match))


def _is_address(text: str, match: re.Match) -> bool:
    """Whether `joe @ garden.org` is an address and not who is where: `sale @ shop.example`."""
    if match[2].endswith(_RESERVED_DOMAINS) or not registered_domain(match[2]):
        return False
    before, after = text[max(0, match.start() - _CONTEXT_CHARACTERS) : match.start()], text[match.end() :][:1]
    is_alone = before.rpartition("\n")[2].rstrip()[-1:] in ("", ":", "<", "(", "|") and after in "\n>)|,;"
    return is_alone or any(sign in match[1] for sign in "._-") or _MAIL_BEFORE.search(before) is not None


def _ibans(text: str) -> Iterable[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        if span := _longest_iban(match):
            yield span


def _longest_iban(match: re.Match) -> tuple[int, int] | None:
    """An IBAN at the start of what looks like one: words may follow it. In small letters its length must fit, too."""
    start = match.start() - 2
    value = match.string[start : match.end()]
    while len(value) >= 15:
        plain = value.replace(" ", "").replace("-", "")
        if is_iban(value) and (value.isupper() or len(plain) == _IBAN_LENGTHS.get(plain[:2].upper())):
            return start, start + len(value)
        value = value[: value.rfind(" ")] if " " in value else ""
    return None


def _lettered_ids(text: str) -> Iterable[tuple[int, int]]:
    for match in _matches(_LETTERED_START, _LETTERED, text):
        if is_identity_number(match[0], text[max(0, match.start() - _CONTEXT_CHARACTERS) : match.start()]):
            yield match.span()


def _ip6(text: str) -> Iterable[tuple[int, int]]:
    if "::" in text or text.count(":") > 5:
        for match in _IP6.finditer(text):
            before = text[max(0, match.start() - 2) : match.start()]
            joined = before[-1:].isalnum() or before[-1:] in ("_", ".") or _IP6_GOES_ON.search(before)
            if not joined and _is_public_ip(match[0]):
                yield match.span()


_IP6_GOES_ON = re.compile(r"[0-9A-Fa-f:]:$")  # `IP:2001:...` begins with a word, not with a group

_FINDERS: dict[str, Callable[[str], Iterable[tuple[int, int]]]] = {
    "secret": find_secrets,
    "email": _addresses,
    "iban": _ibans,
    "id": _lettered_ids,
    "ip": _ip6,
}


# ---- what is decided on a run of digits ------------------------------------------------------------------------------

_RUN_KINDS = ("id", "ip", "card", "phone")


def _judge_run(text: str, match: re.Match, kinds: list[str]) -> Iterator[Found]:
    """What a run of digits is, if it is anybody's; each number of several."""
    start, end = match.span()
    if date := _DATE.match(match[0]):
        start += date.end()
        if start >= end or text[start] not in " \xa0":
            return
        start += 1
    while start < end:
        found = _judge_number(text, start, end, kinds)
        if found is None:
            return
        if found.kind:
            yield found
        start = found.end
        while start < end and not (text[start].isdigit() or text[start] in "+("):
            start += 1


def _judge_number(text: str, start: int, end: int, kinds: list[str]) -> Found | None:
    """The number that a run begins with, or None where it is nobody's."""
    run = text[start:end]
    before = text[max(0, start - _CONTEXT_CHARACTERS) : start]
    if "ip" in kinds and run.count(".") >= 3 and (ip := _IP.match(run.lstrip("("))):
        start += run.index(ip[0])
        follows = text[start + ip.end() - ip.start() :][:2]
        if follows[:1] == "." and follows[1:].isdigit() and _PHONE_BEFORE.search(before):
            return _phone(text, start, end, before) if "phone" in kinds else None  # 01.99.00.12.34
        signs = (".", "-", "_") if not _is_small(ip[0]) or before.endswith("//") else (".", "-", "/", "_")
        if follows[:1].isalnum() or (follows[:1] in signs and follows[1:].isalnum()):
            return None
        is_version = _VERSION_BEFORE.search(before) or (_is_small(ip[0]) and not _ADDRESS_BEFORE.search(before))
        return Found(start, start + len(ip[0]), "ip") if not is_version and _is_public_ip(ip[0]) else None
    if sum(map(str.isdigit, run)) < 7 or (before and _NO_NUMBER_BEFORE.search(before)):
        return None
    goes_on = _goes_on(text, end)
    touched = (
        text[end : end + 1].isalnum() or text[end : end + 1] == "_"
    )  # what announces a card excuses `,exp` and `/`
    card = _CARD.match(run) if "card" in kinds and not touched else None
    is_card = card and _is_grouped(card[0]) and is_card_number(card[0])
    if card and is_card and (_CARD_BEFORE.search(before) or (_is_issued(card[0]) and not goes_on)):
        return Found(start, start + card.end(), "card")
    if "id" in kinds and not goes_on and is_identity_number(run.strip("() "), before):
        return Found(start, end, "id")
    return _phone(text, start, end, before) if "phone" in kinds else None


def _phone(text: str, start: int, end: int, before: str) -> Found | None:
    """A telephone number at the start of a run: of a form of its own, or next to a word that says so."""
    run = text[start:end]
    if _YEARS.match(run.lstrip("(")):
        return None
    labelled = _PHONE_BEFORE.search(before) is not None
    found = _PHONE.match(run)
    if found is None and not labelled:
        return None
    if labelled:
        whole = _ANY_PHONE.match(run)
        if found is None or (whole and whole.end() > found.end() and _num_digits(whole[0]) <= _MAX_PHONE_DIGITS):
            found = whole
    if found is None or _is_years(found[0]) or len(set(re.sub(r"\D", "", found[0]))) < 2:
        return None
    if not (7 if labelled else 9) <= _num_digits(found[0]) <= _MAX_PHONE_DIGITS:
        return None
    if not labelled and (_is_series(found[0]) or before.endswith((",", "/", "-", "="))):
        return None
    stop = start + found.end()
    if stop == end and (extension := _EXTENSION.match(text, stop)):
        stop = extension.end()
    elif (stop == end and _goes_on(text, stop)) or (stop < end and text[stop] not in " \xa0" and not labelled):
        return None
    return Found(start, stop, "phone")


_MAX_PHONE_DIGITS = 15
_YEARS = re.compile(r"(?:19|20)\d\d ?[-–/] ?(?:19|20)\d\d(?!\d)")


def _is_years(value: str) -> bool:
    """Whether groups of digits are years alone: `2019 2020 2021`."""
    return all(len(group) == 4 and group[:2] in ("19", "20") for group in re.findall(r"\d+", value))


def _num_digits(value: str) -> int:
    return sum(map(str.isdigit, value))


def _is_series(value: str) -> bool:
    """Whether groups of two digits only rise: numbers of a lottery, years, weeks."""
    groups = [int(group) for group in re.findall(r"\d+", value)]
    return len(groups) > 3 and all(group < 100 for group in groups) and groups == sorted(set(groups))


def _goes_on(text: str, end: int) -> bool:
    """Whether a run is part of a figure, a name or a hash: a letter or a decimal part touches its end."""
    after = text[end : end + 2]
    return bool(after) and (after[0].isalnum() or after[0] == "_" or (after[0] in ".,-/:" and after[1:].isalnum()))


def _is_grouped(value: str) -> bool:
    """Cards are written whole or in groups of three to six digits, with one sign."""
    groups = re.split(r"[ .-]", value)
    return len(groups) == 1 or (all(3 <= len(group) <= 7 for group in groups) and len(set(value) & set(" .-")) == 1)


def _is_issued(value: str) -> bool:
    """Whether digits begin and are as long as an issuer's cards."""
    digits = re.sub(r"\D", "", value)
    return any(len(digits) in lengths and start.match(digits) for start, lengths in _ISSUERS)


_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6011|64[4-9]|65|62"), (16, 17, 18, 19)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16,)),
    (re.compile(r"30[0-5]|36|38|39"), (14,)),
)


def _is_small(ip: str) -> bool:
    """Whether an address has small parts only, as versions and numbers of sections have."""
    return all(int(part) < 50 for part in ip.split("."))


def _is_public_ip(value: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
        return address.is_global and not address.is_multicast
    except ValueError:
        return False


def is_card_number(value: str) -> bool:
    """Whether digits (spaces and hyphens allowed) are a payment card number: issuer, length and Luhn's checksum."""
    digits = [int(c) for c in value if c.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 2:
        return False
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(value: str) -> bool:
    """Whether a string is an IBAN by its checksum (ISO 7064, modulo 97)."""
    value = value.replace(" ", "").replace("-", "")
    if not 15 <= len(value) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in value[4:] + value[:4])) % 97 == 1
