"""What a guard looks for: a policy is a YAML file of categories, each with where it counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field
from pathlib import Path
from typing import Literal, get_args

from herd.config import find_recipe, load, settings
from herd.errors import ConfigError, DataError

Where = Literal["input", "output", "tool"]
"""What is judged: what a user writes, what the model answers, what a tool brought."""
PLACES: tuple[Where, ...] = get_args(Where)
SAFE, UNSAFE = "safe", "unsafe"
"""The label of harmless rows; and of harmful ones whose category is not known."""
_SAFE_WORDS = {"safe", "benign", "harmless", "ok", "0", "false", "no", "none", ""}
_UNSAFE_WORDS = {"unsafe", "harmful", "1", "true", "yes", "toxic", "violation"}


@settings
class Category:
    """One thing that a guard looks for."""

    name: str
    """What people read."""
    scope: str = ""
    """What belongs to it."""
    on: list[Where] = field(default_factory=lambda: [*PLACES])
    """Where it counts: input, output, tool."""
    refusal: str = ""
    """What is answered instead; the policy's own words if empty."""
    moderation: list[str] = field(default_factory=list)
    """Categories of OpenAI's moderations that it belongs to: violence, hate, illicit, sexual/minors, ..."""


@settings
class Policy:
    """The categories of a guard, and what is answered instead of what it flags."""

    categories: dict[str, Category]
    """Categories by their codes."""
    name: str = "policy"
    """What it is called."""
    refusal: str = "I can't help with that."
    """What is answered instead; `{categories}` and `{where}` stand for what was found."""
    keywords: list[str] = field(default_factory=list)
    """Words of the keyword list that the guard is measured against; found in the rows if empty."""

    def __post_init__(self) -> None:
        if not self.categories:
            raise ValueError("categories: name at least one")
        for code, category in self.categories.items():
            if code.lower() in _SAFE_WORDS | _UNSAFE_WORDS or "," in code:
                raise ValueError(f"categories: {code!r} cannot be a code; it means something else in rows")
            if not category.on:
                raise ValueError(
                    f"categories.{code}.on: a category that counts nowhere is none; name input, output or tool"
                )
        try:
            self.refusal.format(categories="", where="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"refusal: only {{categories}} and {{where}} may stand in braces ({error})") from None

    def at(self, where: Where) -> list[str]:
        """The codes that count there."""
        return [code for code, category in self.categories.items() if where in category.on]

    def words(self, codes: Collection[str], where: Where) -> str:
        """What is answered instead, once these categories were found."""
        own = [self.categories[code].refusal for code in codes if code in self.categories]
        text = next(filter(None, own), self.refusal)
        names = [self.categories[code].name if code in self.categories else code for code in codes]
        told = " and ".join(name[:1].lower() + name[1:] for name in names) or "harmful content"
        return text.replace("{categories}", told).replace("{where}", {"tool": "tool's result"}.get(where, where))

    def code_of(self, label: str) -> str:
        """The code, `safe` or `unsafe` that a row's label means.

        Raises:
            DataError: none of them.
        """
        word = label.strip().lower()
        for code, category in self.categories.items():
            if word in (code.lower(), category.name.lower()):
                return code
        if word in _SAFE_WORDS:
            return SAFE
        if word in _UNSAFE_WORDS:
            return UNSAFE
        raise DataError(
            f"the label {label!r} is none of the policy {self.name!r}: expected {', '.join(self.categories)}, safe or "
            "unsafe"
        )


def read_policy(file: Path | str) -> Policy:
    """A policy from its file, or by its place among the shipped ones (`safety/hazards.yaml`).

    Raises:
        ConfigError: it is missing, or no policy.
    """
    return load(Policy, find_recipe(Path(file)))


def only(policy: Policy, names: Collection[str]) -> list[str]:
    """The codes that names mean, in the policy's order.

    Raises:
        ConfigError: one is none of its categories.
    """
    known = {key.lower(): code for code, one in policy.categories.items() for key in (code, one.name)}
    if wrong := [name for name in names if name.lower() not in known]:
        raise ConfigError(f"{wrong[0]!r} is no category of the policy {policy.name!r}: {', '.join(policy.categories)}")
    wanted = {known[name.lower()] for name in names}
    return [code for code in policy.categories if code in wanted]
