"""Answers that the program reads out of indexed files."""

import pytest

from herd.knowledge.build import index_folder
from herd.knowledge.index import Index
from herd.knowledge.reading import entries_of, read_out

SHELF = """shelf
=====

Shelves hold jars.

put(jar, *, row=0)
    put(jar, *, row=0) -> None

    Place a jar on the shelf. It stays there until it is taken.

take_down(jar)
    Take a jar off the shelf, oldest first.

class Ladder(object)
    A thing to climb on.
"""
KEYS = """# Keys

## Lost

Who loses a key pays forty euros. The caretaker has spare ones.

## Dogs

Dogs may use the garden until eight in the evening.
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "shelf.rst").write_text(SHELF)
    (folder / "keys.md").write_text(KEYS)
    index_folder(folder, folder.parent / "files.index")
    return Index(folder.parent / "files.index")


@pytest.mark.parametrize(
    ("question", "answer", "file"),
    [
        ("What does shelf.put do?", "Place a jar on the shelf.", "shelf.rst"),
        ("In my program I see take_down; what will it do?", "Take a jar off the shelf, oldest first.", "shelf.rst"),
        ("What is a Ladder?", "A thing to climb on.", "shelf.rst"),
        ("Who pays when a key is lost?", "Who loses a key pays forty euros.", "keys.md"),
        ("Until when may dogs be in the garden?", "Dogs may use the garden until eight in the evening.", "keys.md"),
    ],
)
def test_the_sentence_that_answers_is_found_where_it_stands(index, question, answer, file):
    found = read_out(index, question)
    assert (found.text, found.hit.file) == (answer, file)
    assert found.text in " ".join(found.hit.text.split())


@pytest.mark.parametrize(
    "question", ["What does shelf.spin do?", "What is the capital of France?", "What does jar.put_all do?"]
)
def test_what_no_file_holds_is_declined(index, question):
    assert read_out(index, question) is None


def test_a_name_is_answered_with_its_arguments(index):
    assert read_out(index, "put()").line == "put(jar, *, row=0)"


def test_entries_are_named_lines_paragraphs_and_the_heading():
    names = [entry.name for entry in entries_of("First words here.\n\nadd(a, b)\n    The sum.\n", "Sums")]
    assert names == ["add", "Sums", "", ""]
