"""An answer read out of passages by the program: no model is asked, so nothing is invented.

A text is taken as entries: a line that names something, and what stands under it further in, as manuals write it; a
heading with the text below it; a paragraph. The entry whose name, headings and first sentence hold most of the
question's words, weighed by their rarity in the index, answers with its first sentence. Who asks for a name
(`os.path.join`, `copy_tree`, `run()`) gets an entry of that name or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from herd.knowledge.citations import sentences_of
from herd.knowledge.index import Hit, Index
from herd.knowledge.terms import terms

LEAST = 0.5
"""The share of a question's words, weighed by their rarity, that an entry must hold."""
_DEPTH = 60  # passages that are read for one answer
_ASKED = re.compile(
    r"\b[A-Za-z_]\w*(?:\.\w+)+\b|\b[A-Za-z]\w*_\w*\b|\b\w+(?=\(\))|\b[a-z]+[A-Z]\w*\b|\b[A-Z][a-z]+[A-Z]\w*\b"
)
_NAMED = re.compile(r"(?:(?:class|def|function|async def|static|public)\s+)?([\w.:-]+)\s*(?:\(|=|$)")
_IS_CODE = re.compile(r"(?:async )?(?:def|class|if|for|while|with|try)\b.*:$|^>>> ")
_AGAIN = re.compile(r"^[^(]*\(.*?\)(?:\s*->\s*[\w.\[\], |]+?(?=\s*(?:--|:|$)))?\s*(?:--?|:)?\s*")
_LONGEST_LINE = 300
_ASKING = """
    a about an and any are at be by call called can could describe description did do does explain for from
    function give has have how i in is it its job know like me mean means module my name need of offer
    offers on one or people please purpose say see shall short should tell that the there thing this to
    understand use used uses using want was what when where which who why will with words work would write
    you your
"""  # words that ask, and say nothing of what is asked for
_WORTH = (("name", 2.0), ("said", 1.0), ("line", 0.7), ("around", 0.6), ("rest", 0.3))  # of a word, by where it stands


class Entry(NamedTuple):
    """A name and what explains it; a paragraph has no name."""

    name: str
    line: str  # where the name stands, arguments and all
    text: str
    depth: int  # of the line, in blanks


@dataclass(frozen=True)
class Reading:
    """An answer that stands in a passage, line breaks aside, letter for letter."""

    text: str
    line: str  # the name with its arguments, where the passage has one
    hit: Hit
    share: float  # of the question's words, weighed by their rarity, that the entry holds


def read_out(index: Index, question: str, *, least: float = LEAST) -> Reading | None:
    """The sentence of the indexed files that answers a question, or None where none holds enough of its words.

    Raises:
        RequestError: a question without a word, or with too many.
        CheckpointError: the index's encoder is gone or another.
    """
    names = _ASKED.findall(question)
    words = terms(" ".join(names)) if names else [word for word in terms(question) if word not in _ASKING.split()]
    weights = index.rarity(words)
    best: tuple[float, Reading] | None = None
    for rank, hit in enumerate(index.search(" ".join(words) or question, _DEPTH)):
        for entry in entries_of(hit.text, hit.heading.rpartition(" > ")[2] if index.begins(hit) else ""):
            if not all(_is_named(name, entry, hit) for name in names):
                continue
            score, share, sentence = _judged(entry, hit, weights, question)
            if sentence and share >= least and (best is None or score - rank / 500 > best[0]):
                best = score - rank / 500, Reading(sentence, entry.line, hit, share)
    return best[1] if best else None


def entries_of(text: str, heading: str = "") -> Iterator[Entry]:
    """The entries of a passage: its named lines, its paragraphs, and the heading where the passage begins below it."""
    lines = [(found.end(), found.group()) for found in re.finditer(r"[^\n]+", text)]
    for number, (end, line) in enumerate(lines):
        named = _NAMED.match(line.strip()) if len(line) <= _LONGEST_LINE else None
        if named and number + 1 < len(lines) and _depth(lines[number + 1][1]) > _depth(line):
            yield Entry(named[1], line.strip(), _further_in(text[end:], _depth(line)), _depth(line))
    paragraphs = [piece for piece in re.split(r"\n\s*\n", text) if piece.strip()]
    if heading and paragraphs:
        yield Entry(heading, "", paragraphs[0], 0)
    for paragraph in paragraphs:
        yield Entry("", "", paragraph, _depth(paragraph))


def _further_in(text: str, depth: int) -> str:
    """The lines at the beginning of a text that stand further in than `depth`."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() and _depth(line) <= depth:
            break
        lines.append(line)
    return "\n".join(lines)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_named(name: str, entry: Entry, hit: Hit) -> bool:
    """Whether an entry is the one of a name: its last part is its own, one of the others stands around it."""
    before, _, last = name.rpartition(".")
    if terms(last) != terms(entry.name.rpartition(".")[2]) and terms(name) != terms(entry.name)[-len(terms(name)) :]:
        return False
    return not before or bool(
        set(terms(before)) & set(terms(f"{hit.heading} {hit.file} {hit.place} {entry.line} {hit.text}"))
    )


def _judged(entry: Entry, hit: Hit, weights: dict[str, float], question: str) -> tuple[float, float, str]:
    """How well an entry answers, the share of the words that it holds, and the sentence that does."""
    whole = sum(weights.values()) or 1.0
    best = 0.0, 0.0, ""
    for sentence in _answers(entry):
        held, score = _worth(entry, sentence, hit, weights)
        best = max(best, (score / whole, held / whole, sentence))
    score, share, sentence = best
    page, name = terms(hit.heading)[-1:], set(terms(entry.name))
    owners = [terms(found.rpartition(".")[0])[-1:] for found in _ASKED.findall(question) if "." in found]
    if page in owners:  # the page of its own, and there what is no method of a class
        score += 0.1 if "self" in entry.line else 0.3
    if entry.name and re.search(rf"(?<!\w){re.escape(entry.name.rpartition('.')[2])}(?!\w)", question):
        score += 0.3  # capitals too
    if not entry.line and name >= weights.keys():  # the page about this and nothing else
        score += 0.5
    score *= 0.6 if _IS_CODE.search(entry.line) else 1.0
    score *= 0.8 if name and not name & weights.keys() else 1.0
    return score - entry.depth / 100, share, sentence


def _worth(entry: Entry, sentence: str, hit: Hit, weights: dict[str, float]) -> tuple[float, float]:
    """The weight of the words that are there, and the same by where each stands."""
    around = f"{hit.heading} {hit.file} {hit.place}"
    places = {"name": entry.name, "said": sentence, "line": entry.line, "around": around, "rest": entry.text}
    words = {place: set(terms(text)) for place, text in places.items()}
    worths = {word: next((worth for place, worth in _WORTH if word in words[place]), 0.0) for word in weights}
    return sum(weights[word] for word, worth in worths.items() if worth), sum(
        weights[word] * worth for word, worth in worths.items()
    )


def _answers(entry: Entry) -> list[str]:
    """What a named entry says first; of a paragraph every sentence that is prose."""
    lines = entry.text.strip().splitlines()
    if not entry.name:
        paragraph = " ".join(" ".join(lines).split())
        sentences = [paragraph[start:end] for start, end in sentences_of(paragraph)]
        return [sentence for sentence in sentences if _is_prose(sentence)]
    again = re.compile(rf"\s*[\w.]*\b{re.escape(entry.name.rpartition('.')[2])}\(")
    while lines and (not lines[0].strip() or again.match(lines[0])):  # its name once more, with arguments
        lines[0] = _AGAIN.sub("", lines[0], count=1)
        if lines[0].count(" "):
            break  # what stands behind it in the same line
        lines.pop(0)
    paragraph = " ".join(re.split(r"\n\s*\n", "\n".join(lines))[0].split())
    return [paragraph[start:end] for start, end in sentences_of(paragraph)[:1]]


def _is_prose(sentence: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in sentence)
    return len(sentence.split()) >= 4 and letters >= 0.85 * len(sentence)
