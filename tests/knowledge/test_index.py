import os
import sqlite3

import pytest

from herd.errors import DataError, RequestError
from herd.knowledge.build import index_folder
from herd.knowledge.index import Index

PAGES = {
    "keys.md": "# Keys\n\n## Lost\n\nWho loses a key pays forty euros.\n",
    "dogs.txt": "Dogs are welcome in the garden, not in the kitchen.",
    "thai.txt": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย มีประชากรมากกว่าแปดล้านคน",
    "han.txt": "東京は日本の首都である。",
    "hindi.txt": "दिल्ली भारत की राजधानी है",
}


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in PAGES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def names(index, question, **how):
    return [hit.file for hit in index.search(question, **how)]


def test_a_question_finds_the_passage_with_its_file_heading_and_place(files, tmp_path):
    index_folder(files, tmp_path / "index")
    hit = Index(tmp_path / "index").search("Who pays for lost keys?")[0]
    assert (hit.file, hit.heading, hit.place, hit.ways) == ("keys.md", "Keys > Lost", "line 5", ("words",))
    assert hit.text == "Who loses a key pays forty euros." and not hit.stale


@pytest.mark.parametrize(
    ("question", "file"),
    [("เมืองหลวงของไทย", "thai.txt"), ("日本的首都", "han.txt"), ("京", "han.txt"), ("राजधानी", "hindi.txt")],
)
def test_scripts_without_spaces_and_with_marks_are_found(files, tmp_path, question, file):
    index_folder(files, tmp_path / "index")
    assert names(Index(tmp_path / "index"), question)[0] == file


def test_only_what_changed_is_read_again_and_what_is_gone_is_forgotten(files, tmp_path):
    index_folder(files, tmp_path / "index")
    index = Index(tmp_path / "index")
    (files / "dogs.txt").unlink()
    (files / "keys.md").write_text("Zebras lose nothing at all.")
    assert [hit.stale for hit in index.search("kitchen")] == [True]
    (files / "new.txt").write_text("A new file about giraffes.")
    found = index_folder(files, tmp_path / "index")
    assert (found.added, found.changed, found.unchanged, found.removed, found.passages) == (1, 1, 3, 1, 5)
    assert names(index, "kitchen") == [] and names(index, "euros") == []
    assert names(index, "zebra") == ["keys.md"] and names(index, "giraffe") == ["new.txt"]
    assert b"kitchen" not in (tmp_path / "index/index.sqlite").read_bytes()


def test_what_is_left_out_is_told(files, tmp_path):
    (files / "big.txt").write_text("much " * 1000)
    (files / "picture.png").write_bytes(b"\x89PNG")
    (files / ".secret").write_text("hidden")
    (files / "empty.txt").write_text("")
    (files / "link.txt").symlink_to(files / "dogs.txt")
    os.mkfifo(files / "pipe.txt")
    found = index_folder(files, tmp_path / "index", max_bytes=1000)
    counts = {reason: len(left) for reason, left in found.left_out.items()}
    assert counts == {"too large": 1, "kind not read": 1, "hidden": 1, "no text": 1, "link": 2}
    assert set(Index(tmp_path / "index").left_out()) == {"big.txt", "picture.png", "empty.txt"}


def test_an_index_may_lie_in_the_folder_and_does_not_read_itself(files):
    index_folder(files, files / "index")
    found = index_folder(files, files / "index")
    assert (found.added, found.unchanged) == (0, len(PAGES))


def test_questions_of_any_signs_are_words_and_no_commands(files, tmp_path):
    index_folder(files, tmp_path / "index")
    index = Index(tmp_path / "index")
    assert names(index, 'dogs" OR NEAR(text:* ) -"kitchen') == ["dogs.txt"]
    with pytest.raises(RequestError, match="no word"):
        index.search("?!")
    with pytest.raises(RequestError, match="at most 300"):
        index.search(" ".join(f"word{number}" for number in range(400)))


def test_no_index_another_folder_and_damage_are_told(files, tmp_path):
    with pytest.raises(DataError, match="herd index"):
        Index(tmp_path / "nothing")
    index_folder(files, tmp_path / "index")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="is the index of"):
        index_folder(tmp_path / "other", tmp_path / "index")
    with pytest.raises(DataError, match="no folder"):
        index_folder(tmp_path / "missing", tmp_path / "index")
    (tmp_path / "index/index.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(DataError, match="damaged"):
        Index(tmp_path / "index")


def test_an_encoder_finds_by_meaning_and_steps_aside_where_it_has_no_words(files, tmp_path, base_model):
    place = base_model.folder.parent / "all-MiniLM-L6-v2"
    if not place.is_dir():
        pytest.skip("the encoder is not here: make base-model")
    found = index_folder(files, tmp_path / "index", encoder=place)
    assert found.without_vector == 3
    index = Index(tmp_path / "index")
    hit = index.search("Where may my puppy play?")[0]
    assert (hit.file, hit.ways) == ("dogs.txt", ("words", "meaning")) or (hit.file, hit.ways) == (
        "dogs.txt",
        ("meaning",),
    )
    assert index.search("เมืองหลวงของไทย")[0].ways == ("words",)
    (files / "cats.txt").write_text("Kittens sleep in the attic.")
    assert index_folder(files, tmp_path / "index").added == 1  # the encoder is remembered
    assert names(Index(tmp_path / "index"), "Where do young felines rest?")[0] == "cats.txt"
    with sqlite3.connect(tmp_path / "index/index.sqlite") as base:
        assert base.execute("SELECT count(*) FROM vectors WHERE vector IS NOT NULL").fetchone() == (3,)
