"""Personal data: found by pattern, confirmed by checksum where the format has one, and masked.

Digits are looked at once: every run of digits and the signs that part them is taken out by one pattern, and what it may
be (address, card, account, telephone, identity number) is decided on the run alone. Numbers without a form of their own
count as identity numbers only next to a word that says so.

Source: the Llama 3 paper, section 3.1.1 (personal information is removed); FineWeb masks e-mail and public IP addresses
with reserved ones, which keeps the sentence natural; ISO 13616 (IBAN), ISO/IEC 7812 (Luhn).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

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

_EMAIL = re.compile(r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b", re.ASCII)
_IP6 = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:.]*[\w:])")  # global unicast
_RUN = re.compile(r"(?<![\w])[+(]?\d[\d .()/\-]{5,34}\d(?!\d)", re.ASCII)  # what a number with its signs is made of
_LETTERED = re.compile(
    r"\b(?=[A-Z0-9]*\d)[A-Z]{1,6}[ -]?\d[A-Z0-9 -]{6,38}\b"  # letters first: Italy, Spain's NIE, IBAN-like
    r"|\b\d{7,8}[- ]?[A-Z]\b|\b\d{6}[-+A]\d{3}[0-9A-Y]\b|\b\d{17}X\b",  # a letter last: Spain, Finland, China
    re.ASCII,
)
_IP = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}")
_CARD = re.compile(r"\d(?:[ -]?\d){12,18}(?!\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.ASCII)
_PHONE = re.compile(
    r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,5}"  # +49 30 1234 5678
    r"|\(\d{3,4}\) ?\d{3,4}[-. ]\d{4}|\d{3}([-.])\d{3}\1\d{4}"  # (555) 123-4567, 555-123-4567
    r"|1[-.]\d{3}[-.]\d{3}[-.]\d{4}"  # 1-555-123-4567
    r"|0\d{1,4}[ /-]\d{2,4}(?:[ /-]?\d{2,4}){1,3}"  # 030 1234 5678, 06 12 34 56 78
)
_NO_NUMBER_BEFORE = re.compile(
    r"(?:[\w#=$€£.,/:-]|(?:version|release|build|rev|isbn|issn|doi|pmid|arxiv|ean|rfc)\b.{0,12})$", re.I
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
_FILE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".js", ".css", ".py")  # icon@2x.png
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
        for match in _RUN.finditer(text):
            if one := _judge_run(text, match, in_runs):
                found.append(one)
    order = {kind: rank for rank, kind in enumerate(KINDS)}
    taken: list[Found] = []
    for one in sorted(found, key=lambda one: (one.start, order[one.kind])):
        if not taken or one.start >= taken[-1].end:
            taken.append(one)
        elif order[one.kind] < order[taken[-1].kind] and one.start < taken[-1].end:
            taken[-1] = one
    return taken


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
        if not domain.endswith(_RESERVED_DOMAINS) and not domain.endswith(_FILE_ENDINGS):
            yield match.span()


def _ibans(text: str) -> Iterable[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        if span := _longest_iban(match):
            yield span


def _longest_iban(match: re.Match) -> tuple[int, int] | None:
    """An IBAN at the start of what looks like one: words in capitals may follow it."""
    value = match[0]
    while len(value) >= 15:
        if is_iban(value):
            return match.start(), match.start() + len(value)
        value = value[: value.rfind(" ")] if " " in value else ""
    return None


def _lettered_ids(text: str) -> Iterable[tuple[int, int]]:
    for match in _LETTERED.finditer(text):
        if is_identity_number(match[0], text[max(0, match.start() - _CONTEXT_CHARACTERS) : match.start()]):
            yield match.span()


def _ip6(text: str) -> Iterable[tuple[int, int]]:
    if "::" in text or text.count(":") > 5:
        for match in _IP6.finditer(text):
            before = text[match.start() - 1 : match.start()]
            if not (before.isalnum() or before in ("_", ":", ".")) and _is_public_ip(match[0]):
                yield match.span()


_FINDERS: dict[str, Callable[[str], Iterable[tuple[int, int]]]] = {
    "secret": find_secrets,
    "email": _emails,
    "iban": _ibans,
    "id": _lettered_ids,
    "ip": _ip6,
}


# ---- what is decided on a run of digits ------------------------------------------------------------------------------

_RUN_KINDS = ("id", "ip", "card", "phone")


def _judge_run(text: str, match: re.Match, kinds: list[str]) -> Found | None:
    """What a run of digits is, if it is anybody's."""
    start, run = match.start(), match[0]
    num_digits = sum(map(str.isdigit, run))
    if num_digits < 4 or _DATE.match(run) or _is_one_number(text, match):
        return None
    before = text[max(0, start - _CONTEXT_CHARACTERS) : start]
    if "ip" in kinds and run.count(".") >= 3 and (ip := _IP.fullmatch(run.strip("() "))):
        is_version = _VERSION_BEFORE.search(before) or (_is_small(ip[0]) and not _ADDRESS_BEFORE.search(before))
        start += run.index(ip[0])
        return Found(start, start + len(ip[0]), "ip") if not is_version and _is_public_ip(ip[0]) else None
    if num_digits < 8 or (before and _NO_NUMBER_BEFORE.search(before)):
        return None
    if "card" in kinds and (card := _CARD.match(run)) and _is_grouped(card[0]) and is_card_number(card[0]):
        return Found(start, start + card.end(), "card")
    if "id" in kinds and is_identity_number(run.strip("() "), before):
        return Found(start, match.end(), "id")
    phone = _PHONE.match(run) if "phone" in kinds else None
    if phone and 9 <= sum(map(str.isdigit, phone[0])) <= 15 and _ends_well(text, start + phone.end()):
        return Found(start, start + phone.end(), "phone")
    return None


def _is_one_number(text: str, match: re.Match) -> bool:
    """Whether a run is part of a figure, a name or a hash: a letter or a decimal part touches it."""
    after = text[match.end() : match.end() + 2]
    return bool(after) and (after[0].isalnum() or after[0] == "_" or (after[0] in ".,-/:" and after[1:].isalnum()))


def _ends_well(text: str, end: int) -> bool:
    after = text[end : end + 1]
    return not (after.isalnum() or after in ("/", "-", "_"))


def _is_grouped(value: str) -> bool:
    """Cards are written whole or in groups of three to six digits, with one sign."""
    groups = re.split(r"[ -]", value)
    return len(groups) == 1 or (all(3 <= len(group) <= 7 for group in groups) and len(set(value) & {" ", "-"}) == 1)


def _is_small(ip: str) -> bool:
    """Whether an address has small parts only, as versions and numbers of sections have."""
    return all(int(part) < 50 for part in ip.split("."))


def _is_public_ip(value: str) -> bool:
    try:
        return ipaddress.ip_address(value).is_global
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
    value = value.replace(" ", "")
    if not 15 <= len(value) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in value[4:] + value[:4])) % 97 == 1
