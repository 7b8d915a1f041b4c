"""Sources for longer contexts, and sources that hold a benchmark's training rows."""

import numpy as np
import pytest

from herd.data.long import COPYING, for_long_rows, origin
from herd.data.shards import in_memory
from herd.data.train_splits import holders, rows_held
from herd.errors import DataError


def sources():
    random = np.random.default_rng(0)
    web = [random.integers(3, 999, length) for length in (20, 300, 50, 200)]
    return {"web": in_memory("web", web, tokenizer="t"), "code": in_memory("code", [web[0]], tokenizer="t")}


def test_long_documents_get_their_share_and_what_is_made_asks_for_what_stood_far_before():
    shares = {"long_share": 0.5, "copying_share": 0.1, "tokens": 12_800, "seed": 1}
    found, mixture = for_long_rows(sources(), {"web": 3, "code": 1}, 128, **shares)
    assert mixture == pytest.approx({"web": 0.3375, "web (long)": 0.3375, "code": 0.225, COPYING: 0.1})
    assert found["web (long)"].num_tokens.tolist() == [300, 200]
    made = found[COPYING]
    assert len(made) == 10 and set(made.num_tokens.tolist()) == {128} and made.tokenizer == "t"
    for number in range(len(made)):
        tokens = made.tokens(number).tolist()
        last = tokens[-8:]  # it stood before, far from the end
        assert any(tokens[at : at + 8] == last for at in range(len(tokens) - 16))
    assert [origin(name) for name in found] == ["web", "code", "web", ""]
    again, _ = for_long_rows(sources(), {"web": 3, "code": 1}, 128, **shares)
    assert again[COPYING].tokens(0).tolist() == made.tokens(0).tolist()


def test_a_context_that_no_document_fills_is_refused():
    with pytest.raises(DataError, match=r"no document of web, code has 1,024 tokens"):
        for_long_rows(sources(), {}, 1024, long_share=0.5, copying_share=0.0, tokens=1e4, seed=0)


def test_a_source_that_holds_training_rows_is_found_and_one_that_shares_a_phrase_is_not():
    random = np.random.default_rng(1)
    rows = [random.integers(3, 999, 40) for _ in range(20)]
    other = random.integers(3, 999, 500)
    holds = in_memory("forum", [np.concatenate([other, rows[0], rows[1]]), rows[2]])
    phrase = in_memory("web", [np.concatenate([other, *(row[:15] for row in rows)])])
    assert rows_held(holds, rows) == pytest.approx(3 / 20)
    assert rows_held(phrase, rows) == 0
    found = holders({"forum": holds, "web": phrase}, ["forum", "web"], {"gsm8k/train": rows}, 0.01)
    assert found == [("forum", "gsm8k/train", pytest.approx(0.15))]
