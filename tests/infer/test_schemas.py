"""Schemas become such as can be followed token by token."""

from __future__ import annotations

import pytest

from herd.errors import RequestError
from herd.infer.guide import GuideMaker
from herd.infer.schemas import followable
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer

NUMBER, TEXT = {"type": "integer"}, {"type": "string"}


def thing(**more):
    return {"type": "object", "properties": {"a": NUMBER}, **more}


def test_an_object_that_is_silent_on_further_properties_is_closed_at_every_level():
    inner = {"type": "array", "items": thing()}
    found = followable({"properties": {"a": inner}, "$defs": {"B": thing()}})
    assert found["additionalProperties"] is False
    assert found["properties"]["a"]["items"] == found["$defs"]["B"] == thing(additionalProperties=False)


@pytest.mark.parametrize("words", [{"additionalProperties": True}, {"patternProperties": {"^x": NUMBER}}])
def test_one_that_speaks_of_them_is_left_as_it_is(words):
    assert followable(thing(**words)) == thing(**words)
    assert followable({"type": "object"}) == {"type": "object"} == followable({})


def test_what_is_required_but_not_listed_stays_possible():
    assert followable(thing(required=["b"]))["properties"] == {"a": NUMBER, "b": {}}


def test_parts_of_a_whole_do_not_shut_out_one_another():
    other = {"type": "object", "properties": {"b": NUMBER}}
    for whole in ({"allOf": [thing(), other]}, thing(anyOf=[other]), thing(**{"$ref": "#/$defs/B"})):
        assert "additionalProperties" not in str(followable(whole))
    by_name = {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "$defs": {"A": thing(), "B": other}}
    assert followable(by_name) == by_name
    assert followable({"allOf": [thing()]}) == {"allOf": [thing(additionalProperties=False)]}


def test_formats_that_nobody_knows_are_annotations_and_names_are_no_keywords():
    assert followable({"type": "string", "format": "iban"}) == TEXT
    assert followable({"type": "string", "format": "uuid"})["format"] == "uuid"
    assert followable({"properties": {"format": TEXT, "uniqueItems": TEXT}})["properties"].keys() == {
        "format",
        "uniqueItems",
    }
    assert followable({"enum": [{"format": "iban"}]}) == {"enum": [{"format": "iban"}]}


def test_a_set_of_named_values_is_all_its_subsets():
    names = {"enum": ["x", "y"]}
    found = followable({"type": "array", "items": {"$ref": "#/$defs/N"}, "uniqueItems": True, "$defs": {"N": names}})
    assert found["enum"] == [[], ["x"], ["y"], ["x", "y"]]
    assert followable({"items": names, "uniqueItems": True, "minItems": 2})["enum"] == [["x", "y"]]
    assert followable({"items": TEXT, "uniqueItems": False}) == {"items": TEXT}
    with pytest.raises(RequestError, match="remove duplicates"):
        followable({"type": "array", "items": TEXT, "uniqueItems": True})


def test_a_map_by_named_keys_or_by_a_pattern_is_written_out():
    found = followable({"propertyNames": {"enum": ["x", "y"]}, "additionalProperties": NUMBER})
    assert found == {"properties": {"x": NUMBER, "y": NUMBER}, "additionalProperties": False}
    found = followable({"propertyNames": {"pattern": "^x"}, "additionalProperties": NUMBER})
    assert found == {"patternProperties": {"^x": NUMBER}, "additionalProperties": False}
    with pytest.raises(RequestError, match="list the properties"):
        followable({"propertyNames": {"maxLength": 3}})


@pytest.mark.parametrize(
    ("schema", "way"),
    [({"oneOf": [NUMBER, {"type": "number"}]}, "write `anyOf`"), ({"not": NUMBER}, "check them in the answer")],
)
def test_what_cannot_be_followed_is_refused_with_a_way_out(schema, way):
    tokenizer = small_tokenizer()
    with pytest.raises(RequestError, match=way):
        GuideMaker(tokenizer, tokenizer.vocab_size, tokenizer.eot_id).compile(SamplingParams(json_schema=schema))
