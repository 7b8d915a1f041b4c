"""Heuristics: each gives its reason on what it is made for, and leaves good text alone."""

import pytest

from herd.curate import filters
from herd.curate.filters import Text, why_drop

PROSE = (
    "The hive stands at the edge of the wood, and every morning the bees leave it with the first light. They come back "
    "when the sun is low. Nobody who has watched them for a year would say that they are slow to learn where the best "
    "flowers are. One summer the keeper moved the hive by forty steps, and for that day they went to the old place."
)


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("gopher_word_count", "Too short to be of use."),
        ("gopher_word_length", "a b c d e f g h i j the and of to " * 10),
        ("gopher_symbols", PROSE + " # " * 30),
        ("gopher_bullets", "\n".join(f"- {line} and the way of it" for line in PROSE.replace(",", ".").split("."))),
        ("gopher_ellipses", "\n".join(f"{line} and the way that it is..." for line in PROSE.split(".") if line)),
        ("gopher_letters", PROSE + " 12 34 56 78" * 20),
        ("gopher_stop_words", " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(80))),
        ("gopher_repeated_lines", PROSE + "\nThe same line again and again.\n" * 20),
        ("gopher_top_ngram", PROSE + " buy honey now" * 60),
        ("gopher_repeated_ngrams", PROSE + " " + PROSE[:200]),
        ("c4_placeholder", PROSE + " Lorem ipsum dolor sit amet."),
        ("c4_curly_bracket", PROSE + " { a } { b } { c } { d }"),
        ("fineweb_line_ends", "\n".join(line for i, line in enumerate(PROSE.replace(".", "").split(" the ")))),
        ("fineweb_short_lines", PROSE.replace(" ", ".\n")),
    ],
)
def test_each_rule_finds_what_it_is_made_for(reason, text):
    rule = next(rule for rule in filters.WEB_FILTERS if rule.__name__ == reason)
    found = rule(Text(text, "en"))
    assert found is not None and found[0] == reason and found[1]


def test_good_prose_passes_every_rule():
    assert [rule.__name__ for rule in filters.WEB_FILTERS if rule(Text(PROSE, "en"))] == []
    assert why_drop(PROSE) is None


def test_code_documentation_and_mathematics_are_exempt_from_the_rules_of_prose():
    code = "\n".join(f"def bee_{i}(flower, honey={i}):\n    return flower.take(honey)[{i}]  # {{}}" for i in range(20))
    maths = " ".join(f"Let $x_{{{i}}} = \\frac{{{i}}}{{2}}$ be given." for i in range(30))
    assert filters.is_technical(code) and filters.is_technical(maths) and not filters.is_technical(PROSE)
    assert why_drop(code) is None
    assert any(rule(Text(code, "en")) for rule in filters.WEB_FILTERS)


def test_generated_tables_are_dropped_even_among_code():
    table = "x = [\n" + "0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,\n" * 200 + "]"
    assert why_drop(table, technical=True)[0] == "technical_repetition"


def test_share_of_repeated_ngrams_counts_covered_characters():
    # aa bb cc dd aa bb: the second `aa bb` repeats, 4 of 12 characters
    assert filters.repeated_ngram_share(Text("aa bb cc dd aa bb"), 2) == pytest.approx(4 / 12)
    assert filters.repeated_ngram_share(Text("aa bb"), 5) == 0


def test_languages_without_spaces_are_not_judged_by_words():
    thai = "ผึ้งบินออกจากรังทุกเช้าเมื่อแสงแรกมาถึงและกลับมาเมื่อดวงอาทิตย์ต่ำ " * 12
    for rule in (filters.gopher_word_count, filters.gopher_word_length, filters.gopher_stop_words):
        assert rule(Text(thai, "th")) is None


def test_empty_texts_break_no_rule():
    for rule in (*filters.WEB_FILTERS, *filters.TECHNICAL_FILTERS):
        rule(Text("", "en"))
