import pytest

from herd.knowledge.citations import cite, marked

PASSAGES = [
    "The garden opens at 7 in summer. Dogs are welcome there. Dr. Meyer looks after the roses.",
    "Who loses a key pays 40 euros. Bicycles do not belong in the hall.",
]


def test_each_sentence_gets_the_span_that_says_it():
    answer = "Dogs are welcome in the garden. If you lose a key, you pay 40 euros."
    first, second = cite(answer, PASSAGES)
    assert (first.supported, first.passage) == (True, 0)
    assert (second.passage, second.quote) == (1, "Who loses a key pays 40 euros.")
    for one in (first, second):
        assert PASSAGES[one.passage][one.start : one.start + len(one.quote)] == one.quote
    assert "garden. [1]" in marked(answer, [first, second])


@pytest.mark.parametrize(
    "sentence",
    [
        "Who loses a key pays 400 euros.",
        "Here Who loses a key pays Smith 40 euros.",
        "Bicycles do belong in the hall.",
        "Dogs are not welcome there.",
        "The moon is made of cheese.",
    ],
)
def test_another_number_name_or_negation_is_unsupported(sentence):
    (found,) = cite(sentence, PASSAGES)
    assert not found.supported
    assert marked(sentence, [found]) == f"{sentence} [unsupported]"


def test_a_title_ends_no_sentence_and_thai_phrases_are_looked_up():
    (found,) = cite("Dr. Meyer looks after the roses.", PASSAGES)
    assert found.supported
    thai = "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย มีประชากรมากกว่าแปดล้านคน"
    first, second = cite("กรุงเทพมหานครเป็นเมืองหลวง เชียงใหม่อยู่ทางภาคเหนือ", [thai])
    assert (first.supported, second.supported) == (True, False)


def test_nothing_is_cited_where_nothing_was_found():
    assert [one.supported for one in cite("A sentence.", [])] == [False]
    assert cite("", PASSAGES) == []
