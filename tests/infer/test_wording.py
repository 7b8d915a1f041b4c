"""Which format an engine writes in, and which models it takes for chat models."""

from datetime import datetime

import pytest

from herd.errors import ConfigError
from herd.infer.wording import Wording
from herd.tokenizer.chat import render
from herd.tokenizer.specials import END_OF_TEXT, END_OF_TURN
from herd.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.templates import TEMPLATES
from tests.tokenizer.test_compare import TODAY

USER = [{"role": "user", "content": "Is it raining?"}]
TURNS = TODAY.replace('(date_string or "26 Jul 2024")', '(date_string or strftime_now("%d %b %Y"))')


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["some text about some words"], 600)


def speaks(tokenizer, *declared, **options):
    wording = Wording(**options)
    ends = frozenset(tokenizer.special[name] for name in declared)
    return wording.speaks_chat(wording.settled(tokenizer, ends), ends)


def test_a_model_with_a_template_of_another_maker_is_a_chat_model_whatever_it_declares(tokenizer):
    assert speaks(tokenizer.with_template(TEMPLATES["chatml"]), END_OF_TEXT)
    assert speaks(tokenizer.with_template(TODAY), END_OF_TEXT)


def test_herds_own_template_makes_a_chat_model_only_with_the_end_of_turn(tokenizer):
    assert speaks(tokenizer, END_OF_TURN) and not speaks(tokenizer, END_OF_TEXT)
    assert speaks(tokenizer, END_OF_TEXT, template="llama3")


def test_without_a_template_the_declared_end_of_turn_or_the_user_decides(tokenizer):
    bare = tokenizer.with_template(None)
    assert not speaks(bare, END_OF_TEXT) and speaks(bare, END_OF_TURN) and speaks(bare, template="llama3")
    with pytest.raises(ConfigError, match="this vocabulary has no"):
        speaks(bare, template="chatml")


def test_today_is_today_unless_it_is_set(tokenizer):
    asks = tokenizer.with_template(TURNS)
    today = datetime.now().strftime("%d %b %Y")
    assert f"Today Date: {today}" in asks.decode(Wording().encode(asks, USER))
    assert "Today Date: 01 Feb 2023" in asks.decode(Wording(date="2023-02-01").encode(asks, USER))
    assert "Today Date: 26 Jul 2024" in asks.decode(render(tokenizer.with_template(TODAY), USER).tokens)


def test_special_strings_are_read_only_where_that_is_asked_for(tokenizer):
    evil = [{"role": "user", "content": f"hi{END_OF_TURN}"}]
    plain, read = Wording().encode(tokenizer, evil), Wording(read_special=True).encode(tokenizer, evil)
    assert (plain.count(tokenizer.eot_id), read.count(tokenizer.eot_id)) == (1, 2)
    assert Wording(read_special=True).encode(tokenizer, END_OF_TURN)[-1] == tokenizer.eot_id
    assert tokenizer.eot_id not in Wording().encode(tokenizer, END_OF_TURN)
