"""Long prompts with something to find in them, made here from anybody's text: needles of three difficulties and RULER's
kinds. A row says what is asked (`prompt`), what is right (`answers`), its `kind`, `length` in tokens and `depth`.

Needles: `plain` stands out of its place; `style` reads like the text around it; `paraphrased` is asked for in other
words, among sentences that differ from it in one thing; `multi` are four, of which two are asked for, as in the paper.
The others are RULER's. Source: Hsieh et al. 2024 ("RULER: What's the Real Context Size of Your Long-Context Models?").
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from herd.errors import DataError
from herd.tokenizer.tokenizer import Tokenizer

RESERVE_TOKENS = 96
"""Of a length so many are left for the chat template and the answer."""


def _words(text: str) -> list[str]:
    return text.split()


_CITIES = _words(
    "Lisbon Oslo Nairobi Quito Hanoi Dublin Sofia Lima Cairo Perth Kyoto Riga Tunis Leeds Basel Turin Ghent Porto "
    "Bergen Cork Malaga Zagreb Accra Dakar Tampere Graz"
)
_NAMES = _words("Marta Ivo Lena Tomas Ada Nils Rosa Emil Clara Otto Vera Hugo Ines Karl Dora Paul")
_TRADES = (  # what somebody does, and the same in other words
    ("repairs old clocks", "works as a watchmaker"),
    ("bakes bread before dawn", "earns a living as a baker"),
    ("looks after other people's teeth", "is a dentist"),
    ("teaches children to count", "is a teacher of arithmetic"),
    ("flies passengers across the sea", "has a job as an airline pilot"),
    ("makes shoes by hand", "is a cobbler"),
    ("keeps bees and sells what they make", "produces honey"),
    ("mends torn sails", "is a sailmaker"),
)
_PLACES = (  # a city, and the country it is asked by
    ("Porto", "Portugal"),
    ("Turin", "Italy"),
    ("Bergen", "Norway"),
    ("Kyoto", "Japan"),
    ("Quito", "Ecuador"),
    ("Nairobi", "Kenya"),
    ("Ghent", "Belgium"),
    ("Cork", "Ireland"),
)
_THINGS = (
    "under the third flower pot",
    "behind the blue stove",
    "inside the broken lantern",
    "beneath the chapel steps",
)
_WORDS = _words(
    "anchor basket candle dragon engine feather garden hammer island jacket kettle ladder market needle orange pencil "
    "quarry ribbon saddle tunnel umbrella valley window yellow zipper barrel castle donkey falcon glacier harbor insect"
)


@dataclass(frozen=True)
class Hidden:
    """What is put into a text, and what is asked of it."""

    needles: Sequence[str]  # sentences; the first stands at the depth, the others are spread
    question: str
    answers: Sequence[str]
    haystack: Sequence[str] | None = None  # sentences to hide it among, in the place of the text
    any_answer: bool = False  # one of the answers is enough


Maker = Callable[[random.Random, int, Sequence[Mapping[str, Any]]], Hidden]
"""(draw, length in tokens, rows of questions) -> what is hidden."""


def _plain(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    city, number = draw.choice(_CITIES), str(draw.randrange(10_000, 100_000))
    needle = f"The magic number of {city} is {number}."
    return Hidden([needle], f"What is the magic number of {city} that the text gives?", [number])


def _style(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    name, place = draw.choice(_NAMES), draw.choice(_THINGS)
    needle = (
        f"Everybody in the street knew, though nobody spoke of it, that {name} had always left the spare key {place}."
    )
    return Hidden([needle], f"Where did {name} leave the spare key?", [place])


def _paraphrased(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    (does, asked), (other, _) = draw.sample(_TRADES, 2)
    (city, country), (elsewhere, _) = draw.sample(_PLACES, 2)
    name, *others = draw.sample(_NAMES, 3)
    needles = [f"{name} lives in {city} and {does}.", f"{others[0]} lives in {elsewhere} and {does}."]
    needles.append(f"{others[1]} lives in {city} and {other}.")
    return Hidden(needles, f"Which person, at home in {country}, {asked}? Give the first name.", [name])


def _multi(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    cities = draw.sample(_CITIES, 4)
    numbers = [str(draw.randrange(10_000, 100_000)) for _ in cities]
    needles = [f"The magic number of {city} is {number}." for city, number in zip(cities, numbers)]
    first, second = sorted(draw.sample(range(4), 2))
    question = f"What are the magic numbers of {cities[first]} and of {cities[second]} that the text gives?"
    return Hidden(needles, question, [numbers[first], numbers[second]])


def _pairs(draw: random.Random, count: int) -> list[tuple[str, str]]:
    keys = {f"{draw.choice(_WORDS)}-{draw.choice(_WORDS)}-{draw.randrange(100)}": "" for _ in range(3 * count)}
    return [(key, str(draw.randrange(1_000_000, 10_000_000))) for key in list(keys)[:count]]


def _value_line(key: str, value: str) -> str:
    return f"One of the special magic numbers for {key} is: {value}."


def _single(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    ((key, value),) = _pairs(draw, 1)
    noise = ["The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again."]
    question = f"What is the special magic number for {key} mentioned in the text?"
    return Hidden([_value_line(key, value)], question, [value], [one for _ in range(length // 4) for one in noise])


def _multikey(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    (key, value), *others = _pairs(draw, max(4, length // 20))
    question = f"What is the special magic number for {key} mentioned in the text?"
    return Hidden([_value_line(key, value)], question, [value], [_value_line(*one) for one in others])


def _multivalue(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    pairs = _pairs(draw, 4)
    key, values = pairs[0][0], [value for _, value in pairs]
    question = f"What are all the special magic numbers for {key} mentioned in the text?"
    return Hidden([_value_line(key, value) for value in values], question, values)


def _multiquery(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    pairs = _pairs(draw, 4)
    keys = ", ".join(key for key, _ in pairs[:-1]) + f" and {pairs[-1][0]}"
    question = f"What are the special magic numbers for {keys} mentioned in the text?"
    return Hidden([_value_line(*one) for one in pairs], question, [value for _, value in pairs])


def _tracking(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    names = [f"{one}{draw.randrange(10)}".upper() for one in draw.sample(_WORDS, 5)]
    value = str(draw.randrange(10_000, 100_000))
    chain = [f"VAR {names[0]} = {value}.", *(f"VAR {b} = VAR {a}." for a, b in pairwise(names))]
    question = f"Which variables are assigned the value {value}, directly or through others? Name all {len(names)}."
    return Hidden(chain, question, names)


def _common(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    count = max(20, length // 24)  # distinct rare words, each 3 times; the common ones 30 times
    common = draw.sample(_WORDS, 5)
    rare = [f"{draw.choice('bcdfgklmnprst')}{draw.choice('aeiou')}{word}{n}" for n, word in enumerate([*_WORDS] * 200)]
    words = [*common] * min(30, count) + [one for one in rare[: count * 2] for _ in range(2)]
    draw.shuffle(words)
    question = "Which are the five words that appear most often in the list?"
    return Hidden([], question, common, [f"{word}" for word in words])


def _frequent(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    coded = ["".join(draw.choice("bcdfghjklmnpqrstvwxyz") for _ in range(5)) for _ in range(max(12, length // 30))]
    words = [word for rank, word in enumerate(coded, 1) for _ in range(max(1, round(length / 14 / rank**2)))]
    draw.shuffle(words)
    return Hidden([], "Which are the three words that appear most often in the list?", coded[:3], words)


def _qa(draw: random.Random, length: int, rows: Sequence[Mapping[str, Any]]) -> Hidden:
    asked = draw.choice(rows)
    passages = list(dict.fromkeys(str(row["context"]) for row in rows if row["context"] != asked["context"]))
    draw.shuffle(passages)
    right = asked["answers"]
    texts = [str(one["text"] if isinstance(one, dict) else one) for one in right]
    return Hidden([str(asked["context"])], str(asked["question"]), texts, passages, any_answer=True)


NEEDLES = ("plain", "style", "paraphrased", "multi")
KINDS: dict[str, Maker] = {
    "plain": _plain,
    "style": _style,
    "paraphrased": _paraphrased,
    "multi": _multi,
    "single": _single,
    "multikey": _multikey,
    "multivalue": _multivalue,
    "multiquery": _multiquery,
    "tracking": _tracking,
    "common": _common,
    "frequent": _frequent,
    "qa": _qa,
}
"""What may be made; the first four are the needles."""
_LISTS = ("common", "frequent")  # nothing is put in: the context is a list of words


def made_row(
    kind: str,
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    *,
    length: int,
    depth: float,
    trial: int,
    seed: int = 0,
    questions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """One row: at most `length` tokens of prompt, template and answer; a pure function of its arguments.

    `depth` is the place (0 the beginning, 1 the end) of what is asked for, `questions` are rows with `context`,
    `question` and `answers` for the kind `qa`.

    Raises:
        DataError: the text is too short, or the length.
    """
    draw = random.Random(f"{seed} {kind} {length} {trial}")  # depths share text and needle: only the place differs
    hidden = KINDS[kind](draw, length, questions)
    joint = ", " if kind in _LISTS else "\n\n" if kind == "qa" else " "
    source = hidden.haystack or sentences
    start = 0 if hidden.haystack else draw.randrange(max(1, len(source) // 2))
    head, tail = "Read this text; a question about it follows.\n\n", f"\n\nQuestion: {hidden.question}\nAnswer:"
    room = length - RESERVE_TOKENS - len(tokenizer.encode(head + tail + joint.join(hidden.needles)))
    if room < 1:
        raise DataError(f"{kind}: {length} tokens are too few for the question alone; use longer ones")
    chosen: list[str] = []
    for sentence in [*source[start:], *source[:start]]:
        room -= len(tokenizer.encode(sentence + joint))
        if room < 0:
            break
        chosen.append(sentence)
    if room >= 0 and kind not in (*_LISTS, "qa", "single", "multikey"):
        raise DataError(f"the text has too few sentences for prompts of {length:,} tokens; give more text")
    prompt = head + joint.join(_placed(draw, chosen, hidden.needles, depth)) + tail
    row = {
        "kind": kind,
        "length": length,
        "depth": depth,
        "trial": trial,
        "prompt": prompt,
        "question": hidden.question,
    }
    return row | {"answers": list(hidden.answers), "any_answer": hidden.any_answer}


def _placed(draw: random.Random, sentences: Sequence[str], needles: Sequence[str], depth: float) -> list[str]:
    """The sentences with the first needle at its depth and the others, in their order, anywhere."""
    places = sorted(draw.randrange(len(sentences) + 1) for _ in needles[1:])
    found, rest = list(sentences), list(zip(places, needles[1:]))
    for place, needle in [*reversed(rest)]:
        found.insert(place, needle)
    if needles:
        found.insert(round(depth * len(found)), needles[0])
    return found


def sentences_of(text: str) -> list[str]:
    """A text as sentences of one line each."""
    return [one for one in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if one]
