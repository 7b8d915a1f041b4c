"""Git repositories as pages."""

import json
import subprocess
from collections import Counter

import pyarrow.parquet as pq
import pytest

from herd.curate.read.pages import find_files, read_pages
from herd.errors import DataError
from herd.stages.curate import CurateSettings
from herd.stages.curate import run as curate
from herd.stages.repositories import RepositoriesSettings
from herd.stages.repositories import run as gather
from tests.curate.test_pipeline import CODE, WORK

MIT = "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a\ncopy of this software"


def repository(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


@pytest.fixture
def repositories(tmp_path):
    files = {"src/bees.py": CODE, "src/copy.py": CODE.replace("\n", "  \n"), "LICENSE": MIT, "logo.png": b"\x89PNG"}
    files |= {"big.py": "x = 1\n" * 1000, "odd.py": b"\xff\xfe\xff"}
    return [repository(tmp_path / "bees", files), repository(tmp_path / "wasps", {"a.py": CODE + "\n# wasps\n"})]


def test_tracked_files_are_taken_once_and_the_licence_is_noted(repositories, tmp_path):
    (repositories[0] / "untracked.py").write_text("x = 2\n")
    out = gather(RepositoriesSettings(repositories=repositories, out=tmp_path / "run", max_file_bytes=5000))
    told = {row["name"]: row for row in json.loads((out / "repositories.json").read_text())}
    assert (told["bees"]["licence"], told["wasps"]["licence"]) == ("MIT", "")
    counts = {name: told["bees"].get(name, 0) for name in ("files", "taken", "repeated", "too large", "not UTF-8")}
    assert counts == {"files": 4, "taken": 1, "repeated": 1, "too large": 1, "not UTF-8": 1}
    (file,) = find_files([out])
    pages = list(read_pages(file, Counter()))
    assert [page.kind for page in pages] == ["code", "code"] and {page.source for page in pages} == {"code"}


def test_repositories_are_curated_like_any_other_source(repositories, tmp_path):
    out = gather(RepositoriesSettings(repositories=repositories, out=tmp_path / "run", licences=["MIT"]))
    done = curate(CurateSettings(out=tmp_path / "curate", pages=[out], work=WORK))
    kept = [row for row in pq.read_table(done / "documents").to_pylist() if row["drop"] is None]
    bees = next(row for row in kept if row["url"].endswith("/src/bees.py"))
    assert bees["text"].strip() == CODE and bees["group"] == "git:bees" and bees["source"] == "code"
    assert not any(row["group"] == "git:wasps" for row in kept)


def test_what_is_no_repository_is_named(repositories, tmp_path):
    with pytest.raises(DataError, match=r"nothing: .*No such file"):
        gather(RepositoriesSettings(repositories=[tmp_path / "nothing"], out=tmp_path / "x"))
    with pytest.raises(DataError, match=r"no file was taken; licences found: MIT \(1\), none \(1\)"):
        gather(RepositoriesSettings(repositories=repositories, out=tmp_path / "y", licences=["GPL-3.0"]))
