from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from herd import run as runs
from herd.config import settings
from herd.errors import CapacityError, CheckpointError, DataError


@settings
class StageSettings:
    """A stage."""

    out: Path
    """Run folder."""

    source: Path | None = None
    """An input."""

    steps: int = 3
    """Steps."""


def open_stage(out: Path, *, source: Path | None = None, steps: int = 3):
    made = StageSettings(out=out, source=source, steps=steps)
    return runs.open_run(out, stage="stage", settings=made, inputs={"source": source})


def finish(out: Path, **settings_) -> None:
    with open_stage(out, **settings_) as run:
        runs.atomic_write(run.path / "result.txt", "result")
        run.finish({"tokens": 3})


def test_a_finished_run_is_skipped_and_its_folder_is_complete(tmp_path):
    finish(tmp_path / "run")
    with open_stage(tmp_path / "run") as run:
        assert run.finished
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"settings.yaml", "environment.json", "inputs.json", "run.json", "result.txt"} <= names
    manifest = runs.read_manifest(tmp_path / "run")
    assert manifest["figures"] == {"tokens": 3} and set(manifest["outputs"]) == {"result.txt"}


def test_a_state_that_a_finished_run_could_not_let_go_of_any_more_is_deleted(tmp_path):
    with open_stage(tmp_path / "run") as run:
        run.finish()
    (tmp_path / "run/state/step-00000010").mkdir(parents=True)
    with open_stage(tmp_path / "run") as run:
        assert run.finished
    assert not (tmp_path / "run/state").exists()


def test_an_interrupted_run_is_entered_again(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_stage(tmp_path / "run"):
        raise KeyboardInterrupt
    with open_stage(tmp_path / "run") as run:
        assert not run.finished


def test_other_settings_or_inputs_are_refused_by_name(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("one")
    finish(tmp_path / "run", source=source)
    with (
        pytest.raises(CheckpointError, match="steps: 3 there, 4 now"),
        open_stage(tmp_path / "run", source=source, steps=4),
    ):
        pass
    source.write_text("two")
    with (
        pytest.raises(CheckpointError, match="input `source` has other content"),
        open_stage(tmp_path / "run", source=source),
    ):
        pass


def test_a_moved_input_is_the_same_input(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("one")
    finish(tmp_path / "run", source=source)
    source.rename(tmp_path / "moved.txt")
    with open_stage(tmp_path / "run", source=tmp_path / "moved.txt") as run:
        assert run.finished


def test_an_edited_output_is_noticed_and_a_copied_run_is_not(tmp_path):
    finish(tmp_path / "run")
    os.utime(tmp_path / "run" / "result.txt", (0, 0))
    assert runs.fingerprint(tmp_path / "run")
    (tmp_path / "run" / "result.txt").write_text("resulT")
    with pytest.raises(CheckpointError, match=r"result\.txt: was damaged or edited"):
        runs.fingerprint(tmp_path / "run")


def test_unfinished_inputs_empty_folders_and_missing_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        runs.fingerprint(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        runs.fingerprint(tmp_path / "empty")
    with pytest.raises(ValueError), open_stage(tmp_path / "run"):
        raise ValueError
    with pytest.raises(CheckpointError, match="not finished"):
        runs.fingerprint(tmp_path / "run")


def test_folders_of_another_format_stage_or_owner_are_refused(tmp_path):
    finish(tmp_path / "run")
    other = runs.open_run(tmp_path / "run", stage="other", settings=StageSettings(out=tmp_path), inputs={})
    with pytest.raises(CheckpointError, match="is a `stage` run"), other:
        pass
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(CheckpointError, match="format 0"), open_stage(tmp_path / "run"):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match=r"thesis\.txt"), open_stage(tmp_path / "mine"):
        pass


def test_a_run_folder_in_use_is_refused_and_a_killed_owner_frees_it(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "sys.path[:0] = [sys.argv[2]]\nfrom tests.test_run import open_stage\n"
        "with open_stage(Path(sys.argv[1])) as run:\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", script, str(tmp_path / "run"), root]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert holder.stdout.readline().strip() == "in"
        with pytest.raises(CheckpointError, match=f"in use by process {holder.pid}"), open_stage(tmp_path / "run"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with open_stage(tmp_path / "run") as run:
        assert not run.finished


def test_a_stage_that_needs_more_disk_than_there_is_refuses_early(tmp_path):
    with pytest.raises(CapacityError, match="free some space"), open_stage(tmp_path / "run") as run:
        run.need(disk_bytes=1e18)


def test_what_an_interrupted_run_has_written_is_not_asked_for_once_more(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage._replace(free=60_000_000))
    with open_stage(tmp_path / "run") as run:
        with pytest.raises(CapacityError, match="needs 70"):
            run.need(disk_bytes=20e6)
        (run.path / "state").mkdir()
        (run.path / "state/data").write_bytes(bytes(15_000_000))
        run.need(disk_bytes=20e6)


def test_metrics_survive_a_torn_line_and_rewind(tmp_path):
    with open_stage(tmp_path / "run") as run:
        for step in range(1, 6):
            run.log(step=step, loss=1 / step)
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 6, "lo')
        run.rewind(3)
        run.log(step=4, loss=0.5)
        assert [row["step"] for row in runs.read_metrics(run.path)] == [1, 2, 3, 4]


def test_half_written_files_and_folders_do_not_exist(tmp_path):
    with pytest.raises(TypeError):
        runs.atomic_write(tmp_path / "file", 3)
    with pytest.raises(RuntimeError), runs.atomic_folder(tmp_path / "folder") as aside:
        (aside / "part").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with runs.atomic_folder(tmp_path / "folder") as aside:
        (aside / "part").write_text("old")
    with runs.atomic_folder(tmp_path / "folder") as aside:
        (aside / "part").write_text("new")
    assert (tmp_path / "folder" / "part").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_a_folder_in_which_nothing_was_made_takes_other_settings(tmp_path):
    with pytest.raises(ValueError), open_stage(tmp_path / "run", steps=3):
        raise ValueError("before anything was made")
    finish(tmp_path / "run", steps=4)
    assert runs.read_manifest(tmp_path / "run")["settings"]["steps"] == 4


def test_a_run_begun_before_there_was_a_setting_goes_on_with_its_usual_value(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_stage(tmp_path / "run", steps=3) as run:
        runs.atomic_write(run.path / "part", "work")
        raise KeyboardInterrupt
    file = tmp_path / "run" / "run.json"
    manifest = json.loads(file.read_text())
    del manifest["settings"]["steps"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="steps: None there, 4 now"), open_stage(tmp_path / "run", steps=4):
        pass
    finish(tmp_path / "run", steps=3)


def test_an_interrupted_run_that_made_something_refuses_other_settings(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_stage(tmp_path / "run", steps=3) as run:
        runs.atomic_write(run.path / "part", "work")
        raise KeyboardInterrupt
    with pytest.raises(CheckpointError, match="steps: 3 there, 4 now"), open_stage(tmp_path / "run", steps=4):
        pass


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_lock_that_is_a_link_overwrites_nothing(tmp_path, link):
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "run").mkdir()
    if link == "symbolic":
        (tmp_path / "run/.lock").symlink_to(target)
    else:
        (tmp_path / "run/.lock").hardlink_to(target)
    with pytest.raises(CheckpointError, match=r"link.*delete it"), open_stage(tmp_path / "run"):
        pass
    assert target.read_text() == "precious"


@pytest.mark.parametrize("place", ["metrics.jsonl", "settings.yaml", "state", "parts/deep"])
def test_nothing_is_written_through_a_link_in_a_run_folder(tmp_path, place):
    with pytest.raises(KeyboardInterrupt), open_stage(tmp_path / "run") as run:
        run.log(step=1)
        raise KeyboardInterrupt
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "run" / place
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=f"{link}: is a link to {elsewhere}"), open_stage(tmp_path / "run"):
        pass
    assert list(elsewhere.iterdir()) == []


def test_a_file_written_aside_does_not_follow_what_lies_there(tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / f".result.txt.{os.getpid()}.tmp").symlink_to(target)
    runs.atomic_write(tmp_path / "result.txt", "result")
    assert target.read_text() == "precious" and (tmp_path / "result.txt").read_text() == "result"


@pytest.mark.parametrize("words", ["no number", "99999999999999999999", "\0" * 30])
def test_a_lock_with_strange_words_in_it_is_taken_like_any_other(tmp_path, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").write_text(words)
    finish(tmp_path / "run")


def test_a_manifest_of_nothing_but_brackets_is_told_in_a_sentence(tmp_path):
    (tmp_path / "run.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"run\.json: cannot be read"):
        runs.read_manifest(tmp_path)
