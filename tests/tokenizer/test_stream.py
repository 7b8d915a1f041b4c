"""Streaming: whole characters only, and in the end the same text as decoding at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import DataError
from herd.tokenizer.stream import TextStream
from tests.tokenizer.wild import WILD_TEXT


@given(WILD_TEXT)
@settings(max_examples=200, deadline=None)
def test_pieces_together_are_the_text_and_no_piece_is_broken(tokenizer, text):
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert stream.flush() == ""


@given(st.lists(st.integers(0, 1499), max_size=40), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_tokens_stream_as_they_decode(tokenizer, ids, skip_special):
    stream = TextStream(tokenizer, skip_special=skip_special)
    streamed = "".join(map(stream.push, ids)) + stream.flush()
    assert streamed == tokenizer.decode(ids, skip_special=skip_special)


def test_a_character_waits_for_its_last_byte(tokenizer):
    stream = TextStream(tokenizer)
    byte_ids = [tokenizer.ranks[bytes([b])] for b in "€".encode()]
    assert [stream.push(token) for token in byte_ids] == ["", "", "€"]
    stream.push(byte_ids[0])
    assert stream.flush() == "\ufffd"


def test_special_tokens_are_silent_unless_wanted(tokenizer):
    assert TextStream(tokenizer).push(tokenizer.eot_id) == ""
    assert TextStream(tokenizer, skip_special=False).push(tokenizer.eot_id) == "<|eot_id|>"


def test_an_unknown_token_is_refused(tokenizer):
    with pytest.raises(DataError, match="token id 1500 is not in this vocabulary"):
        TextStream(tokenizer).push(1500)
