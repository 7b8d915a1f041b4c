"""National identity and tax numbers, where a number can be checked.

A format strong enough by itself (letters at fixed places, many digits with a date and check digits) needs no context;
one that a chance number meets now and then counts only after a word that announces it.

Sources: the check digits as the issuing states publish them (mostly weighted sums modulo 10, 11, 23, 89 or 97; Verhoeff
1969 for Aadhaar; ISO 7064 for Germany's tax number and China's resident number).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date
from typing import NamedTuple


class _Format(NamedTuple):
    name: str
    pattern: re.Pattern
    check: Callable[[str], bool]  # of the value without spaces, dots, hyphens and slashes
    context: re.Pattern | None  # what must stand shortly before; None: the number speaks for itself


_SIGNS = re.compile(r"[\s./-]")


def is_identity_number(value: str, before: str = "") -> bool:
    """Whether a value is a national identity number; `before` is the text right before it.

    Raises nothing: what is of no known format is none.
    """
    return identity_format(value, before) is not None


def identity_format(value: str, before: str = "") -> str | None:
    """The name of the format that a value is an identity number of, or None."""
    plain = _SIGNS.sub("", value).upper()
    for name, pattern, check, context in _FORMATS:
        if pattern.fullmatch(value) and (context is None or context.search(before)) and check(plain):
            return name
    return None


# ---- check digits ----------------------------------------------------------------------------------------------------


def _weighted(value: str, weights: Sequence[int | str]) -> int:
    return sum(int(digit) * int(weight) for digit, weight in zip(value, weights, strict=False))


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        return date(year, month, day) <= date.today()
    except ValueError:
        return False


def _luhn(value: str) -> bool:
    digits = [int(c) for c in value]
    return (sum(digits[-1::-2]) + sum(sum(divmod(2 * d, 10)) for d in digits[-2::-2])) % 10 == 0


def _spain(value: str) -> bool:
    number = value[:-1].translate(str.maketrans("XYZ", "012"))
    return value[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


_ODD_VALUES = "1 0 5 7 9 13 15 17 19 21 1 0 5 7 9 13 15 17 19 21 2 4 18 20 11 3 6 8 12 14 16 10 22 25 24 23"
_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", map(int, _ODD_VALUES.split()), strict=True))


def _italy(value: str) -> bool:
    odd = sum(_ODD[c] for c in value[:15:2])
    even = sum(int(c) if c.isdigit() else ord(c) - 65 for c in value[1:15:2])
    return value[15] == chr(65 + (odd + even) % 26)


def _france(value: str) -> bool:
    number = value[:13].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 1 <= int(value[3:5]) <= 42 and 97 - int(number) % 97 == int(value[13:])


def _germany(value: str) -> bool:
    if value[0] == "0" or len(set(value[:10])) not in (8, 9):
        return False
    product = 10
    for digit in value[:10]:
        total = (int(digit) + product) % 10 or 10
        product = 2 * total % 11
    return (11 - product) % 10 == int(value[10])


def _netherlands(value: str) -> bool:
    return int(value) > 0 and (_weighted(value, "98765432") - int(value[8])) % 11 == 0


def _poland(value: str) -> bool:
    year, month, day = int(value[:2]), int(value[2:4]), int(value[4:6])
    century = {0: 1900, 1: 2000, 4: 1800}.get(month // 20 if month < 60 else 4 * (month >= 80), 0)
    is_dated = century and _is_date(century + year, month % 20, day)
    return bool(is_dated) and (_weighted(value, "1379137913") + int(value[10])) % 10 == 0


def _sweden(value: str) -> bool:
    digits = re.sub(r"\D", "", value)[-10:]
    is_dated = _is_date(1900 + int(digits[:2]), int(digits[2:4]), int(digits[4:6]))
    return is_dated and _luhn(digits)


def _finland(value: str) -> bool:
    number = value[:6] + value[-4:-1]
    day, month, year = int(value[:2]), int(value[2:4]), int(value[4:6])
    return _is_date(1900 + year, month, day) and value[-1] == "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(number) % 31]


def _britain_health(value: str) -> bool:
    check = 11 - _weighted(value, [10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11
    return len(set(value)) > 1 and check % 11 == int(value[9]) and check != 10


def _brazil_person(value: str) -> bool:
    if len(set(value)) == 1:
        return False
    first = _weighted(value, list(range(10, 1, -1))) * 10 % 11 % 10
    second = _weighted(value, list(range(11, 1, -1))) * 10 % 11 % 10
    return value[9:] == f"{first}{second}"


def _china(value: str) -> bool:
    is_dated = _is_date(int(value[6:10]), int(value[10:12]), int(value[12:14]))
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]
    return is_dated and value[17] == "10X98765432"[_weighted(value, weights) % 11]


def _australia_tax(value: str) -> bool:
    return len(set(value)) > 1 and _weighted(value, [1, 4, 3, 7, 5, 8, 6, 9, 10]) % 11 == 0


def _usa(value: str) -> bool:
    area, group, serial = value[:3], value[3:5], value[5:]
    known_fakes = ("078051120", "219099999", "123456789")
    return (
        area not in ("000", "666") and area < "900" and group != "00" and serial != "0000" and value not in known_fakes
    )


_D5 = ["0123456789", "1234067895", "2340178956", "3401289567", "4012395678"]
_D5 += ["5987604321", "6598710432", "7659821043", "8765932104", "9876543210"]
_PERMUTATION = [
    "0123456789",
    "1576283094",
    "5803796142",
    "8916043527",
    "9453126870",
    "4286573901",
    "2793806415",
    "7046913258",
]


def _india(value: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(value)):
        check = int(_D5[check][int(_PERMUTATION[place % 8][int(digit)])])
    return check == 0 and value[0] not in "01"


def _is_day_first(value: str) -> bool:
    """Whether a value begins with a birthday as day, month, year."""
    return any(_is_date(century + int(value[4:6]), int(value[2:4]), int(value[:2])) for century in (1900, 2000))


def _is_year_first(value: str) -> bool:
    """Whether a value begins with a birthday as year, month, day."""
    return any(_is_date(century + int(value[:2]), int(value[2:4]), int(value[4:6])) for century in (1900, 2000))


def _norway(value: str) -> bool:
    first, second = -_weighted(value, "376189452") % 11, -_weighted(value, "5432765432") % 11
    return _is_day_first(value) and value[9:] == f"{first}{second}"


def _czechia(value: str) -> bool:
    month = int(value[2:4]) % 50 % 20
    is_dated = any(_is_date(century + int(value[:2]), month, int(value[4:6])) for century in (1900, 2000))
    return is_dated and (len(value) == 9 or int(value) % 11 == 0)


def _korea(value: str) -> bool:
    check = (11 - _weighted(value, "234567892345") % 11) % 10
    return _is_year_first(value) and (check == int(value[12]) or int(value[:2]) >= 20)  # newer ones are random


def _chile(value: str) -> bool:
    weighted = sum(int(digit) * (2 + place % 6) for place, digit in enumerate(reversed(value[:-1])))
    return "0123456789K"[-weighted % 11] == value[-1]


def _mexico(value: str) -> bool:
    letters = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"
    return -sum(letters.index(c) * (18 - place) for place, c in enumerate(value[:17])) % 10 == int(value[17])


def _romania(value: str) -> bool:
    check = _weighted(value, "279146358279") % 11
    return value[0] in "12345678" and _is_year_first(value[1:]) and (1 if check == 10 else check) == int(value[12])


def _turkey(value: str) -> bool:
    digits = list(map(int, value))
    first = (7 * sum(digits[0:9:2]) - sum(digits[1:8:2])) % 10
    return value[0] != "0" and digits[9] == first and digits[10] == sum(digits[:10]) % 10


def _baltic(value: str) -> bool:
    check = _weighted(value, "1234567891") % 11
    check = _weighted(value, "3456789123") % 11 % 10 if check == 10 else check
    return _is_year_first(value[1:]) and check == int(value[10])


def _croatia(value: str) -> bool:
    product = 10
    for digit in value[:10]:
        product = 2 * ((int(digit) + product) % 10 or 10) % 11
    return (11 - product) % 10 == int(value[10])


def _belgium(value: str) -> bool:
    return int(value[9:]) in (97 - int(value[:9]) % 97, 97 - int("2" + value[:9]) % 97)


def _yugoslavia(value: str) -> bool:
    check = -_weighted(value, "765432765432") % 11
    year = int(value[4:7]) + (1000 if value[4] == "9" else 2000)
    return _is_date(year, int(value[2:4]), int(value[:2])) and check % 10 == int(value[12]) and check != 10


def _russia(value: str) -> bool:
    return sum(int(digit) * (9 - place) for place, digit in enumerate(value[:9])) % 101 % 100 == int(value[9:])


def _singapore(value: str) -> bool:
    total = _weighted(value[1:8], "2765432") + {"T": 4, "G": 4, "M": 3}.get(value[0], 0)
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "M": "KLJNPQRTUWX"}.get(value[0], "XWUTRQPNMLK")
    return value[8] == (letters[10 - total % 11] if value[0] == "M" else letters[total % 11])


def _hong_kong(value: str) -> bool:
    plain = value.strip("()").replace("(", "").rjust(9)
    numbers = [36 if c == " " else int(c, 36) for c in plain]
    return sum(number * (9 - place) for place, number in enumerate(numbers)) % 11 == 0


def _taiwan(value: str) -> bool:
    first = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(value[0]) + 10
    return (first // 10 + first % 10 * 9 + _weighted(value[1:9], "87654321") + int(value[9])) % 10 == 0


def _thailand(value: str) -> bool:
    return (11 - _weighted(value, range(13, 1, -1)) % 11) % 10 == int(value[12])


def _japan(value: str) -> bool:
    rest = _weighted(value, "65432765432") % 11
    return (0 if rest <= 1 else 11 - rest) == int(value[11])


def _ireland(value: str) -> bool:
    total = _weighted(value[:7], "8765432") + 9 * (ord(value[8]) - 64 if value[8:] not in ("", "W") else 0)
    return value[7] == "WABCDEFGHIJKLMNOPQRSTUV"[total % 23]


def _any(value: str) -> bool:
    return True  # no check digit: the form, and the word before it


# ---- the formats -----------------------------------------------------------------------------------------------------


def _format(name: str, pattern: str, check: Callable[[str], bool], context: str | None = None) -> _Format:
    words = re.compile(rf"(?:{context})[^\n]{{0,24}}$", re.I) if context else None
    return _Format(name, re.compile(pattern, re.ASCII), check, words)


_FORMATS = (
    _format("Brazil CPF", r"\d{3}\.\d{3}\.\d{3}-\d{2}", _brazil_person),
    _format("Brazil CPF", r"\d{11}", _brazil_person, r"\bcpf\b"),
    _format("China resident number", r"[1-9]\d{16}[\dX]", _china),
    _format("Italy codice fiscale", r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", _italy),
    _format("Spain DNI", r"(?:\d{8}|[XYZ][- ]?\d{7})[- ]?[A-Z]", _spain, r"\b(?:dni|nif|documento|n\.?i\.?e)\b"),
    _format("France NIR", r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-4]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", _france),
    _format("Finland HETU", r"\d{6}[-+A]\d{3}[0-9A-Y]", _finland),
    _format("Poland PESEL", r"\d{11}", _poland, r"\bpesel\b"),
    _format("Sweden personnummer", r"(?:\d{2})?\d{6}[-+]\d{4}", _sweden),
    _format("Germany tax number", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", _germany, r"steuer-?\s?id|steuerid|\bidnr\b"),
    _format("Netherlands BSN", r"\d{9}|\d{4}[ .]\d{2}[ .]\d{3}", _netherlands, r"\bbsn\b|burgerservicenummer"),
    _format("Britain NHS number", r"\d{3}[ -]?\d{3}[ -]?\d{4}", _britain_health, r"\bnhs\b"),
    _format("Britain national insurance", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]",
            lambda value: value[:2] not in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ"),
            r"national insurance|\bnino\b|\bni (?:no|number)"),
    _format("USA social security", r"\d{3}[- ]\d{2}[- ]\d{4}|\d{9}", _usa, r"\bssn\b|social security"),
    _format("Canada SIN", r"\d{3}[ -]?\d{3}[ -]?\d{3}", _luhn, r"\bsin\b|social insurance"),
    _format("Australia TFN", r"\d{3} ?\d{3} ?\d{3}", _australia_tax, r"\btfn\b|tax file"),
    _format("Norway fødselsnummer", r"\d{6} ?\d{5}", _norway, r"fødselsn|personnummer|\bf\.?nr\b"),
    _format("Denmark CPR", r"\d{6}[- ]?\d{4}", _is_day_first, r"\bcpr\b|cpr-?n|personnummer"),
    _format("Iceland kennitala", r"\d{6}-?\d{4}", _is_day_first, r"kennitala|\bkt\b"),
    _format("Czech and Slovak birth number", r"\d{6}/\d{4}", _czechia),
    _format("Czech and Slovak birth number", r"\d{6}/?\d{3,4}", _czechia, r"rodn[ée] [cč]|\br\.? ?[cč]\b"),
    _format("Korea resident number", r"\d{6}-[1-8]\d{6}", _korea),
    _format("Chile RUT", r"\d{1,2}\.\d{3}\.\d{3}-[\dKk]", _chile),
    _format("Argentina CUIT", r"(?:20|23|24|27|30|33|34)-\d{8}-\d",
            lambda value: (11 - _weighted(value, "5432765432") % 11) % 11 == int(value[10])),
    _format("Mexico CURP", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d", _mexico),
    _format("Bulgaria EGN", r"\d{10}",
            lambda value: _weighted(value, [2, 4, 8, 5, 10, 9, 7, 3, 6]) % 11 % 10 == int(value[9]), r"\begn\b|егн"),
    _format("Romania CNP", r"\d{13}", _romania, r"\bcnp\b|cod numeric"),
    _format("Turkey TCKN", r"\d{11}", _turkey, r"kimlik|\btckn\b|\bt\.? ?c\.? ?(?:no|numara)"),
    _format("Greece AMKA", r"\d{11}", lambda value: _is_day_first(value) and _luhn(value), r"\bamka\b|αμκα"),
    _format("Switzerland AHV", r"756\.\d{4}\.\d{4}\.\d{2}", lambda value: _weighted(value, "1313131313131") % 10 == 0),
    _format("India PAN", r"[A-Z]{3}[ABCFGHLJPT][A-Z]\d{4}[A-Z]", _any, r"\bpan\b"),
    _format("Portugal NIF", r"\d{3} ?\d{3} ?\d{3}",
            lambda value: -_weighted(value, "98765432") % 11 % 10 == int(value[8]), r"\bnif\b|contribuinte"),
    _format("Croatia OIB", r"\d{11}", _croatia, r"\boib\b"),
    _format("Estonia and Lithuania personal code", r"[1-6]\d{10}", _baltic, r"isikukood|asmens kod|\ba\. ?k\."),
    _format("Latvia personal code", r"\d{6}-\d{5}", _any, r"personas kod|\bp\. ?k\."),
    _format("Belgium national number", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", _belgium),
    _format("Belgium national number", r"\d{11}", _belgium, r"rijksregister|registre national|\binsz\b|\bniss\b"),
    _format("Austria social security", r"\d{4} ?\d{6}", lambda value: _is_day_first(value[4:]),
            r"\bsv-?nr|sozialversicherung"),
    _format("Israel identity number", r"\d{9}", _luhn, r"ת\W{0,2}ז|תעודת זהות|teudat"),
    _format("South Africa identity number", r"\d{13}|\d{6} \d{4} \d{3}",
            lambda value: _is_year_first(value) and _luhn(value), r"\bid\b|identity"),
    _format("Hungary TAJ", r"\d{3}[ -]?\d{3}[ -]?\d{3}",
            lambda value: _weighted(value, "37373737") % 10 == int(value[8]), r"\btaj\b"),
    _format("Serbia, Slovenia, Bosnia citizen number", r"\d{13}", _yugoslavia, r"jmbg|јмбг|emšo|ембг"),
    _format("Russia SNILS", r"\d{3}-\d{3}-\d{3} \d{2}", _russia),
    _format("Russia INN, Ukraine tax number", r"\d{10}|\d{12}", _any, r"\bинн\b|\bіпн\b|рнокпп"),
    _format("Singapore NRIC", r"[STFGM]\d{7}[A-Z]", _singapore),
    _format("Hong Kong identity card", r"[A-Z]{1,2}\d{6}\([\dA]\)", _hong_kong),
    _format("Taiwan identity card", r"[A-Z][12]\d{8}", _taiwan, r"身[分份]證|\bid\b|identity"),
    _format("Thailand identity card", r"\d-\d{4}-\d{5}-\d{2}-\d", _thailand),
    _format("Thailand identity card", r"\d{13}", _thailand, r"บัตร|ประจำตัว"),
    _format("Malaysia MyKad", r"\d{6}-\d{2}-\d{4}", _is_year_first, r"\bic\b|mykad|kad pengenalan|\bnric\b"),
    _format("Indonesia NIK", r"\d{16}", _any, r"\bnik\b|\bktp\b"),
    _format("Japan individual number", r"\d{4}[ -]?\d{4}[ -]?\d{4}", _japan, r"マイナンバー|個人番号"),
    _format("Ireland PPS", r"\d{7}[A-W][A-IW]?", _ireland, r"\bpps"),
    _format("India Aadhaar", r"\d{4} ?\d{4} ?\d{4}", _india, r"aadhaar|aadhar|\buid(?:ai)?\b"),
)  # fmt: skip
FORMATS = tuple(dict.fromkeys(entry.name for entry in _FORMATS))
"""The formats that are known."""
