"""Chains of references and rules are refused before the compiler's stack overflows."""

from __future__ import annotations

import pytest

from herd.errors import RequestError
from herd.infer.depth import check_grammar, check_schema
from herd.infer.grammar import MAX_FORM
from herd.infer.guide import GuideMaker
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer


def chain(count: int, *, inner=lambda part: part, circle: bool = False) -> dict:
    parts = {f"d{i}": inner({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    parts[f"d{count}"] = {"$ref": "#/$defs/d0"} if circle else {"type": "string"}
    return {"$ref": "#/$defs/d0", "$defs": parts}


def nested(part: dict, levels: int) -> dict:
    for _ in range(levels):
        part = {"type": "array", "items": part}
    return part


def rules(count: int, *, terminals: bool = False) -> str:
    name = "T" if terminals else "r"
    return "\n".join([f"start: {name}0", *(f"{name}{i}: {name}{i + 1}" for i in range(count)), f'{name}{count}: "a"'])


@pytest.mark.parametrize(
    "schema",
    [
        chain(925),
        chain(5000),
        chain(925, circle=True),
        chain(300, inner=lambda part: nested(part, 16)),
        {"$id": "http://x/", "allOf": [{"$ref": f"http://x/#a{i}"} for i in range(500)]},
        {"properties": {"$defs": chain(10)}, **chain(401)},
        chain(
            500, inner=lambda part: {"allOf": [{"$ref": "#/$defs/d500"}, part]}
        ),  # the compiler may take either first
        {"$ref": "#/%24defs/a~1b", "$defs": {"a/b": {"$ref": "#/$defs/d0"}, **chain(900)["$defs"]}},
    ],
    ids=range(8),
)
def test_a_schema_whose_references_lead_too_deep_is_refused(schema):
    with pytest.raises(RequestError, match=r"json_schema cannot be followed: .*(references|deep)"):
        check_schema(schema)


@pytest.mark.parametrize("text", [rules(2800), rules(2800, terminals=True), rules(450) + "\nr450: r0"])
def test_a_grammar_whose_rules_lead_too_deep_is_refused(text):
    with pytest.raises(RequestError, match="rules in a chain"):
        check_grammar(text)


def test_a_schema_within_a_grammar_is_looked_at_too():
    with pytest.raises(RequestError, match="references"):
        check_grammar("start: a\na: %json " + str(chain(925)).replace("'", '"'))


def test_what_is_no_chain_may_be_large():
    many = {f"d{i}": {"type": "string"} for i in range(3000)}
    check_schema({"properties": {name: {"$ref": f"#/$defs/{name}"} for name in many}, "$defs": many})
    check_schema({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}})
    check_grammar("start: " + " | ".join(f"r{i}" for i in range(3000)) + "".join(f'\nr{i}: "{i}"' for i in range(3000)))


def test_forms_within_the_bounds_compile_and_larger_ones_are_refused():
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    tokenizer = small_tokenizer()
    maker = GuideMaker(tokenizer, tokenizer.vocab_size, tokenizer.eos_id)
    for params in (
        SamplingParams(json_schema=chain(399)),
        SamplingParams(json_schema=chain(150, inner=lambda part: nested(part, 8))),
        SamplingParams(grammar=rules(390)),
        SamplingParams(grammar=rules(390, terminals=True)),
    ):
        assert maker.compile(params) is not None
    for params in (
        SamplingParams(json_schema={"description": "x" * MAX_FORM["json_schema"]}),
        SamplingParams(regex="a?" * 5000),
        SamplingParams(grammar='start: "a"' + " " * MAX_FORM["grammar"]),
        SamplingParams(choice=tuple(f"word {i}" for i in range(100_000))),
    ):
        with pytest.raises(RequestError, match="characters; at most"):
            maker.compile(params)
