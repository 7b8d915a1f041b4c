"""Which pages are not read at all: blocked domains, words in addresses, pages younger than the knowledge cutoff.

A block list is a file or words in the recipe. A file has one domain a line (`casino.example`, its subdomains are meant
too; lines of hosts files such as `0.0.0.0 casino.example` and `||casino.example^` are read as well; `#` begins a
comment). Lists are named by their category, and the funnel counts by category.

Source: the Llama 3 paper, section 3.1.1: domains ranked as harmful by safety standards, domains known to hold adult
content, and domains with much personal information are removed.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from dataclasses import field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from herd.config import settings
from herd.errors import DataError

Reason = tuple[str, str]

CATEGORIES = ("personal", "adult", "unsafe")
"""The paper's categories; any other name may be used as well."""

_HOSTS_FILE = re.compile(r"^(?:0\.0\.0\.0|127\.0\.0\.1|::1?)\s+")
_DOMAIN = re.compile(r"^(?:[a-z0-9_](?:[a-z0-9_-]{0,62}\.)+)[a-z0-9-]{2,63}$")
_URL_WORDS = re.compile(r"[^\W_]+")
_ISO = re.compile(r"(\d{4})(?:[-/.](\d{1,2})(?:[-/.](\d{1,2})(?:[T ]+(\d{2}):?(\d{2})(?::?(\d{2}))?.*)?)?)?$", re.A)
_DIGITS = re.compile(r"(\d{4})(\d{2})(\d{2})(?:(\d{2})(\d{2})(\d{2})?)?$", re.A)
_NAMED_MONTH = re.compile(
    r"(?:[A-Z][a-z]+,? )?(?:(?P<day>\d{1,2})(?:st|nd|rd|th)?\.? )?(?P<month>[A-Z][a-z]{2,8})\.?"
    r"(?: (?P<later>\d{1,2})(?:st|nd|rd|th)?)?,? (?P<year>\d{4})\b"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_EPOCH = re.compile(r"(?:\d{10}|\d{13})(?:\.\d+)?$", re.A)
_DATE = re.compile(r"^\d{4}(?:-\d{2}(?:-\d{2}(?:T\d{2}:\d{2}:\d{2}Z?)?)?)?$")


@settings
class Blocked:
    """Pages that are dropped for their address."""

    domains: dict[str, list[str]] = field(default_factory=dict)
    """Category (personal, adult, unsafe or your own) to domains; subdomains are meant too."""
    domain_files: dict[str, list[Path]] = field(default_factory=dict)
    """Category to files of domains, one a line (hosts files and gzip work too)."""
    words: dict[str, list[str]] = field(default_factory=dict)
    """Category to words that no address may contain as a whole word (`casino` is in /casino-games, not in /casinos)."""
    word_files: dict[str, list[Path]] = field(default_factory=dict)
    """Category to files of such words, one a line."""


class AddressGate:
    """Tells by address and date which pages are not wanted. Reads its files once, when it is made.

    Raises:
        DataError: a list cannot be read, or holds what is no domain.
    """

    def __init__(self, blocked: Blocked, cutoff: str | None = None):
        self._blocked = blocked
        self.cutoff = cutoff or ""
        self.domains: dict[str, str] = {}  # domain -> category
        for category, names in blocked.domains.items():
            for name in names:
                self.domains[_domain(name, f"blocked.domains.{category}")] = category
        for category, files in blocked.domain_files.items():
            for file in files:
                for number, line in list_lines(file):
                    self.domains[_domain(line, f"{file}:{number}")] = category
        words = {word: category for category, words in blocked.words.items() for word in words}
        for category, files in blocked.word_files.items():
            words |= {line: category for file in files for _, line in list_lines(file)}
        self._words = {_plain(word): category for word, category in words.items() if _plain(word)}

    @cached_property
    def _word_pattern(self) -> re.Pattern:
        alternatives = "|".join(re.escape(word) for word in sorted(self._words, key=len, reverse=True))
        return re.compile(rf"(?<![^\W_])(?:{alternatives})(?![^\W_])")

    def why_refuse(self, url: str, date: str = "") -> Reason | None:
        """The reason to drop a page, with the entry of the list that it met; None for a page that is wanted."""
        if self.cutoff and plain_date(date)[: len(self.cutoff)] > self.cutoff:
            return "after_cutoff", f"{date} is after {self.cutoff}"
        if self.domains and (domain := self._blocked_domain(url)):
            return f"blocked_domain_{self.domains[domain]}", domain
        if self._words and (match := self._word_pattern.search(_plain(unquote(url)))):
            return f"blocked_word_{self._words[match[0]]}", match[0]
        return None

    def _blocked_domain(self, url: str) -> str | None:
        labels = host(url).split(".")
        for start in range(len(labels) - 1):
            if (name := ".".join(labels[start:])) in self.domains:
                return name
        return None


def host(url: str) -> str:
    """The host of an address in lower case, without `www.`, port and user; empty where there is none."""
    try:
        name = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    name = name.rstrip(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            return name
    return name.removeprefix("www.")


@lru_cache(maxsize=100_000)
def registered_domain(name: str) -> str:
    """What somebody has registered of a host: of `shop.bees.co.uk` it is `bees.co.uk`; empty where there is none.

    Source: the public suffix list (publicsuffix.org), without the suffixes of private providers.
    """
    labels, suffixes = name.split("."), _suffixes()
    read = [_unicode(label) for label in labels]
    for start in range(len(labels)):
        suffix = ".".join(read[start:])
        under = ".".join(["*", *read[start + 1 :]])
        if f"!{suffix}" in suffixes:
            return ".".join(labels[start:])
        if suffix in suffixes or (under in suffixes and start + 1 < len(labels)):
            return ".".join(labels[start - 1 :]) if start else ""
    return ""


@cache
def _suffixes() -> frozenset[str]:
    """The rules of the list in tldextract's folder; the package itself, which can fetch others, is not imported."""
    spec = find_spec("tldextract")
    assert spec is not None and spec.submodule_search_locations
    text = (Path(spec.submodule_search_locations[0]) / ".tld_set_snapshot").read_text(encoding="utf-8")
    public = text.partition("===BEGIN PRIVATE DOMAINS===")[0]
    return frozenset(line.split()[0] for line in public.splitlines() if line.strip() and not line.startswith("//"))


def _unicode(label: str) -> str:
    try:
        return label.encode().decode("idna") if label.startswith("xn--") else label
    except UnicodeError:
        return label


def check_cutoff(cutoff: str | None) -> None:
    """Refuse what is no date.

    Raises:
        ValueError: not YYYY, YYYY-MM, YYYY-MM-DD or a full ISO 8601 time.
    """
    if cutoff is not None and not (_DATE.match(cutoff) and plain_date(cutoff)):
        raise ValueError(f"cutoff: expected a date such as 2023-12-31, got {cutoff!r}")


def plain_date(date: str) -> str:
    """A page's date as `2024-05-01T10:20:30Z`, or as much of it as is known; empty for what is no date.

    Read are ISO 8601, its digits alone (`20240501102030`), dates of mail and HTTP, English ones with the month's name,
    and seconds or milliseconds since 1970. Of `01/05/2024` nobody can tell the month: it is no date.
    """
    found = _ISO.match(date.strip()) or _DIGITS.match(date.strip())
    if found is None:
        return _timestamp(date.strip())
    year, month, day, hour, minute, second = (int(part) if part else None for part in found.groups())
    if not (year and (month is None or 1 <= month <= 12) and (day is None or 1 <= day <= 31)):
        return ""
    days = f"{year:04d}" + "".join(f"-{part:02d}" for part in (month, day) if part is not None)
    return days if hour is None else f"{days}T{hour:02d}:{minute or 0:02d}:{second or 0:02d}Z"


def _timestamp(date: str) -> str:
    try:
        if _EPOCH.match(date):
            found = datetime.fromtimestamp(float(date) / (1000 if len(date.partition(".")[0]) == 13 else 1), UTC)
        else:
            found = parsedate_to_datetime(date)
            found = found.astimezone(UTC) if found.tzinfo else found
        return f"{found.replace(tzinfo=None).isoformat(timespec='seconds')}Z"
    except (ValueError, TypeError, LookupError, OverflowError):
        return _with_month_name(date)


def _with_month_name(date: str) -> str:
    """`March 4, 2021`, `Thursday, 4th Mar 2021, 10:00`: the day of it."""
    found = _NAMED_MONTH.match(date)
    day = found and (found["day"] or found["later"])
    if found is None or not day or found["month"][:3] not in _MONTHS or not 1 <= int(day) <= 31:
        return ""
    return f"{found['year']}-{_MONTHS.index(found['month'][:3]) + 1:02d}-{int(day):02d}"


def _domain(line: str, place: str) -> str:
    name = _HOSTS_FILE.sub("", line.strip().lower()).removeprefix("||").removeprefix("*.").removeprefix("www.")
    name = name.rstrip("^/.").removeprefix("http://").removeprefix("https://").removeprefix("www.")
    if not name.isascii():
        name = host(f"http://{name}")
    if not _DOMAIN.match(name):
        raise DataError(f"{place}: {line.strip()!r} is no domain; expected a name such as casino.example")
    return name


def _plain(text: str) -> str:
    """Lower case without accents; underscores part words as hyphens do."""
    folded = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in folded if not unicodedata.combining(c)).strip()


def list_lines(file: Path) -> list[tuple[int, str]]:
    """The lines of a list with their numbers, without comments.

    Raises:
        DataError: the file cannot be read as text.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8") as lines:
            rows = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a list, one entry a line: {error}") from None
    return [(number, line) for number, line in rows if line]
