"""The judge: everything that decides about one document by itself, in order, each step counted in the funnel.

    heuristics -> outliers -> pii -> quality

A step is a method that returns the reason to drop the document, or None; it may change the document's text or score.
What a step needs of the whole corpus was fitted before and lies in the state folder.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from herd.config import settings, to_dict
from herd.curate.addresses import Blocked, check_cutoff, host, list_lines
from herd.curate.filters import (
    TECHNICAL_FILTERS,
    WEB_FILTERS,
    Limits,
    ListedWords,
    Reason,
    Text,
    check_limits,
    check_names,
    reasons,
    technical_kind,
)
from herd.curate.funnel import Step
from herd.curate.outliers import Outliers, WordCounts, load_counts, save_counts
from herd.curate.parts import save_array, write_record
from herd.curate.pii import KINDS, find_pii, mask_found
from herd.curate.quality import quality

Kind = Literal["secret", "email", "iban", "id", "ip", "card", "phone"]


@settings
class Heuristics:
    """Rules of thumb about the text."""

    enabled: bool = True
    """Whether to apply the Gopher, C4 and FineWeb rules."""
    skip: list[str] = field(default_factory=list)
    """Filters that are not applied, by name (`fineweb_short_lines`)."""
    limits: dict[str, Limits] = field(default_factory=dict)
    """Language (or * for all) to filter to its limits: {de: {gopher_word_length: {most: 12}}}."""
    exempt: list[Literal["code", "maths"]] = field(default_factory=lambda: ["code", "maths"])
    """Kinds of technical pages that are held to length and repetition alone; the funnel shows what that spares."""
    technical_sources: list[str] = field(default_factory=lambda: ["library", "pydoc"])
    """Sources held to the rules for technical pages whatever their text looks like."""
    word_lists: dict[str, list[Path]] = field(default_factory=dict)
    """Category to files of words or phrases, one a line: pages with too many of them are dropped."""
    max_listed_words: int = 2
    """Listed words that a page may hold; 0 drops at the first, as C4 did."""
    max_listed_share: float = 0.002
    """Share (0 to 1) of a page's words that may be listed ones; a page is dropped when it passes both limits."""
    outliers: float | None = 6.0
    """Drop prose whose words lie this many scatters further from the corpus than usual (KL divergence); none: never."""

    def __post_init__(self):
        check_limits(self.limits)
        check_names(self.skip)
        if self.max_listed_words < 0 or not 0 <= self.max_listed_share <= 1:
            raise ValueError("max_listed_words must be at least 0 and max_listed_share between 0 and 1")
        if self.outliers is not None and self.outliers <= 0:
            raise ValueError("outliers must be above 0, or none")


@settings
class Privacy:
    """Personal data and secrets."""

    mask: list[Kind] = field(default_factory=lambda: list(KINDS))
    """Kinds that are masked: secret, email, iban, id (national identity numbers), ip, card, phone."""
    drop: list[Kind] = field(default_factory=list)
    """Kinds for which the whole document is dropped."""
    in_code: list[Kind] = field(default_factory=lambda: ["secret", "email"])
    """Kinds that are looked for in source files as well: numbers in code are seldom anybody's."""


@settings
class Quality:
    """Scores."""

    min_score: float = 0.0
    """Least score, 0 to 1."""

    def __post_init__(self):
        if not 0 <= self.min_score <= 1:
            raise ValueError("min_score must be between 0 and 1")


@settings
class Rules:
    """Which documents are kept, beside duplicates."""

    cutoff: str | None = None
    """Knowledge cutoff: pages dated later are dropped (YYYY, YYYY-MM or YYYY-MM-DD, the whole of it kept)."""
    blocked: Blocked = field(default_factory=Blocked)
    languages: list[str] | None = None
    """Languages to keep, ISO 639-1; default: all."""
    language_probability: float = 0.3
    """Least probability at which a document counts as being in its language."""
    heuristics: Heuristics = field(default_factory=Heuristics)
    privacy: Privacy = field(default_factory=Privacy)
    quality: Quality = field(default_factory=Quality)
    titles: bool = True
    """Whether a page's text begins with its title where it does not say it itself."""

    def __post_init__(self):
        check_cutoff(self.cutoff)
        if not 0 <= self.language_probability <= 1:
            raise ValueError("language_probability must be between 0 and 1")


_RULES = TypeAdapter(Rules)


def rules_to_json(rules: Rules) -> dict[str, Any]:
    """Rules as plain data that `rules_from_json` reads: they travel so to the processes that judge."""
    return to_dict(rules)


def rules_from_json(data: dict[str, Any]) -> Rules:
    """The rules that `rules_to_json` wrote."""
    return _RULES.validate_python(data)


class Judge:
    """Applies rules to documents, one after the other. Made once in each process; `state` holds what was fitted."""

    STEPS = ("heuristics", "outliers", "pii", "quality")

    def __init__(self, rules: Rules, state: Path | None = None):
        self.rules = rules
        heuristics = rules.heuristics
        lists = {name: [line for file in files for _, line in list_lines(file)] for name, files in _lists(rules)}
        words = ListedWords(lists, heuristics.max_listed_words, heuristics.max_listed_share) if lists else None
        self._listed = (words,) if words else ()
        self._skip = frozenset(heuristics.skip)
        self._outliers = Outliers.load(state / FITTED) if state is not None and (state / FITTED).exists() else None
        self._is_common = load_domains(state)

    def judge(self, row: dict[str, Any], steps: dict[str, Step]) -> bool:
        """Judge a document in place; returns whether it is kept. A dropped one has `drop` and `drop_detail`.

        `row` is a document with `kind` (html, text or code); `steps` maps the names of `STEPS` to their counts.
        """
        return all(take_step(row, steps[name], getattr(self, f"_{name}_step")) for name in self.STEPS)

    def _heuristics_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        """Hold a page to the filters of its kind, and count by kind what each filter drops, or would have dropped."""
        options = self.rules.heuristics
        if not options.enabled:
            return None
        text = Text(row["text"], row["language"])
        kind = _kind(row)
        technical = kind in options.exempt or row["source"] in options.technical_sources
        kinds = [kind or "prose", *(["rare domain"] if not self._is_common(host(row["url"])) else [])]
        rules = (*(TECHNICAL_FILTERS if technical else WEB_FILTERS), *self._listed)
        reason = next(reasons(text, rules, options.limits, self._skip), None)
        spared = {name for name, _ in reasons(text, WEB_FILTERS, options.limits, self._skip)} if technical else ()
        for name in kinds:
            step.tables["pages"][name] += 1
            if reason:
                step.tables[f"{name}: dropped"][reason[0]] += 1
            step.tables[f"{name}: spared"].update(spared)
        row["technical"] = technical
        return reason

    def _outliers_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        most = self.rules.heuristics.outliers
        if self._outliers is None or most is None or row.get("technical"):
            return None
        distance = self._outliers.distance(row["text"], row["language"])
        if distance is None or distance <= most:
            return None
        rare = self._outliers.rarest_words(row["text"], row["language"])
        return "outlier_words", f"{distance:.1f} scatters from the corpus; rarest: {rare}"

    def _pii_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        options = self.rules.privacy
        kinds = {*options.mask, *options.drop}
        if row["kind"] == "code":
            kinds &= set(options.in_code)
        if not kinds:
            return None
        found = find_pii(row["text"], kinds)
        step.notes.update(one.kind for one in found)
        if worst := next((one for one in found if one.kind in options.drop), None):
            return f"pii_{worst.kind}", f"{sum(one.kind == worst.kind for one in found)} found"
        row["text"] = mask_found(row["text"], found)
        return None

    def _quality_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        row["quality"] = quality(row["text"], row["kind"] == "code")
        least = self.rules.quality.min_score
        return None if row["quality"] >= least else ("quality", f"score {row['quality']:.2f}")


# ---- what is fitted to the whole corpus ------------------------------------------------------------------------------

FITTED = "keys/outliers.npz"
_DOMAINS = "keys/domains.npy"
_RARE_DOMAIN_PAGES = 5
_DOMAIN_BUCKETS = 1 << 20


def needs_fitting(rules: Rules) -> bool:
    """Whether the judge needs a pass over the corpus before it begins."""
    return rules.heuristics.enabled


def count_part(job: dict[str, Any]) -> dict[str, Any]:
    """Count one part's words by language and its domains; writes `state/keys/NAME.words.npz`."""
    state, name = Path(job["state"]), job["name"]
    columns = ["text", "language", "url", "kind", "source", "drop", "code_lines"]
    rows = pq.read_table(state / "text" / f"{name}.parquet", columns=columns).to_pylist()
    copies = set(np.load(state / "keys" / f"{name}.copy.npy")["doc"].tolist())
    options = rules_from_json(job["rules"]).heuristics
    counted: dict[str, WordCounts] = {}
    domains = np.zeros(_DOMAIN_BUCKETS, dtype=np.uint32)
    for number, row in enumerate(rows):
        if row["drop"] is not None or number in copies:
            continue
        domains[_domain_bucket(host(row["url"]))] += 1
        is_prose = row["kind"] != "code" and row["source"] not in options.technical_sources
        if options.outliers and row["language"] and is_prose and _kind(row) not in options.exempt:
            counted.setdefault(row["language"], WordCounts()).add(row["text"])
    file = state / "keys" / f"{name}.words.npz"
    save_counts(counted, file, domains=domains)
    write_record(file.with_suffix(".json"), len(rows), [file])
    return {}


def fit(parts: list[str], state: Path) -> None:
    """Fit the outlier measure to what `count_part` counted, and find the domains that are not rare."""
    files = [state / "keys" / f"{name}.words.npz" for name in parts]
    Outliers.fit(load_counts(files)).save(state / FITTED)
    domains = np.zeros(_DOMAIN_BUCKETS, dtype=np.uint32)
    for file in files:
        with np.load(file) as arrays:
            np.add.at(domains, arrays["domains filled"], arrays["domains counts"])
    save_array(domains, state / _DOMAINS)


def load_domains(state: Path | None) -> Callable[[str], bool]:
    """A test whether a domain has at least five pages in the corpus (by hashed buckets: a rare one may pass)."""
    if state is None or not (state / _DOMAINS).exists():
        return lambda name: True
    domains = np.load(state / _DOMAINS)
    return lambda name: bool(domains[_domain_bucket(name)] >= _RARE_DOMAIN_PAGES)


def _kind(row: dict[str, Any]) -> str | None:
    """Whether a document is `code`, `maths` or neither."""
    if row["kind"] == "code":
        return "code"
    marked = row.get("code_lines") or ()
    return technical_kind(row["text"], sum(marked[1::2]) - sum(marked[::2]))


def _domain_bucket(name: str) -> int:
    return zlib.crc32(name.encode()) % _DOMAIN_BUCKETS


# ---- the rules' files, and taking a step -----------------------------------------------------------------------------


def _lists(rules: Rules) -> list[tuple[str, list[Path]]]:
    return list(rules.heuristics.word_lists.items())


def rule_files(rules: Rules) -> list[Path]:
    """Every file that the rules read: they are inputs of a curation like its pages."""
    lists = [*rules.blocked.domain_files.values(), *rules.blocked.word_files.values()]
    lists += rules.heuristics.word_lists.values()
    return [file for files in lists for file in files]


def take_step(row: dict[str, Any], step: Step, check: Callable[[dict[str, Any], Step], Reason | None]) -> bool:
    """Put a document through one step and count it; returns whether it goes on."""
    before = len(row["text"].encode())
    step.documents_in += 1
    step.bytes_in += before
    reason = check(row, step)
    if reason is not None:
        row["drop"], row["drop_detail"] = reason
        step.drop(row["url"], *reason, row["text"])
        return False
    step.keep(before, len(row["text"].encode()))
    return True
