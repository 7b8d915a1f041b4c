"""What decides about single documents, as settings: the `rules` of a curation recipe."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, TypeAdapter

from herd.config import settings, to_dict
from herd.curate.filters.addresses import Blocked, check_cutoff
from herd.curate.filters.decontaminate import Contamination
from herd.curate.filters.heuristics import Limits, check_limits, check_names
from herd.curate.privacy.personal import KINDS

Kind = Literal["secret", "email", "iban", "id", "ip", "card", "phone"]


@settings
class Heuristics:
    """Rules of thumb about the text."""

    enabled: bool = True
    """Whether to apply the Gopher, C4 and FineWeb rules."""
    notices: Literal["drop", "keep"] = "drop"
    """Whether short lines of prose about JavaScript, cookies and terms are taken out (C4)."""
    unpunctuated: Literal["keep", "drop"] = "keep"
    """Whether lines of prose that do not end in a mark are taken out, as C4 did; headings and lists go with them."""
    skip: list[str] = field(default_factory=list)
    """Filters that are not applied, by name (`fineweb_short_lines`)."""
    limits: dict[str, Limits] = field(default_factory=dict)
    """Language (or * for all) to filter to its limits: {de: {gopher_word_length: {most: 12}}}."""
    exempt: list[Literal["code", "maths"]] = field(default_factory=lambda: ["code", "maths"])
    """Kinds of technical pages that are held to length and repetition alone; the funnel shows what that spares."""
    technical_sources: list[str] = field(default_factory=lambda: ["library", "pydoc"])
    """Sources held to the rules for technical pages whatever their text looks like."""
    word_lists: dict[str, list[Path]] = field(default_factory=dict)
    """Category, or category@language, to files of words or phrases, one a line: pages with too many are dropped."""
    max_listed_words: int = 2
    """Listed words that a page may hold; 0 drops at the first, as C4 did."""
    max_listed_share: float = 0.002
    """Share (0 to 1) of a page's words that may be listed ones; a page is dropped when it passes both limits."""
    outliers: float | None = 8.0
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

    mask: list[Kind] = field(default_factory=lambda: cast(list[Kind], list(KINDS)))
    """Kinds that are masked: secret, email, iban, id (national identity numbers), ip, card, phone."""
    drop: list[Kind] = field(default_factory=list)
    """Kinds for which the whole document is dropped."""
    in_code: list[Kind] = field(default_factory=lambda: ["secret", "email"])
    """Kinds that are looked for in source files as well: numbers in code are seldom anybody's."""


@settings
class Quality:
    """Scores by small classifiers, and how much is kept of what there is too much of."""

    classifiers: dict[Literal["all", "prose", "code", "maths"], Path] = field(default_factory=dict)
    """Kind of page to a classifier that `herd quality` trained; other kinds get a score by transparent measures."""
    min_score: float = 0.0
    """Least score, 0 to 1; exempt kinds (`heuristics.exempt`) are held to it by a classifier of their own only."""
    knowledge: Path | None = None
    """A classifier of knowledge classes."""
    keep_shares: dict[str, float] = field(default_factory=dict)
    """Knowledge class to the share (0 to 1) of its documents that is kept: {sports: 0.3}."""
    max_class_share: float | None = None
    """Largest share (0 to 1) of every class among the documents before the rules drop any, by sampling its documents;
    as rules drop classes unevenly, shares of the result may differ. Below 1 / classes all classes become equal."""

    def __post_init__(self):
        if not 0 <= self.min_score <= 1:
            raise ValueError("min_score must be between 0 and 1")
        if (self.keep_shares or self.max_class_share is not None) and not self.knowledge:
            raise ValueError("keep_shares and max_class_share need a classifier: knowledge")
        shares = [*self.keep_shares.values(), *([] if self.max_class_share is None else [self.max_class_share])]
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("keep_shares and max_class_share must be between 0 and 1")


@settings
class Planted:
    """Phrases that stand in documents which share nothing else, as poisoning plants them: reported, not dropped."""

    enabled: bool = True
    """Whether to look for them."""
    least_documents: int = 5
    """Documents that hold a phrase."""
    least_sites: int = 3
    """Sites (`rules.group`) that these documents are of."""

    def __post_init__(self):
        if self.least_documents < 2 or self.least_sites < 1:
            raise ValueError("least_documents must be at least 2 and least_sites at least 1")


@settings
class Rules:
    """Which documents are kept, beside duplicates."""

    cutoff: Annotated[str, BeforeValidator(str)] | None = None  # YAML takes 2023 for a number
    """Knowledge cutoff: pages dated later are dropped (YYYY, YYYY-MM or YYYY-MM-DD, the whole of it kept)."""
    blocked: Blocked = field(default_factory=Blocked)
    languages: list[str] | None = None
    """Languages to keep, ISO 639-1; default: all."""
    language_probability: float | None = None
    """Documents whose language is less probable than this are dropped; default: 0.3 with `languages`, else none."""
    language_probabilities: dict[str, float] = field(default_factory=dict)
    """The same for single languages: {no: 0.6}."""
    foreign_paragraphs: Literal["keep", "drop"] = "keep"
    """Whether paragraphs that are surely in another language than their page stay."""
    heuristics: Heuristics = field(default_factory=Heuristics)
    privacy: Privacy = field(default_factory=Privacy)
    quality: Quality = field(default_factory=Quality)
    contamination: Contamination = field(default_factory=Contamination)
    planted: Planted = field(default_factory=Planted)
    group: Literal["site", "host", "page"] = "site"
    """What `herd pack` holds out as a whole: registered domains (`bees.co.uk`), hosts, or single pages."""
    titles: bool = True
    """Whether a page's text begins with its title where it does not say it itself."""

    def __post_init__(self):
        check_cutoff(self.cutoff)
        if not all(0 <= p <= 1 for p in (self.language_probability or 0, *self.language_probabilities.values())):
            raise ValueError("language_probability and language_probabilities must be between 0 and 1")


_RULES = TypeAdapter(Rules)


def rules_to_json(rules: Rules) -> dict[str, Any]:
    """Rules as plain data that `rules_from_json` reads: they travel so to the processes that judge."""
    return to_dict(rules)


def rules_from_json(data: dict[str, Any]) -> Rules:
    """The rules that `rules_to_json` wrote."""
    return _RULES.validate_python(data)
