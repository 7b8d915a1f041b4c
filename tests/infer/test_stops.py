"""Stop strings across the borders of tokens."""

from hypothesis import given
from hypothesis import strategies as st

from herd.infer.stops import StopStrings


def test_a_stop_string_cut_into_pieces_is_found_and_left_out():
    stops = StopStrings(("END",))
    assert [stops.push(piece) for piece in ("a E", "N", "D b", "c")] == ["a ", "", "", ""]
    assert stops.found
    assert stops.flush() == ""


def test_a_false_beginning_is_let_through():
    stops = StopStrings(("END",))
    assert [stops.push(piece) for piece in ("a E", "N", "X", "EN")] == ["a ", "", "ENX", ""]
    assert stops.flush() == "EN"
    assert not stops.found


def test_the_earliest_of_several_stop_strings_counts():
    stops = StopStrings(("later", "er"))
    assert stops.push("much later") == "much "
    assert StopStrings(("\n\n", "\n")).push("a\n\nb") == "a"


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_any_cutting_gives_the_text_before_the_stop_that_is_complete_first(pieces, stops):
    checker = StopStrings(tuple(stops))
    got, seen = "", ""
    for piece in pieces:
        got += checker.push(piece)
        seen += piece
        if checker.found:
            break
    got += checker.flush()
    places = [place for stop in stops if (place := seen.find(stop)) >= 0]
    assert checker.found == bool(places)
    assert got == (seen[: min(places)] if places else seen)
