import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.packing import cut, pack, pack_bundles


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 64))
def test_every_place_of_every_document_lies_in_exactly_one_piece(lengths, row_tokens):
    pieces = cut(np.array(lengths), row_tokens)
    assert pieces.length.sum() == sum(length - 1 for length in lengths)
    assert ((pieces.length > 0) & (pieces.length <= row_tokens)).all()
    for document in range(len(lengths)):
        mine = pieces.document == document
        covered = [
            place for start, n in zip(pieces.start[mine], pieces.length[mine]) for place in range(start, start + n)
        ]
        assert covered == list(range(lengths[document] - 1))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_rows_hold_every_piece_once_and_never_too_much(lengths):
    lengths = np.array(lengths)
    rows = pack(lengths, 64)
    assert sorted(rows.pieces.tolist()) == list(range(len(lengths)))
    assert all(0 < lengths[rows[row]].sum() <= 64 for row in range(len(rows)))


def test_many_short_documents_leave_less_than_one_percent_of_padding():
    lengths = np.random.default_rng(0).integers(5, 400, 3000)
    rows = pack(lengths, 1024)
    assert lengths.sum() / (len(rows) * 1024) > 0.99


def test_long_documents_fill_whole_rows_and_share_what_is_left():
    pieces = cut(np.array([1025, 2000, 57]), 256)  # 4 whole rows, 7 and 207 tokens, 56 tokens
    rows = pack(pieces.length, 256)
    assert len(rows) == 4 + 7 + 2


@given(st.lists(st.integers(1, 20), min_size=1, max_size=50), st.data())
def test_a_bundle_is_never_torn_apart(lengths, data):
    lengths = np.array(lengths)
    bundle = np.arange(len(lengths)) // data.draw(st.integers(1, 3))
    rows = pack_bundles(lengths, bundle, 64)
    assert sorted(rows.pieces.tolist()) == list(range(len(lengths)))
    row_of = {int(piece): row for row in range(len(rows)) for piece in rows[row]}
    for number in set(bundle.tolist()):
        members = np.flatnonzero(bundle == number).tolist()
        assert len({row_of[member] for member in members}) == 1
        places = [rows[row_of[members[0]]].tolist().index(member) for member in members]
        assert places == list(range(places[0], places[0] + len(members)))


@pytest.mark.parametrize("row_tokens", [1, 7, 8192])
def test_nothing_packs_into_no_rows(row_tokens):
    assert len(pack(np.zeros(0, np.int64), row_tokens)) == 0
