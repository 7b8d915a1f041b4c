"""The scorer of blocks: what it is given, what it says, and why."""

import json

import numpy as np
import pytest

from herd.curate.extract.html import explain, extract
from herd.curate.extract.scorer import TABLE, load_scorer
from herd.errors import DataError

SENTENCE = "The bees of the northern garden fly earlier in the year than anyone had written down before. "
PARAGRAPHS = "".join(f"<p>{SENTENCE * count}</p>" for count in (3, 2, 4, 1))
ARTICLE = f"<main><h1>Early bees</h1>{PARAGRAPHS}</main>"
READERS = "".join(
    f"<li class=comment id=c{n}><div class=comment-author>Reader {n}</div><div class=comment-body><p>I saw bees number "
    f"{n} by my own window, and they were early as well.</p></div></li>"
    for n in range(6)
)
PAGE = f"<body>{ARTICLE}<section id=comments><h3>Comments</h3><ol class=comment-list>{READERS}</ol></section></body>"


def test_comments_stay_where_they_are_asked_for():
    assert "I saw bees" not in extract(PAGE).text
    assert "I saw bees number 3" in extract(PAGE, comments="keep").text


def test_every_block_is_shown_with_its_score_and_what_moved_it():
    page = f"<body><nav><ul><li><a href=/a>Home</a></li><li><a href=/b>News</a></li></ul></nav>{ARTICLE}</body>"
    blocks = explain(page, "", load_scorer())
    assert [block.text[:10] for block in blocks][:3] == ["Home", "News", "Early bees"]
    assert blocks[0].score < 0.5 < blocks[3].score and [block.kept for block in blocks[:4]] == [
        False,
        False,
        True,
        True,
    ]
    assert all(len(block.reasons) == 3 for block in blocks)


@pytest.mark.parametrize("content", [b"no table", b"PK\x03\x04"])
def test_a_table_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match="is no table of a block scorer"):
        load_scorer(tmp_path / "mine.npz")


def test_a_table_for_other_figures_is_refused(tmp_path):
    with np.load(TABLE) as table:
        np.savez(tmp_path / "old.npz", **(dict(table) | {"second.mean": table["second.mean"][1:]}))
    with pytest.raises(DataError, match="train it again"):
        load_scorer(tmp_path / "old.npz")


def test_the_kinds_that_failed_once_are_mended(shared_data):
    for line in (shared_data.parent / "cases/extraction.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        text = extract(case["html"]).text
        assert [part for part in case["keep"] if part not in text] == [], case["case"]
        assert [part for part in case["drop"] if part in text] == [], case["case"]
