import json

import numpy as np
import pytest

from herd.data.loader import PackedLoader, Phase
from herd.data.preferences import load_pairs
from herd.data.rows import RowSettings
from herd.errors import DataError
from herd.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the cat sat on the mat and asked what is the use of a hat " * 3], 540)
PROMPT = [
    {"role": "user", "content": "the mat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "what is a hat"},
]


def pair(number=0, **changes):
    words = ["the", "cat", "sat", "on", "the", "mat", "and", "asked", "what", "is", "the", "use"]
    chosen, rejected = " ".join(words[: 2 + number % 7]), " ".join(words[number % 5 : 9])
    return {"prompt": PROMPT, "chosen": chosen, "rejected": rejected} | changes


def write(tmp_path, rows):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def loader(pairs, columns, micro_tokens=256):
    phase = Phase(batch_tokens=512, row_tokens=128, mixture={"pairs": 1.0})
    return PackedLoader({"pairs": pairs.documents}, [phase], micro_tokens=micro_tokens, columns=columns)


def test_a_pair_never_straddles_rows_or_micro_batches(tmp_path):
    pairs = load_pairs(write(tmp_path, [pair(n) for n in range(30)]), TOKENIZER, 128)
    assert len(pairs) == 30
    seen = 0
    for batch in loader(pairs, pairs.dpo_columns, micro_tokens=128).epoch():
        numbers = batch.columns["document"].view(-1, 2).numpy()
        assert (pairs.documents.bundle[numbers[:, 0]] == pairs.documents.bundle[numbers[:, 1]]).all()
        assert set(pairs.rank[numbers[:, 0]]) == {1} and set(pairs.rank[numbers[:, 1]]) == {2}
        seen += len(numbers)
    assert seen == 30


def test_dpo_learns_the_last_response_and_does_not_count_its_terminator(tmp_path):
    pairs = load_pairs(write(tmp_path, [pair()]), TOKENIZER, 128)
    batch = next(loader(pairs, pairs.dpo_columns).epoch())
    for number, name in enumerate(("chosen", "rejected")):
        here = batch.columns["response"] == number
        content = TOKENIZER.encode(pair()[name])
        assert batch.labels[here].tolist() == [*content, TOKENIZER.eot_id]
        assert batch.labels[here & batch.columns["counted"]].tolist() == content
    assert (batch.labels[batch.columns["response"] < 0] < 0).all()


def test_reward_columns_point_at_the_terminators_best_first(tmp_path):
    pairs = load_pairs(write(tmp_path, [pair(edited="a hat"), pair(3)]), TOKENIZER, 256)
    phase = Phase(batch_tokens=256, row_tokens=256, mixture={"pairs": 1.0})
    batch = next(PackedLoader({"pairs": pairs.documents}, [phase], columns=pairs.reward_columns).epoch())
    assert len(batch.columns["better"]) == 3 + 1
    texts = []
    for name in ("better", "worse"):
        for row, place in batch.columns[name].tolist():
            assert batch.tokens[row, place] == TOKENIZER.eot_id
            begin = place - batch.positions[row, place]
            texts.append(TOKENIZER.decode(batch.tokens[row, begin : place + 1].tolist(), skip_special=True))
    assert texts[:3][0].endswith("a hat") and texts[:3][1].endswith("a hat")


def test_reference_log_probabilities_of_the_data_are_kept(tmp_path):
    pairs = load_pairs(write(tmp_path, [pair(ref_chosen=-1.5, ref_rejected=-2.5)]), TOKENIZER, 128)
    batch = next(loader(pairs, pairs.dpo_columns).epoch())
    assert batch.columns["reference"].tolist() == [-1.5, -2.5]


def test_held_out_pairs_are_split_by_prompt_and_never_torn(tmp_path):
    rows = [pair(n, prompt=f"what is a {n // 2}") for n in range(60)]
    train, held_out = load_pairs(write(tmp_path, rows), TOKENIZER, 128).split(0.3)
    assert len(train) + len(held_out) == 60 and len(held_out) > 4
    assert not set(train.group) & set(held_out.group)
    assert np.array_equal(train.rank[:2], [1, 2])
    assert sum(len(batch.columns["reference"]) for batch in loader(train, train.dpo_columns).epoch()) == 2 * len(train)


def test_pairs_of_similar_responses_and_too_long_ones_are_left_out(tmp_path):
    rows = [pair(strength="marginally_better"), pair(1, strength="better"), pair(2, chosen="hat " * 200)]
    assert len(load_pairs(write(tmp_path, rows), TOKENIZER, 128, min_strength="better")) == 1


def test_pairs_whose_own_scores_are_nearly_equal_are_left_out_and_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    scored = [
        pair(0, chosen_score=0.9, rejected_score=0.1),
        pair(1, score_chosen=8.0, score_rejected=8.0),
        pair(2, chosen_rating=3, rejected_rating=4),
        pair(3, chosen_score=0.5, rejected_score=0.45),
        pair(4, chosen_score=None, rejected_score=0.5),
    ]
    file = write(tmp_path, scored)
    assert len(load_pairs(file, TOKENIZER, 128)) == 3
    said = capsys.readouterr().err
    assert "scores are equal or nearly so (1)" in said and "rejected response has the higher score (1)" in said
    assert len(load_pairs(file, TOKENIZER, 128, options=RowSettings(min_gap=0.1))) == 2
    several = {
        "instruction": "q",
        "completions": [{"response": r, "overall_score": s} for r, s in (("a", 7), ("b", 6.5))],
    }
    assert len(load_pairs(write(tmp_path, [several]), TOKENIZER, 128)) == 1
    with pytest.raises(DataError, match="1 pairs whose scores are equal or nearly so"):
        load_pairs(write(tmp_path, [several]), TOKENIZER, 128, options=RowSettings(min_gap=1.0))


def test_responses_given_as_messages_are_read(tmp_path):
    answer = [*PROMPT, {"role": "assistant", "content": "a hat"}]
    other = [*PROMPT, {"role": "assistant", "content": "a cat"}]
    plain = load_pairs(write(tmp_path, [{"prompt": PROMPT, "chosen": "a hat", "rejected": "a cat"}]), TOKENIZER, 128)
    listed = load_pairs(write(tmp_path, [{"chosen": answer, "rejected": other}]), TOKENIZER, 128)
    assert plain.documents.tokens(0).tolist() == listed.documents.tokens(0).tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, "row 1: .*lacks `rejected`"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "no pair to train on.*the same"),
        ({"prompt": "q", "completion": "a", "label": True}, "row 1: .*KTO's form"),
        ({"chosen": "a", "rejected": "b"}, "row 1: `prompt` must be"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "row 1: `chosen` must be a text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "strength": "huge"}, "row 1: unknown strength 'huge'"),
    ],
)
def test_a_row_that_is_no_pair_is_one_clear_message(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_pairs(write(tmp_path, [row]), TOKENIZER, 128)


def test_no_pair_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match="no pair to train on"):
        load_pairs(write(tmp_path, [pair(strength="slightly_better")]), TOKENIZER, 128, min_strength="better")
