"""The needle's machinery, tried with an oracle that reads the prompt."""

import numpy as np
import pytest

from herd.errors import DataError
from herd.evals import needle
from herd.tokenizer.tokenizer import Tokenizer

WORDS = "apple house green river stone cloud bread light water earth flame night table chair glass plant horse north"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["\n".join(WORDS.split()) * 20] * 5, 256 + 256 + 110)


@pytest.fixture(scope="module")
def haystack(tokenizer):
    return tokenizer.encode("the quick brown fox jumps over the lazy dog. " * 200)


def oracle(tokenizer, *, reach=None):
    """Copies the planted word, if it stands at most `reach` tokens back."""

    def next_logits(rows):
        scores = np.zeros((len(rows), tokenizer.vocab_size))
        for row, tokens in enumerate(rows):
            text = tokenizer.decode(tokens[1:])
            query = text[text.rindex("\n") :]
            value = text[text.index(query) + len(query) :].split("'")[0]
            (token,) = tokenizer.encode(value)
            back = len(tokens) - int(np.flatnonzero(tokens == token)[0])
            scores[row, token if reach is None or back <= reach else 0] = 1.0
        return scores

    return next_logits


def test_an_oracle_finds_every_needle(tokenizer, haystack):
    grid = needle.needle_grid(oracle(tokenizer), tokenizer, haystack, lengths=[64, 128], trials=3)
    assert grid.copied.shape == (len(needle.DEPTHS), 2)
    assert (grid.copied == 1).all()
    assert (grid.chosen == 1).all()


def test_a_short_sighted_oracle_finds_only_the_needles_near_the_end(tokenizer, haystack):
    grid = needle.needle_grid(oracle(tokenizer, reach=50), tokenizer, haystack, lengths=[64, 256], trials=3)
    assert (grid.copied[-1] == 1).all()
    assert (grid.copied[0] == 0).all()
    assert grid.copied[:-1, 1].sum() == 0


def test_a_blind_model_chooses_at_chance(tokenizer, haystack):
    generator = np.random.default_rng(0)
    blind = lambda rows: generator.normal(size=(len(rows), tokenizer.vocab_size))  # noqa: E731
    grid = needle.needle_grid(blind, tokenizer, haystack, lengths=[64], trials=80)
    assert grid.chosen.mean() == pytest.approx(1 / needle.NUM_CHOICES, abs=0.04)
    assert grid.copied.mean() < 0.02


def test_a_prompt_has_its_length_its_depth_and_one_needle(tokenizer, haystack):
    words = needle.plain_words(tokenizer)
    depths = {}
    for depth in (0.0, 0.5, 1.0):
        made = needle.plant(tokenizer, words, haystack, length=128, depth=depth, trial=0)
        again = needle.plant(tokenizer, words, haystack, length=128, depth=depth, trial=0)
        assert (made.tokens == again.tokens).all()
        assert len(made.tokens) == 128
        assert made.tokens[0] == tokenizer.bos_id
        assert made.answer in made.choices
        assert (made.tokens == made.answer).sum() == 1
        depths[depth] = int(np.flatnonzero(made.tokens == made.answer)[0])
    assert depths[0.0] < 20 < depths[0.5] < depths[1.0]
    texts = {
        tokenizer.decode(sorted(needle.plant(tokenizer, words, haystack, length=128, depth=depth, trial=0).tokens))
        for depth in depths
    }
    assert len(texts) == 1  # the depths of a trial differ in the needle's place alone


def test_the_grids_lengths_double_up_to_the_context():
    assert needle.grid_lengths(1024) == [128, 256, 512, 1024]
    assert needle.grid_lengths(700) == [128, 256, 512, 700]
    assert needle.grid_lengths(100) == [100]


def test_too_little_room_or_text_is_refused(tokenizer, haystack):
    words = needle.plain_words(tokenizer)
    with pytest.raises(DataError, match="no room"):
        needle.plant(tokenizer, words, haystack, length=10, depth=0, trial=0)
    with pytest.raises(DataError, match="held-out text"):
        needle.plant(tokenizer, words, haystack[:50], length=128, depth=0, trial=0)
    with pytest.raises(DataError, match="lower-case words"):
        needle.plain_words(Tokenizer.train(["1 2 3"], 512))
