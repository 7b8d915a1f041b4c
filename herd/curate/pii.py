"""Personal data: found by pattern, confirmed by checksum where the format has one, and masked.

Source: the Llama 3 paper, section 3.1.1 (personal information is removed); FineWeb masks e-mail and public IP addresses
with reserved ones, which keeps the sentence natural; ISO 13616 (IBAN), ISO/IEC 7812 (Luhn).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter

MASKS = {
    "email": "email@example.com",  # RFC 2606
    "ip": "192.0.2.1",  # RFC 5737
    "phone": "+1 555 0100",
    "card": "[card number]",
    "iban": "[IBAN]",
}
"""What takes the place of each kind of personal data."""

_EMAIL = re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_CARD = re.compile(r"(?<![\d.,-])(?:\d[ -]?){12,18}\d(?![\d.,-]?\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_PHONE = re.compile(
    r"(?<![\w.,/=#+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,4}){1,4}"  # +49 30 1234 5678
    r"|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}[-.]\d{3}[-.]\d{4})(?![\w/]|[.,-]\d)"  # (555) 123-4567, 555-123-4567
)
_RESERVED_DOMAINS = ("example.com", "example.org", "example.net", ".example", ".invalid", ".test", "localhost")


def mask_pii(text: str, kinds: tuple[str, ...] = tuple(MASKS)) -> tuple[str, Counter]:
    """The text with personal data masked, and how much of each kind there was.

    Addresses that are reserved for documentation or private networks are nobody's and stay.
    """
    found: Counter = Counter()
    for kind in kinds:
        pattern, is_real, sign = _KINDS[kind]
        if sign not in text and sign:
            continue

        def replace(match: re.Match, kind: str = kind, is_real=is_real) -> str:
            if not is_real(match[0]):
                return match[0]
            found[kind] += 1
            return MASKS[kind]

        text = pattern.sub(replace, text)
    return text, found


def _is_email(value: str) -> bool:
    domain = value.rpartition("@")[2].lower()
    return not domain.endswith(_RESERVED_DOMAINS)


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


def _is_phone(value: str) -> bool:
    return 9 <= sum(map(str.isdigit, value)) <= 15


_KINDS = {
    "email": (_EMAIL, _is_email, "@"),
    "ip": (_IP, _is_public_ip, "."),
    "iban": (_IBAN, is_iban, ""),
    "card": (_CARD, is_card_number, ""),
    "phone": (_PHONE, _is_phone, ""),
}
