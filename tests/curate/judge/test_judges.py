"""Language, quality and furniture: small judges."""

import gzip
import json

import pytest

from herd.curate.extract.furniture import is_phrase, strength
from herd.curate.filters.language import language, paragraph_languages, without_foreign_paragraphs
from herd.curate.judge.quality import quality

PROSE = "The hive stands at the edge of the wood. Every morning the bees leave it with the first light of the day. " * 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (PROSE, "en"),
        ("Die Bienen fliegen jeden Morgen aus dem Stock und kommen am Abend wieder zurück.", "de"),
        ("Les abeilles quittent la ruche chaque matin et reviennent le soir.", "fr"),
        ("ผึ้งบินออกจากรังทุกเช้าและกลับมาในตอนเย็น", "th"),
    ],
)
def test_languages_are_told_apart(text, code):
    found, probability = language(text)
    assert found == code and 0.3 < probability <= 1


def test_texts_without_letters_have_no_language():
    assert language("12 34 -- 56") == ("", 0.0) == language("")


def test_paragraphs_are_judged_one_by_one_and_foreign_ones_can_go():
    german = "Die Bienen fliegen jeden Morgen aus dem Stock und kommen am Abend mit dem letzten Licht wieder zurück."
    text = f"{german}\n\n{PROSE.strip()}\n\nreturn honey\n\n{german}\n\nok"
    assert [paragraph.language for paragraph in paragraph_languages(text)] == ["de", "en", "", "de", ""]
    cleaned, code_lines, count = without_foreign_paragraphs(text, "de", [4, 5])
    assert cleaned == f"{german}\n\nreturn honey\n\n{german}\n\nok" and code_lines == [2, 3] and count == 1
    assert cleaned.split("\n")[2:3] == ["return honey"]
    assert without_foreign_paragraphs(text, "de", [2, 3])[2] == 0  # what the page marks as code stays
    assert without_foreign_paragraphs("", "en", []) == ("", [], 0)


def rows(file):
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("file", "every", "least"),
    [("text-ud-pud/sentences", 7, 0.98), ("text-udhr/udhr", 1, 0.98), ("text-docs-multilingual/docs", 2, 0.97)],
)
def test_real_sentences_and_documents_are_recognised(shared_data, file, every, least):
    codes = {"eng": "en", "deu": "de", "fra": "fr", "ita": "it", "por": "pt", "hin": "hi", "spa": "es", "tha": "th"}
    found = rows(shared_data / f"{file}.jsonl.gz")[::every]
    wrong = [row["lang"] for row in found if language(row["text"])[0] != codes.get(row["lang"][:3], row["lang"][:2])]
    assert len(wrong) <= (1 - least) * len(found) and "th" not in wrong


def test_code_addresses_and_numbers_do_not_decide_the_language():
    thai = "ผึ้งบินออกจากรังทุกเช้าและกลับมาในตอนเย็น"
    code = "```python\nfor bee in the_hive.bees:\n    print('the bee leaves the hive', bee)\n```\n" * 20
    address = "https://example.org/the-bees-leave-the-hive-in-the-morning\n" * 20
    assert language(code + address + thai + " 2024-05-01 12:30 kernel_size=3")[0] == "th"
    assert language(f"{thai}2567{thai}")[0] == "th"  # a number inside a run without spaces takes no words along
    german = "Die Bienen fliegen jeden Morgen aus dem Stock und kommen am Abend wieder zurück. "
    assert language("Home News Sports Weather Contact About us Terms of use " * 2 + german * 30)[0] == "de"
    assert paragraph_languages(f"The title of this page is in English: {thai * 3}")[0].language == "th"


def test_a_page_of_a_megabyte_without_spaces_is_judged_in_a_moment():
    assert language("ผึ้งบินออกจากรังทุกเช้า" * 50_000)[0] == "th" and language("a" * 1_000_000)[1] <= 1


def test_prose_scores_above_menus_repetition_and_noise():
    import random

    draw = random.Random(0)
    menu = "Home\nNews\nSports\nWeather\nContact\nAbout\n" * 10
    noise = " ".join(str(draw.random()) for _ in range(200))
    good = quality(
        PROSE * 2 + "Nobody who has watched them for a year would call them slow to learn where flowers are."
    )
    assert good > max(quality(menu), quality("buy honey now " * 100), quality(noise))
    assert quality("") == 0.0 and 0 <= good <= 1


def test_documented_code_scores_above_tables_of_numbers():
    documented = '"""Bees."""\n\n' + "\n".join(
        f'def hive_{name}(honey):\n    """Return the {name} hive."""\n    # it is kept apart\n    return honey.{name}'
        for name in ("north", "south", "east", "west", "upper", "lower")
    )
    table = "TABLE = (\n" + "\n".join(f"    0x{i:04x}, 0x{i * 7:04x}," for i in range(200)) + "\n)"
    assert quality(documented, is_code=True) > quality(table, is_code=True)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("post-comments", 2),
        ("articleRelated", 2),
        ("screen-reader-text", 2),
        ("teaser", 1),
        ("teaser-text", 0),
        ("has-sidebar wide", 0),
        ("shadow-box header", 0),
        ("sharing-with-a-single-developer", 0),
        ("entry-content", 0),
    ],
)
def test_class_names_are_read_by_words(hint, expected):
    assert strength(hint) == expected


def test_phrases_that_lead_elsewhere_are_known_in_several_languages():
    for phrase in ("Read more: ten flowers", "Advertisement", "Lesen Sie auch:", "Lire aussi", "12 Comments", "© AFP"):
        assert is_phrase(phrase)
    for text in (
        "More than a thousand bees",
        "Related work on bees was done by two people",
        "The closed hive",
        "Homes",
    ):
        assert not is_phrase(text)
