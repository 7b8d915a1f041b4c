"""Prompts whose answers code can judge, made here: instructions with checks of form, and small sums.

What is asked (a task and a topic) is crossed with what the answer must look like (one to three checks that do not
contradict one another, each in several wordings). Nothing of a benchmark is in them: the tasks, topics and wordings are
this file's own. Rows of one topic have one `group`, so that a held-out split keeps whole topics apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

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

_Made = tuple[dict[str, Any], str]  # arguments and wording


def _sized(draw: random.Random) -> _Made:
    if draw.random() < 0.5:
        count = draw.choice((8, 10, 12, 15, 20, 25))
        texts = (f"Use fewer than {count} words.", f"Stay below {count} words.", f"Answer in less than {count} words.")
        return {"num_words": count, "relation": "less than"}, draw.choice(texts)
    count = draw.choice((20, 25, 30, 40, 50))
    texts = (
        f"Use at least {count} words.",
        f"Write {count} words or more.",
        f"The answer needs {count} words at least.",
    )
    return {"num_words": count, "relation": "at least"}, draw.choice(texts)


def _sentences(draw: random.Random) -> _Made:
    count = draw.choice((2, 3, 4))
    if draw.random() < 0.5:
        return {"num_sentences": count, "relation": "less than"}, f"Write fewer than {count} sentences."
    return {"num_sentences": count, "relation": "at least"}, f"Write at least {count} sentences."


def _keywords(draw: random.Random) -> _Made:
    chosen = draw.sample(_KEYWORDS, draw.choice((1, 1, 2)))
    named = " and ".join(f'"{one}"' for one in chosen)
    word = "words" if len(chosen) > 1 else "word"
    return {"keywords": chosen}, draw.choice((f"Use the {word} {named}.", f"The {word} {named} must occur in it."))


def _forbidden(draw: random.Random) -> _Made:
    chosen = draw.sample(("the", "and", "is", "it", "you", "can", "very", "of"), draw.choice((1, 2)))
    named = " or ".join(f'"{one}"' for one in chosen)
    return {"forbidden_words": chosen}, draw.choice((f"Do not use {named}.", f"Avoid saying {named}."))


def _letter(draw: random.Random) -> _Made:
    letter, count = draw.choice(_LETTERS), draw.choice((3, 5, 8))
    if draw.random() < 0.5:
        text = f"The letter {letter} must occur fewer than {count} times."
        return {"letter": letter, "let_frequency": count, "let_relation": "less than"}, text
    text = f"The letter {letter} must occur at least {count} times."
    return {"letter": letter, "let_frequency": count, "let_relation": "at least"}, text


def _bullets(draw: random.Random) -> _Made:
    count = draw.choice((2, 3, 4))
    texts = (
        f"Give exactly {count} bullet points, each after a * sign.",
        f"Answer as a list of {count} lines with `* `.",
    )
    return {"num_bullets": count}, draw.choice(texts)


def _ending(draw: random.Random) -> _Made:
    phrase = draw.choice(_ENDINGS)
    return {"end_phrase": phrase}, draw.choice((f'End with "{phrase}"', f'The last words must be "{phrase}"'))


def _postscript(draw: random.Random) -> _Made:
    mark = draw.choice(_MARKS)
    return {"postscript_marker": mark}, f"Add a postscript that begins with {mark}"


def _highlights(draw: random.Random) -> _Made:
    count = draw.choice((1, 2))
    text = f"Put at least {count} part{'s' * (count > 1)} of it between asterisks, *like this*."
    return {"num_highlights": count}, text


def _plain(*texts: str) -> Callable[[random.Random], _Made]:
    return lambda draw: ({}, draw.choice(texts))


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
        _plain("Wrap the whole answer in double quotation marks.", 'Put it between " signs.'),
    ),
    "detectable_content:postscript": ("end", _postscript),
    "detectable_format:number_highlighted_sections": ("layout", _highlights),
    "detectable_format:title": ("title", _plain("Give it a title in double angle brackets, such as <<a title>>.")),
    "punctuation:no_comma": ("commas", _plain("Use no commas.", "There must be no comma in it.")),
    "change_case:english_lowercase": ("case", _plain("Write in lower case only.", "Use no capital letters.")),
    "change_case:english_capital": ("case", _plain("Write in capital letters only.", "ANSWER IN CAPITALS.")),
}
KINDS = tuple(_KINDS)
"""The checks that prompts are made for."""
_AT_ODDS = ({"case", "end"}, {"case", "keywords"}, {"case", "title"}, {"length", "layout"})  # hard to have both


def instruction_rows(
    count: int, *, seed: int = 0, most: int = 2, kinds: tuple[str, ...] = KINDS
) -> list[dict[str, Any]]:
    """`count` different prompts with one to `most` checks each: `prompt`, `instruction_id_list`, `kwargs`, `group`,
    `kind` (its checks, in order).

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
        prompt = " ".join([draw.choice(_TASKS).format(topic), *(text for _, text in made)])
        if prompt not in seen:
            seen.add(prompt)
            arguments = [given for given, _ in made]
            rows.append(
                {"prompt": prompt, "instruction_id_list": names, "kwargs": arguments, "group": topic}
                | {"kind": " + ".join(sorted(names))}
            )
    raise ConfigError(f"only {len(rows):,} different prompts can be made so, {count:,} were asked for; ask for fewer")


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
