import json

from herd import cli


def test_a_folder_is_indexed_searched_and_an_answer_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/keys.md").write_text("# Keys\n\nWho loses a key pays forty euros.\n")
    (tmp_path / "files/picture.png").write_bytes(b"\x89PNG")
    index = str(tmp_path / "index")
    assert cli.main(["index", str(tmp_path / "files"), index]) == 0
    told = capsys.readouterr().err
    assert "1 files added" in told and "left out, kind not read: 1 (picture.png" in told
    assert cli.main(["search", index, "Who pays for a key?"]) == 0
    assert "[1] keys.md · Keys · line 3\n    Who loses a key pays forty euros." in capsys.readouterr().out
    answer = "Who loses a key pays forty euros. Dogs pay twice."
    assert cli.main(["search", index, "key", f"answer={answer}"]) == 0
    shown = capsys.readouterr().out
    assert "euros. [1] Dogs pay twice. [unsupported]" in shown and '[1] keys.md · Keys · line 3: "Who loses' in shown
    assert cli.main(["search", index, "zebra", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reading": None, "hits": [], "citations": []}
    assert cli.main(["search", str(tmp_path / "none"), "key"]) == 2
    assert "no index lies there" in capsys.readouterr().err
