from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data.loader import PackedLoader, Phase
from herd.data.shards import in_memory
from herd.errors import ConfigError, DataError
from herd.types import IGNORE

BOS, EOS = 1, 2


def documents(source, count, seed=0, longest=90):
    random = np.random.default_rng(seed)
    texts = [np.r_[BOS, random.integers(10, 1000, random.integers(0, longest)), EOS] for _ in range(count)]
    return in_memory(source, texts)


SOURCES = {"library": documents("library", 120), "pydoc": documents("pydoc", 50, seed=1)}
MIXTURE = {"library": 3.0, "pydoc": 1.0}


def loader(phases=None, sources=SOURCES, **options):
    return PackedLoader(
        sources, phases or [Phase(batch_tokens=256, row_tokens=32, mixture=MIXTURE)], micro_tokens=96, **options
    )


def rows_of(batches):
    """Each row as hashable content, with its source."""
    return [
        (int(source), *row.tolist())
        for batch in batches
        for source, row in zip(batch.columns["source"], torch.cat([batch.tokens, batch.labels], 1))
    ]


def test_a_step_is_a_pure_function_of_its_number():
    first, second = loader(), loader()
    for step in (7, 0, 3, 7):
        assert rows_of(first.batches(step)) == rows_of(second.batches(step))


def test_another_seed_gives_another_order():
    assert rows_of(loader().batches(0)) != rows_of(loader(seed=1).batches(0))


def test_labels_are_the_next_token_of_the_same_document_and_positions_restart():
    batch = loader().batches(0)[0]
    for row in range(len(batch.tokens)):
        ids = batch.document_ids[row]
        for document in ids[ids >= 0].unique().tolist():
            places = (ids == document).nonzero().squeeze(1)
            assert places.tolist() == list(range(places[0], places[-1] + 1))
            assert batch.positions[row, places].tolist() == list(range(len(places)))
            assert batch.labels[row, places[:-1]].tolist() == batch.tokens[row, places[1:]].tolist()
        padding = ids < 0
        assert (batch.labels[row, padding] == IGNORE).all()


def test_an_epoch_shows_every_place_of_every_document_once():
    one = loader([Phase(batch_tokens=32, row_tokens=32, mixture={"library": 1.0})])
    expected = sorted(
        (int(a), int(b))
        for i in range(len(SOURCES["library"]))
        for a, b in pairwise(SOURCES["library"].tokens(i).tolist())
    )
    table = one._table("library", 32)
    for epoch in range(2):
        seen = []
        for step in range(epoch * len(table.rows), (epoch + 1) * len(table.rows)):
            for batch in one.batches(step):
                kept = batch.labels != IGNORE
                seen += list(zip(batch.tokens[kept].tolist(), batch.labels[kept].tolist()))
        assert sorted(seen) == expected


def test_processes_together_see_what_one_alone_would():
    alone = loader()
    for step in range(4):
        shares = [loader(rank=rank, world=3).batches(step) for rank in range(3)]
        assert sorted(row for share in shares for row in rows_of(share)) == sorted(rows_of(alone.batches(step)))


def test_the_mixture_is_kept_in_every_stretch_of_steps():
    one = loader()
    sources = [source for step in range(25) for source, *_ in rows_of(one.batches(step))]
    assert len(sources) == 25 * 8
    assert abs(sources.count(0) / len(sources) - 0.75) < 0.01


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from([64, 128, 320]), st.floats(0.1, 5)), min_size=1, max_size=4)
)
def test_a_change_of_mixture_or_batch_size_neither_repeats_nor_skips_a_row(changes):
    phases, step = [], 0
    for num_steps, batch_tokens, weight in changes:
        phases.append(
            Phase(step=step, batch_tokens=batch_tokens, row_tokens=32, mixture={"library": weight, "pydoc": 1.0})
        )
        step += num_steps
    one = loader(phases)
    for number, name in enumerate(one.names):
        drawn = [row for s in range(step) for source, row in one._rows(s) if source == number]
        table = one._table(name, 32)
        assert drawn == table.shuffled(0, len(drawn)).tolist()


def test_a_change_of_length_goes_on_where_the_tokens_were():
    one = loader(
        [
            Phase(batch_tokens=64, row_tokens=32, mixture={"library": 1.0}),
            Phase(step=5, batch_tokens=64, row_tokens=64, mixture={"library": 1.0}),
        ]
    )
    assert one._cursors(5, 64)["library"] == 5
    assert one.batches(5)[0].tokens.shape == (1, 64)
    assert one.tokens_before(7) == 5 * 64 + 2 * 64


def test_micro_batches_hold_at_most_what_was_asked():
    assert {batch.tokens.numel() <= 96 for batch in loader().batches(0)} == {True}
    assert sum(len(batch.tokens) for batch in loader().batches(0)) == 8


def test_a_mixture_of_an_unknown_source_is_refused():
    with pytest.raises(ConfigError, match=r"`web`.*library, pydoc"):
        loader([Phase(batch_tokens=64, row_tokens=32, mixture={"web": 1.0})])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_mixture_without_weight_is_refused(weight):
    with pytest.raises(ConfigError, match="not all 0"):
        loader([Phase(batch_tokens=64, row_tokens=32, mixture={"library": weight})])


def test_a_source_without_anything_to_learn_is_refused():
    with pytest.raises(DataError, match="two tokens"):
        loader([Phase(batch_tokens=64, row_tokens=32, mixture={"a": 1})], {"a": in_memory("a", [[1]])})
