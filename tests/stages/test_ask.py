"""`herd ask`: a cited answer from the command line."""

from __future__ import annotations

import json

import pytest

from herd import cli
from herd.knowledge.build import index_folder
from tests.scripted import Scripted, events, http, piece


@pytest.fixture
def index(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/rules.md").write_text("# Keys\n\nWho loses a key pays forty euros.\n")
    index_folder(tmp_path / "notes", tmp_path / "index")
    return str(tmp_path / "index")


MODELS = http(json.dumps({"data": [{"id": "m"}]}))


def test_an_answer_is_printed_with_the_passage_behind_each_sentence(index, capsys):
    said = events(piece("Who loses a key pays forty euros. "), piece("Pigs fly.", "stop"))
    with Scripted(MODELS, said) as server:
        cli.main(["ask", index, server.url, "Who pays for a lost key?"])
        asked = json.loads(server.requests[1][2])["messages"][-1]["content"]
    printed = capsys.readouterr().out
    assert "Who loses a key pays forty euros. [1] Pigs fly. [unsupported]" in printed
    assert '[1] rules.md · Keys · line 3: "Who loses a key pays forty euros."' in printed
    assert "rules.md" in asked and asked.endswith("Question: Who pays for a lost key?")


def test_a_question_that_the_files_do_not_answer_is_declined_without_a_model(index, capsys):
    cli.main(["ask", index, "/no/such/model", "Which zeppelin crossed the Atlantic?", "json=true"])
    assert json.loads(capsys.readouterr().out)["answer"] == "The documents hold nothing on this."
