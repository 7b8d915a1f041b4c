"""Heuristics: each gives its reason on what it is made for, and leaves good text alone."""

import pytest

from herd.curate.filters import heuristics as filters
from herd.curate.filters.heuristics import why_drop
from herd.curate.filters.repetition import repeated_ngram_share
from herd.curate.filters.text import Text, is_technical, technical_kind

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
    assert is_technical(code) and is_technical(maths) and not is_technical(PROSE)
    assert why_drop(code) is None
    assert any(rule(Text(code, "en")) for rule in filters.WEB_FILTERS)


def test_generated_tables_are_dropped_even_among_code():
    table = "x = [\n" + "0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,\n" * 200 + "]"
    assert why_drop(table, technical=True)[0] == "technical_repetition"


def test_share_of_repeated_ngrams_counts_covered_characters():
    # aa bb cc dd aa bb: the second `aa bb` repeats, 4 of 12 characters
    assert repeated_ngram_share(Text("aa bb cc dd aa bb"), 2) == pytest.approx(4 / 12)
    assert repeated_ngram_share(Text("aa bb"), 5) == 0


def test_languages_without_spaces_are_not_judged_by_words():
    thai = "ผึ้งบินออกจากรังทุกเช้าเมื่อแสงแรกมาถึงและกลับมาเมื่อดวงอาทิตย์ต่ำ " * 12
    for rule in (filters.gopher_word_count, filters.gopher_word_length, filters.gopher_stop_words):
        assert rule(Text(thai, "th")) is None


def test_empty_texts_break_no_rule():
    for rule in (*filters.WEB_FILTERS, *filters.TECHNICAL_FILTERS):
        rule(Text("", "en"))


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("gopher_repeated_paragraphs", "\n\n".join([PROSE, "The bees\ncome home.", "The bees\ncome home."])),
        ("c4_sentences", PROSE.replace(".", ",")),
        ("fineweb_repeated_characters", "\n".join([PROSE, "A line that stands there twice."] + [PROSE[:60]] * 2)),
        ("fineweb_lines_to_words", PROSE.replace(" ", "\n")),
    ],
)
def test_the_rest_of_the_rules_finds_what_it_is_made_for(reason, text):
    rule = next(rule for rule in filters.WEB_FILTERS if rule.__name__ == reason)
    found = rule(Text(text, "en"), **({"most_paragraphs": 0.1} if "paragraphs" in reason else {}))
    assert found is not None and found[0] == reason and found[1]


def test_limits_of_a_recipe_go_over_those_of_the_language():
    short = " ".join(PROSE.split()[:44]) + ". So it is."
    assert why_drop(short)[0] == "gopher_word_count"
    assert why_drop(short, overrides={"*": {"gopher_word_count": {"least": 20}}, "de": {}}) is None
    assert why_drop(short, overrides={"de": {"gopher_word_count": {"least": 20}}})[0] == "gopher_word_count"
    assert filters.limits_for("fi", {"fi": {"gopher_word_length": {"least": 2}}})["gopher_word_length"] == {
        "most": 14,
        "least": 2,
    }
    for wrong in ({"de": {"no_filter": {}}}, {"de": {"gopher_bullets": {"least": 1}}}):
        with pytest.raises(ValueError, match=r"there are:|it has: most"):
            filters.check_limits(wrong)


def test_words_that_the_user_lists_are_counted_as_words_and_phrases():
    listed = filters.ListedWords({"drinks": ["mead", "honey wine"]}, most=2, most_share=0.01)
    assert listed(Text(PROSE + " Meadow, meadows, wine and honey.")) is None
    assert listed(Text(PROSE + " Mead! Honey-wine.")) is None
    reason, detail = listed(Text(PROSE + " Mead! Honey-wine, MEAD."))
    assert reason == "listed_words_drinks" and detail.startswith("3 listed words, such as mead")
    assert listed(Text(PROSE * 20 + " Mead! Honey-wine, MEAD.")) is None  # a long page may hold some
    strict = filters.ListedWords({"drinks": ["mead", "蜂蜜酒"]}, most=0, most_share=0)
    assert strict(Text(PROSE + " mead")) and strict(Text("他们喝蜂蜜酒。", "zh")) and strict(Text(PROSE)) is None


REAL = {
    "zh": "养蜂人每天早晨打开蜂箱，看看蜜蜂是否健康。春天的时候，花园里开满了各种颜色的花，蜜蜂从一朵花飞到另一朵花，"
    "把花粉带回蜂巢。到了秋天，养蜂人收集蜂蜜，并且给蜜蜂留下足够的食物过冬。村里的老人说，蜜蜂认得主人的声音。"
    "孩子们不太相信这句话，但他们喜欢坐在树下听这些故事，直到太阳落到山后面。",
    "ja": "養蜂家は毎朝、巣箱を開けて蜂が元気かどうかを確かめます。春になると庭にはさまざまな色の花が咲き、"
    "蜂は花から花へと飛び回ります。"
    "秋には蜂蜜を集めますが、冬を越すための食べ物は残しておきます。村の老人は、蜂は主人の声を覚えていると言います。"
    "子どもたちはあまり信じていませんが、木の下に座って日が暮れるまでその話を聞くのが好きです。",
    "fi": "Mehiläishoitaja avaa pesän joka aamu ja katsoo, että kaikki on hyvin. Keväällä puutarhassa kukkivat "
    "omenapuut, ja mehiläiset lentävät kukasta kukkaan. Syksyllä hän kerää hunajan mutta jättää mehiläisille talveksi "
    "ruokaa. Kylän vanhimmat sanovat, että mehiläiset tuntevat isäntänsä äänen. Lapset eivät usko sitä, mutta he ovat "
    "kuunnelleet tarinoita puun alla niin kauan kuin muistavat, ja iltaisin he kertovat niitä toisilleen.",
    "th": "คนเลี้ยงผึ้งเปิดรังทุกเช้าเพื่อดูว่าผึ้งสบายดีหรือไม่ ในฤดูใบไม้ผลิสวนเต็มไปด้วยดอกไม้หลากสี ผึ้งบินจากดอกหนึ่งไปยังอีกดอกหนึ่ง "
    "และนำเกสรกลับไปที่รัง เมื่อถึงฤดูหนาวเขาเก็บน้ำผึ้ง แต่เหลืออาหารไว้ให้ผึ้งพอสำหรับฤดูหนาว คนแก่ในหมู่บ้านบอกว่าผึ้งจำเสียงเจ้าของได้ "
    "เด็กๆ ไม่ค่อยเชื่อ แต่พวกเขาชอบนั่งใต้ต้นไม้ฟังเรื่องเหล่านี้จนพระอาทิตย์ตกหลังภูเขา",
}


@pytest.mark.parametrize("language", REAL)
def test_running_text_of_other_languages_passes(language):
    text = Text(REAL[language], language)
    assert list(filters.reasons(text, filters.WEB_FILTERS)) == []
    assert why_drop(REAL[language][:40], language)[0] == "gopher_word_count"
    assert why_drop(REAL[language].replace("。", "。\n") * 4, language) is not None


def test_real_articles_pass(shared_data):
    """The annotated bodies of real articles: nine in ten pass every rule of prose."""
    import gzip
    import json

    with gzip.open(shared_data / "html-article-extraction/pages.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [row["text"] for row in map(json.loads, lines)]
    texts = [text for text in texts if len(text.split()) > 100]
    dropped = [reason for text in texts if (reason := why_drop(text, "en", technical=False))]
    assert len(texts) > 50 and len(dropped) <= 0.1 * len(texts), dropped


def test_planted_technical_pages_survive_the_whole_of_the_rules(shared_data):
    """Pages full of formulas and code, as extracted from real documentation, are known for what they are and stay."""
    import gzip
    import json

    from herd.curate.extract.html import extract

    with gzip.open(shared_data / "html-sphinx-math-code/pages.jsonl.gz", "rt", encoding="utf-8") as lines:
        pages = [extract(json.loads(line)["html"]) for line in lines]
    pages = [page for page in pages if len(page.text.split()) >= 20]
    hurt = [page for page in pages if any(filters.reasons(Text(page.text), filters.WEB_FILTERS))]
    dropped = []
    for page in pages:
        num_code_lines = sum(page.code_lines[1::2]) - sum(page.code_lines[::2])
        technical = technical_kind(page.text, num_code_lines) is not None
        dropped += [reason for reason in [why_drop(page.text, technical=technical)] if reason]
    assert len(hurt) >= 20 and dropped == []
