"""Tables, lists, code and verse are not held to rules for prose."""

import gzip
import json
import re

import pyarrow as pa
import pytest

from herd.curate.extract.html import extract
from herd.curate.filters.heuristics import WEB_FILTERS, reasons
from herd.curate.filters.structure import is_broken_at_a_width, is_verse, running_text
from herd.curate.filters.text import Text, keep_lines

INTRO = "The functions in this table compare two values, and each of them tells whether the first is the larger one."
ROWS = "".join(
    f"<tr><td><p>compare_{a} ( anyelement, anyelement ) → boolean</p><p>Tells whether the {a} is larger.</p></td></tr>"
    for a in ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
)


def text_of(html):
    found = extract(html)
    return Text(found.text, "en", [*found.code_lines, *found.aside_lines], found.link_lines)


def drops(text):
    return [reason for reason, _ in reasons(text, WEB_FILTERS)]


def test_a_page_of_a_table_stays_though_the_same_lines_as_prose_would_not():
    text = text_of(f"<h1>Comparison</h1><p>{INTRO}</p><table>{ROWS}</table>")
    assert text.prose is None and drops(text) == []
    assert "gopher_repeated_ngrams" in drops(Text(text.text.replace("\n\n", "\n"), "en"))


def test_definitions_and_lists_are_no_prose_but_lists_of_links_are_no_text_of_ones_own():
    terms = "".join(f"<dt>--option-{n}</dt><dd>Sets the number {n} of it.</dd>" for n in range(20))
    text = text_of(f"<p>{INTRO} {INTRO.replace('functions', 'options')} It is so.</p><dl>{terms}</dl>")
    assert drops(text) == [] and "option-3" not in (text.prose or Text("")).text
    links = "".join(f"<li><a href={n}>Chapter {n} of it</a></li>" for n in range(60))
    assert "fineweb_line_ends" in drops(text_of(f"<main><h1>Contents</h1><ul>{links}</ul></main>"))


def test_a_layout_table_is_no_table():
    article = "".join(f"<p>{INTRO} This is the paragraph number {n} of a long article.</p>" for n in range(20))
    found = extract(f"<table><tr><td>Menu</td><td>{article}</td></tr></table>")
    assert found.aside_lines == []


def test_pages_of_numbers_alone_and_pages_of_one_row_again_and_again_still_go():
    numbers = "".join(f"<tr><td>{n}</td><td>{n * n}</td><td>{n + 7}</td></tr>" for n in range(60))
    assert "structured_words" in drops(text_of(f"<table>{numbers}</table>"))
    rows = "<tr><td>the same row of the table</td><td>again and again and again it comes</td></tr>" * 60
    assert "structured_repetition" in drops(text_of(f"<table>{rows}</table>"))


VERSE = """Where the bee sucks, there suck I:
In a cowslip's bell I lie;
There I couch when owls do cry.
On the bat's back I do fly
After summer merrily."""


def test_verse_is_known_by_its_lines_and_a_poem_with_a_refrain_stays():
    assert is_verse(VERSE.split("\n")) and not is_verse(["Home", "About us", "Contact", "Imprint"])
    assert not is_verse(["Bees fly to the moon", "Ten ways to cook an egg", "Why the sky is so blue", "Rain tomorrow"])
    refrain = (
        "\n\nMerrily, merrily shall I live now,\nUnder the blossom that hangs on the bough.\nMerrily, O,\nlive.\n\n"
    )
    assert [r for r in drops(Text((VERSE + refrain) * 2, "en")) if "lines" in r] == []


SONG = """I left my heart down by the river
Where the water knows my name
You came along with all that thunder
And nothing stayed the same"""


def test_a_song_without_marks_is_verse_and_headlines_and_menus_are_none():
    assert is_verse(SONG.split("\n"))
    stanzas = "\n\n".join(SONG.replace("river", place) for place in ("river", "harbor", "meadow", "river"))
    assert drops(Text(stanzas, "en")) == []
    assert not is_verse(["My account", "Your basket", "Contact us", "Follow us"])
    assert not is_verse(["Storm hits the coast of Peru", "Ten dead after the fire", "Why banks cut the rates", "A win"])


@pytest.mark.parametrize("form", ["{}: {}", "<{}> {}", "[12:04] <{}> {}", "09:15 {}: {}"])
def test_a_chat_of_short_lines_stays_and_a_list_of_labels_is_no_chat(form):
    lines = ["hi there", "hey you", "did it work", "no idea why", "try the new one", "ok and now", "not to me", "hm"]
    chat = [form.format("anne" if n % 2 else "tom", f"{line} {n}") for n, line in enumerate(lines * 3)]
    assert drops(Text("\n".join(chat), "en")) == []
    labels = [f"{label}: 12 {n}" for n in range(20) for label in ("Price", "Size")]
    assert running_text(labels) != "" and running_text(chat) == ""


def test_lines_broken_at_a_width_are_one_paragraph():
    wrapped = (
        "The hive stands at the edge of the wood, and every morning the\nbees leave it with the first light of it, and"
    )
    assert is_broken_at_a_width(wrapped.split("\n"))
    assert running_text(wrapped.split("\n")) == wrapped.replace("\n", " ")
    book = "\n\n".join([wrapped.replace("hive", f"hive {n}") + "\nback." for n in "abcdefghij"])
    assert "fineweb_line_ends" not in drops(Text(book, "en"))


def test_ranges_of_lines_move_when_lines_go():
    row = {"text": "a\n\nb\n\nx = 1\ny = 2\n\nc", "code_lines": [4, 6], "aside_lines": [2, 3], "link_lines": []}
    keep_lines(row, [False, True, False, True, True, True, True, True])
    assert row["text"] == "x = 1\ny = 2\n\nc" and row["code_lines"] == [0, 2] and row["aside_lines"] == []


def test_the_names_of_who_speaks_are_no_repetition():
    lines = [f"{INTRO} That is the answer number {n}, and no other was like it." for n in range(20)]
    talk = Text(
        "\n".join(line for n, answer in enumerate(lines) for line in ("Anne:" if n % 2 else "Sun:", answer)), "en"
    )
    assert "gopher_repeated_lines" not in [reason for reason, _ in reasons(talk, WEB_FILTERS, whole=True)]


def test_four_of_five_thai_news_stay_and_honest_pages_have_no_bombs_of_attributes(shared_data):
    with gzip.open(shared_data / "text-thaigov/docs.jsonl.gz", "rt", encoding="utf-8") as rows:
        news = [json.loads(row)["text"] for row in rows][:100]
    assert sum(not drops(Text(text, "th")) for text in news) >= 80
    with gzip.open(shared_data / "html-article-extraction/pages.jsonl.gz", "rt", encoding="utf-8") as rows:
        assert not any(extract(json.loads(row)["html"]).problem for row in rows)


def test_a_range_of_the_first_line_stays_a_range_that_can_be_written():
    row = {"text": "a table\nnotice\nprose", "aside_lines": [0, 1], "code_lines": [], "link_lines": []}
    keep_lines(row, [True, False, True])
    assert pa.array([row["aside_lines"]], pa.list_(pa.int32())).to_pylist() == [[0, 1]]


SPOKEN = """Are you sure?|I think so.|Then why did you come back?|Because of the letter.|Which letter?|Since when?
The one you sent.|I never sent a letter.|Then who did?|Ask your brother.|My brother is dead.|Since the winter.
I am sorry to hear that.|You did not know him.|I did, a little.|From where?|From the school.|He liked it there."""


@pytest.mark.parametrize("form", ["“{}”", '"{}"', "— {}", "Anne: {}"])
def test_dialogue_in_short_lines_stays_and_menus_go(form):
    assert [
        r
        for r in drops(Text("\n\n".join(map(form.format, re.split(r"[|\n]", SPOKEN))), "en"))
        if r.startswith("fineweb")
    ] == []
    menu = "Home|About us|Need help?|Login|What is new|Hot deals!|Buy now!|Free shipping|Contact us!|Top rated|News"
    assert "fineweb_short_lines" in drops(Text("\n\n".join(menu.split("|") * 3), "en"))


def test_portions_are_a_list_and_not_repetition():
    meals = [
        f"{INTRO.replace('functions', meal)}" for meal in ("oats", "beans", "fish", "eggs", "rice", "bread", "soup")
    ]
    plan = "\n".join(f"{meal}\n1 cup of skim milk\n2 slices of whole wheat bread\n½ tsp. salt" for meal in meals)
    assert "milk" not in running_text(plan.split("\n")) and "oats" in running_text(plan.split("\n"))
    assert "2 large dogs came by." in running_text(["2 large dogs came by."])


def test_news_without_marks_at_their_ends_are_sentences_and_key_words_are_none():
    news = (
        "The government that fell in {} will have to be formed again, officials said, with the help of that of others"
    )
    text = "\n".join(news.format(f"a{n}") for n in range(8))
    assert not {"fineweb_line_ends", "c4_sentences"} & set(drops(Text(text, "en")))
    words = "\n".join(
        f"cheap shoes{n} online buy best cheap shoes{n} sale discount shoes{n} outlet store" for n in range(8)
    )
    assert {"fineweb_line_ends", "c4_sentences"} <= set(drops(Text(words, "en")))


REVIEW = """In grey and red the Acme Hover Clean Pro weighs less than three bags of flour do.
Four brushes came with our Acme Hover Clean Pro, and two of them lost their hair within a month.
Whoever has stairs will like that an Acme Hover Clean Pro runs for a whole hour without its cable.
Nobody slept while the Acme Hover Clean Pro was on, though its maker calls the thing a quiet one.
For a third less than the best cleaner of our last test, an Acme Hover Clean Pro cleans nearly as well.
After six weeks of use the hinge of every second Acme Hover Clean Pro had come off, and glue did not help."""


def test_an_article_may_name_its_subject_and_spam_may_not():
    assert "gopher_repeated_ngrams" not in drops(Text(REVIEW, "en"))
    assert {"gopher_top_ngram", "gopher_repeated_ngrams"} & set(drops(Text(REVIEW.lower(), "en")))
    assert "gopher_repeated_ngrams" in drops(
        Text("Cheap Nike Air Max Shoes Online Sale. " * 4 + "Buy It Now. " * 3, "en")
    )


def test_a_list_item_in_a_menu_does_not_make_it_a_list():
    menu = (
        "Home|About us|Login|What is new|Hot deals|Shipping|Top rated|News|Sports today|Terms|Imprint|Careers|Partners"
    )
    lines = [f"{word} {letter}" for letter in "abcdef" for word in menu.split("|")]
    assert "fineweb_short_lines" in drops(Text("\n".join([*lines, "1. Bees and more", "- Wax"]), "en"))
