"""Preference pairs: a reference answer against plausible wrong answers.

Kinds of rejected answer:

- `other_answer`: what the documentation says about the most similar other name;
- `wrong_signature`: the right parameters with one left out, renamed, or out of order;
- `wrong_kind`: the signature where it was asked what the name does, or the other way round;
- `own_sample`: what the model itself said, where that scores badly by token F1: up to three such answers;
- `refusal`: "I do not know" where the answer is known, or an answer where the name does not exist.

Where two of the model's samples differ clearly, the better is chosen, the worse rejected, and the reference stands as
the edited answer: edited > chosen > rejected. The first three kinds are only made of some names: a reward model that
has mostly seen fluent wrong answers likes what is not fluent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

from herd.demo.questions import spoken
from herd.demo.wordings import UNKNOWN
from herd.evals.answers import prompt_of, question_text, scored_part, token_f1
from herd.evals.retrieval import retrieved_answers

STRENGTHS = ("significantly_better", "better", "slightly_better", "marginally_better")
_CLEAR_GAP = 0.3  # of F1 between two samples, for an edited pair
_GOOD_SAMPLE = 0.9  # a sample above this F1 is right, whatever its wording
_NO_TIE = 0.15  # least difference in F1 between the reference and a rejected sample
_OWN_WRONG = 3  # samples of one question that are rejected
_MADE_UP = 4  # every fourth name gets the kinds that need no sampling


def strength(gap: float) -> str:
    """How much better the chosen answer is, from the difference in F1 to the reference (0 to 1)."""
    if gap >= 0.6:
        return "significantly_better"
    if gap >= 0.35:
        return "better"
    return "slightly_better" if gap >= 0.15 else "marginally_better"


def for_dpo(pairs: Sequence[dict]) -> list[dict]:
    """The pairs for DPO: for each question the worst of the model's own samples and the edited pair, and refusals of
    invented names. Pairs that reject a refusal are left out: the policy rarely refuses what it knows."""
    kept, seen = [], set()
    for pair in pairs:
        question = pair["prompt"][-1]["content"]
        own = pair["kind"] == "own_sample" and question not in seen
        if own or pair["kind"] == "edited" or (pair["kind"] == "refusal" and pair["chosen"] == UNKNOWN):
            kept.append(pair)
        if own:
            seen.add(question)
    return kept


def make_pairs(questions: Sequence[dict], samples: Sequence[Sequence[str]], pool: Sequence[dict]) -> list[dict]:
    """All pairs of some questions; `samples` are the model's answers to each (perhaps none), `pool` is where other
    names' and other kinds' answers come from.

    A pure function: the same questions and samples give the same pairs in the same order.
    """
    others = retrieved_answers(questions, [row for row in pool if row["kind"] != "unknown"])
    known = {(row["name"], row["kind"]): row["messages"][-1]["content"] for row in pool}
    pairs = []
    for question, answers, other in zip(questions, samples, others, strict=True):
        swapped = {"summary": "signature", "signature": "summary"}.get(question["kind"], "")
        if question["kind"] != "unknown" and _hash(question["name"], "made up") % _MADE_UP:
            pairs += pairs_of(question, answers)
        else:
            pairs += pairs_of(question, answers, other, known.get((question["name"], swapped), ""))
    return pairs


def pairs_of(question: dict, samples: Sequence[str], other: str = "", swapped: str = "") -> list[dict]:
    """The pairs of one question: at most one of each kind, and a few of its own samples.

    `other` is the reference of the most similar other name, `swapped` the answer to another question about this one;
    only with `other` is a signature spoiled.
    """
    name, kind, reference = question["name"], question["kind"], question["answer"]
    right = question["messages"][-1]["content"]
    pairs = []

    def add(why: str, chosen: str, rejected: str, gap: float, edited: str | None = None) -> None:
        if chosen.strip() and rejected.strip() and chosen != rejected:
            pairs.append(_pair(question, why, chosen, rejected, gap, edited))

    scored = sorted((token_f1(scored_part(sample, question), reference), sample) for sample in set(samples) if sample)
    if kind == "unknown":
        wrong = [sample for f1, sample in scored if f1 < _GOOD_SAMPLE]
        add("refusal", right, wrong[0] if wrong else other and spoken(name, "summary", other), 1.0)
        return pairs
    if other:
        add("other_answer", right, spoken(name, kind, other), 1 - token_f1(other, reference))
    if swapped:
        add("wrong_kind", right, swapped, 1.0)
    if kind == "signature" and other and (spoiled := spoil_signature(reference, name)):
        add("wrong_signature", right, spoken(name, kind, spoiled), 1 - token_f1(spoiled, reference))
    for f1, sample in scored[:_OWN_WRONG]:
        if f1 < min(_GOOD_SAMPLE, 1 - _NO_TIE):
            add("own_sample", right, sample, 1 - f1)
    if scored and scored[0][0] < _GOOD_SAMPLE:
        (worst_f1, worst), (best_f1, best) = scored[0], scored[-1]
        if best_f1 - worst_f1 >= _CLEAR_GAP and best_f1 < _GOOD_SAMPLE:
            add("edited", best, worst, best_f1 - worst_f1, edited=right)
    if _hash(name, question_text(question)) % 12 == 0:
        add("refusal", right, UNKNOWN, 1.0)
    return pairs


def spoil_signature(signature: str, salt: str) -> str | None:
    """A signature with one thing wrong: a parameter left out, two swapped, or a default changed; None for `()`."""
    if not signature.startswith("("):
        return None
    parameters = _split_parameters(signature[1:-1])
    named = [index for index, parameter in enumerate(parameters) if re.match(r"\*{0,2}\w", parameter)]
    if not named:
        return None
    draw = _hash(salt, signature)
    place = named[draw % len(named)]
    if len(named) >= 2 and draw // 64 % 2:
        other = named[(named.index(place) + 1) % len(named)]
        parameters[place], parameters[other] = parameters[other], parameters[place]
    elif len(parameters) >= 2:
        del parameters[place]
    else:
        parameters.append(("value", "name", "flags=0", "**kwargs")[draw // 128 % 4])
    return f"({', '.join(parameters)})"


def _split_parameters(text: str) -> list[str]:
    """Cut at commas outside brackets and quotes: `a=(1, 2), b` is two parameters."""
    parts, depth, quote, begin = [], 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [part for part in [*parts, text[begin:].strip()] if part]


def _pair(question: dict, kind: str, chosen: str, rejected: str, gap: float, edited: str | None) -> dict:
    pair = {
        "prompt": prompt_of(question),
        "chosen": chosen,
        "rejected": rejected,
        "strength": strength(gap),
        "kind": kind,
        "name": question["name"],
        "group": question["group"],
    }
    return pair | ({"edited": edited} if edited else {})


def _hash(*parts: str) -> int:
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=7).digest())
