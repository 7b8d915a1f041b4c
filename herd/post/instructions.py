"""Prompts whose answers code can judge, made here: instructions with checks of form, and small sums.

What is asked (a task and a topic) is crossed with what the answer must look like (one to three checks that do not
contradict one another, each in several wordings). Nothing of a benchmark is in them: the tasks, topics and wordings are
this file's own. Rows of one topic have one `group`, so that a held-out split keeps whole topics apart; the last wording
of every check and the last tasks can be kept for it too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

from herd.errors import ConfigError

_TASKS = (
    "Tell me something about {}.", "Describe {} in plain words.", "What is good about {}?", "Explain {} to a child.",
    "Why do people care about {}?", "Write a short note about {}.", "Give one piece of advice about {}.",
    "Say what you notice first about {}.", "Write a message to a friend about {}.", "Name one fact about {}.",
    "What should a beginner know about {}?", "Recommend {} to somebody who has never thought of it.",
)  # fmt: skip
_TOPICS = (
    "bread", "rain", "bicycles", "libraries", "tea", "mountains", "trains", "honey", "winter", "chess", "gardens",
    "bridges", "whales", "pencils", "markets", "lighthouses", "apples", "thunder", "violins", "clay", "maps", "salt",
    "islands", "kites", "wool", "windmills", "postcards", "owls", "rivers", "clocks", "soap", "deserts", "umbrellas",
    "olives", "harbours", "snow", "candles", "bees", "theatre", "ladders", "rice", "forests", "buttons", "volcanoes",
    "cheese", "tunnels", "swimming", "mushrooms", "paper", "the moon", "coffee", "hiking", "glass", "sailing",
    "museums", "beans", "sleep", "drums", "photographs", "compost", "spices", "ferries", "puzzles", "shadows",
)  # fmt: skip
_KEYWORDS = ("simple", "always", "morning", "people", "useful", "small", "world", "water", "quiet", "together", "learn")
_ENDINGS = ("That is all.", "I hope this helps.", "Thank you for asking.", "The end.", "Ask me again.")
_MARKS = ("P.S.", "P.P.S")
_LETTERS = "aeilnorst"

_UNSEEN_TASKS = 3  # at the end of _TASKS
Wordings = Literal["all", "known", "unseen"]
"""Which wordings prompts are made of: all; all but the last tasks and the last wording of each check; those alone."""
_Made = tuple[dict[str, Any], tuple[str, ...]]  # arguments, and what can be said for them


def _sized(draw: random.Random) -> _Made:
    if draw.random() < 0.5:
        count = draw.choice((8, 10, 12, 15, 20, 25))
        given = {"num_words": count, "relation": "less than"}
        return given, (
            f"Use fewer than {count} words.",
            f"Stay below {count} words.",
            f"Answer in less than {count} words.",
        )
    count = draw.choice((20, 25, 30, 40, 50))
    return {"num_words": count, "relation": "at least"}, (
        f"Use at least {count} words.",
        f"Write {count} words or more.",
        f"The answer needs {count} words at least.",
    )


def _sentences(draw: random.Random) -> _Made:
    count = draw.choice((2, 3, 4))
    if draw.random() < 0.5:
        given = {"num_sentences": count, "relation": "less than"}
        return given, (f"Write fewer than {count} sentences.", f"It must have less than {count} sentences.")
    given = {"num_sentences": count, "relation": "at least"}
    return given, (f"Write at least {count} sentences.", f"It must have {count} sentences or more.")


def _keywords(draw: random.Random) -> _Made:
    chosen = draw.sample(_KEYWORDS, draw.choice((1, 1, 2)))
    named = " and ".join(f'"{one}"' for one in chosen)
    word = "words" if len(chosen) > 1 else "word"
    texts = f"Use the {word} {named}.", f"The {word} {named} must occur in it.", f"Do not forget to say {named}."
    return {"keywords": chosen}, texts


def _forbidden(draw: random.Random) -> _Made:
    chosen = draw.sample(("the", "and", "is", "it", "you", "can", "very", "of"), draw.choice((1, 2)))
    named = " or ".join(f'"{one}"' for one in chosen)
    texts = f"Do not use {named}.", f"Avoid saying {named}.", f"The answer must never say {named}."
    return {"forbidden_words": chosen}, texts


def _letter(draw: random.Random) -> _Made:
    letter, count = draw.choice(_LETTERS), draw.choice((3, 5, 8))
    given = {"letter": letter, "let_frequency": count}
    if draw.random() < 0.5:
        return given | {"let_relation": "less than"}, (
            f"The letter {letter} must occur fewer than {count} times.",
            f"Write the letter {letter} less than {count} times in all.",
        )
    return given | {"let_relation": "at least"}, (
        f"The letter {letter} must occur at least {count} times.",
        f"Write the letter {letter} {count} times or more.",
    )


def _bullets(draw: random.Random) -> _Made:
    count = draw.choice((2, 3, 4))
    return {"num_bullets": count}, (
        f"Give exactly {count} bullet points, each after a * sign.",
        f"Answer as a list of {count} lines with `* `.",
    )


def _ending(draw: random.Random) -> _Made:
    phrase = draw.choice(_ENDINGS)
    texts = f'End with "{phrase}"', f'The last words must be "{phrase}"', f'Finish by saying "{phrase}"'
    return {"end_phrase": phrase}, texts


def _postscript(draw: random.Random) -> _Made:
    mark = draw.choice(_MARKS)
    texts = f"Add a postscript that begins with {mark}", f"Put a line starting with {mark} below the answer."
    return {"postscript_marker": mark}, texts


def _highlights(draw: random.Random) -> _Made:
    count = draw.choice((1, 2))
    several = "s" * (count > 1)
    return {"num_highlights": count}, (
        f"Put at least {count} part{several} of it between asterisks, *like this*.",
        f"Highlight {count} part{several} or more with *asterisks*.",
    )


def _plain(*texts: str) -> Callable[[random.Random], _Made]:
    return lambda draw: ({}, texts)


_KINDS: dict[str, tuple[str, Callable[[random.Random], _Made]]] = {  # check -> what it is about, how it is made
    "length_constraints:number_words": ("length", _sized),
    "length_constraints:number_sentences": ("length", _sentences),
    "keywords:existence": ("keywords", _keywords),
    "keywords:forbidden_words": ("words", _forbidden),
    "keywords:letter_frequency": ("letters", _letter),
    "detectable_format:number_bullet_lists": ("layout", _bullets),
    "startend:end_checker": ("end", _ending),
    "startend:quotation": (
        "end",
        _plain("Wrap the whole answer in double quotation marks.", 'Put it between " signs.', 'Quote all of it, "so".'),
    ),
    "detectable_content:postscript": ("end", _postscript),
    "detectable_format:number_highlighted_sections": ("layout", _highlights),
    "detectable_format:title": (
        "title",
        _plain("Give it a title in double angle brackets, such as <<a title>>.", "Begin with a title <<written so>>."),
    ),
    "punctuation:no_comma": (
        "commas",
        _plain("Use no commas.", "There must be no comma in it.", "Commas are not allowed."),
    ),
    "change_case:english_lowercase": (
        "case",
        _plain("Write in lower case only.", "Use no capital letters.", "Every letter must be lowercase."),
    ),
    "change_case:english_capital": (
        "case",
        _plain("Write in capital letters only.", "ANSWER IN CAPITALS.", "Every letter must be uppercase."),
    ),
}
KINDS = tuple(_KINDS)
"""The checks that prompts are made for."""
_AT_ODDS = ({"case", "end"}, {"case", "keywords"}, {"case", "title"}, {"length", "layout"})  # hard to have both


def instruction_rows(
    count: int, *, seed: int = 0, most: int = 2, kinds: tuple[str, ...] = KINDS, wordings: Wordings = "all"
) -> list[dict[str, Any]]:
    """`count` different prompts with one to `most` checks each: `prompt`, `instruction_id_list`, `kwargs`, `group`,
    `kind` (its checks, in order). `known` and `unseen` wordings share neither a task nor words for a check.

    Raises:
        ConfigError: there is no such check, or there are not so many prompts.
    """
    if unknown := [one for one in kinds if one not in _KINDS]:
        raise ConfigError(f"no prompts are made for `{unknown[0]}`; there are: {', '.join(KINDS)}")
    draw, rows, seen = random.Random(seed), list[dict[str, Any]](), set[str]()
    for _ in range(60 * count):
        if len(rows) == count:
            return rows
        names = _chosen(draw, draw.randint(1, most), kinds)
        made = [_KINDS[name][1](draw) for name in names]
        topic = draw.choice(_TOPICS)
        said = (draw.choice(_worded(texts, wordings, 1)) for _, texts in made)
        prompt = " ".join([draw.choice(_worded(_TASKS, wordings, _UNSEEN_TASKS)).format(topic), *said])
        if prompt not in seen:
            seen.add(prompt)
            arguments = [given for given, _ in made]
            rows.append(
                {"prompt": prompt, "instruction_id_list": names, "kwargs": arguments, "group": topic}
                | {"kind": " + ".join(sorted(names))}
            )
    raise ConfigError(f"only {len(rows):,} different prompts can be made so, {count:,} were asked for; ask for fewer")


def _worded(texts: tuple[str, ...], wordings: Wordings, kept: int) -> tuple[str, ...]:
    """What may be said: all texts, all but the last `kept`, or those."""
    return {"all": texts, "known": texts[:-kept], "unseen": texts[-kept:]}[wordings]


def _chosen(draw: random.Random, count: int, kinds: tuple[str, ...]) -> list[str]:
    """Checks that can hold together, at most one about each thing."""
    names: list[str] = []
    for name in draw.sample(kinds, len(kinds)):
        about = {_KINDS[one][0] for one in names}
        new = _KINDS[name][0]
        if len(names) < count and new not in about and not any({new, old} in _AT_ODDS for old in about):
            names.append(name)
    return names


_SUMS = (
    "What is {}?", "Compute {}.", "How much is {}? Give the number.", "{} = ?", "Work out {} and say the result.",
    "Please tell me the value of {}.",
)  # fmt: skip


def sum_rows(count: int, *, seed: int = 0, largest: int = 20) -> list[dict[str, Any]]:
    """`count` different small sums, differences and products with their `answer`; `group` is the sum itself.

    Raises:
        ConfigError: there are not so many.
    """
    draw, rows, seen = random.Random(seed), list[dict[str, Any]](), set[str]()
    for _ in range(60 * count):
        if len(rows) == count:
            return rows
        left, right, sign = draw.randint(1, largest), draw.randint(1, largest), draw.choice("+-*")
        value = {"+": left + right, "-": left - right, "*": left * right}[sign]
        asked = f"{left} {sign} {right}"
        prompt = draw.choice(_SUMS).format(asked)
        if prompt not in seen:
            seen.add(prompt)
            rows.append({"prompt": prompt, "answer": str(value), "group": asked, "kind": sign})
    raise ConfigError(f"only {len(rows):,} different sums can be made so, {count:,} were asked for; raise `largest`")
