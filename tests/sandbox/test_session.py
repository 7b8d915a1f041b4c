from __future__ import annotations

import time

import pytest

from herd import sandbox
from herd.errors import ConfigError, SandboxError
from herd.sandbox import LAYERS, LEVELS, Limits, Session, packages


@pytest.fixture(params=LEVELS)
def session(request):
    if any(sandbox.available()[layer] for layer in LAYERS[request.param]):
        pytest.skip(f"`{request.param}` is not available here: {sandbox.available()}")
    limits = Limits(wall_seconds=20, output_bytes=2000)
    with Session(request.param, files={"data/in.txt": b"given"}, limits=limits) as one:
        yield one


SHORT = Limits(wall_seconds=1)


def test_names_imports_and_files_last_from_cell_to_cell(session):
    first = session.run("import math\nx = math.floor(3.7)\nopen('data/in.txt').read()")
    assert (first.stdout, first.ok, first.files) == ("'given'\n", True, {})
    second = session.run("open('out.txt', 'w').write('a' * x); print(x)", files={"more.txt": b"m"})
    assert (second.stdout, second.files) == ("3\n", {"out.txt": b"aaa"})
    third = session.run("open('out.txt', 'a').write(open('more.txt').read())")
    assert (third.stdout, third.files) == ("1\n", {"out.txt": b"aaam"})


def test_an_error_names_its_cell_and_line_and_ends_nothing(session):
    session.run("x = 1")
    wrong = session.run("def f():\n    return 1 / 0\nf()")
    assert 'File "<cell 2>", line 2, in f\n    return 1 / 0' in wrong.stderr
    assert (wrong.status, wrong.why, wrong.ok, wrong.state_lost) == (1, "ended", False, False)
    assert session.run("x").stdout == "1\n"


def test_a_cell_over_its_time_is_interrupted_and_the_state_kept(session):
    session.run("x = 1")
    late = session.run("import time; time.sleep(60)", limits=SHORT)
    assert (late.why, late.ok, late.state_lost) == ("time", False, False)
    assert "KeyboardInterrupt" in late.stderr
    assert session.run("x").stdout == "1\n"


def test_a_cell_that_does_not_stop_is_killed_with_the_state_and_the_files_stay(session):
    session.run("x = 1; open('kept', 'w').write('k')")
    stubborn = "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass"
    killed = session.run(stubborn, limits=SHORT)
    assert (killed.why, killed.state_lost) == ("time", True)
    after = session.run("print(open('kept').read()); x")
    assert (after.stdout, after.state_lost) == ("k\n", False) and "NameError" in after.stderr


def test_output_is_cut_at_the_limit_of_each_cell(session):
    cut = session.run("for n in range(10**9): print('x' * 100)")
    assert (len(cut.stdout), cut.why) == (2000, "output")
    assert session.run("print('well')").stdout == "well\n"


def test_memory_ends_a_cell():
    with Session(sandbox.strongest(), limits=Limits(wall_seconds=20, memory_bytes=200 << 20)) as session:
        over = session.run("import time\nx = [bytearray(b'x' * (20 << 20)) for _ in range(50)]\ntime.sleep(5)")
        assert over.why == "memory" or "MemoryError" in over.stderr
        assert session.run("print('well')").stdout == "well\n"


def test_a_session_that_leaves_begins_anew(session):
    left = session.run("raise SystemExit(4)")
    assert (left.status, left.why, left.state_lost) == (4, "ended", True)
    assert session.run("1 + 1").stdout == "2\n"


def test_nothing_runs_between_two_cells(session):
    code = """
import os, subprocess, sys, threading, time
def f():
    while True:
        counts[0] += 1
        time.sleep(0.001)
counts = [0]
threading.Thread(target=f, daemon=True).start()
if os.fork() == 0:
    while True: time.sleep(0.01)
"""
    assert session.run(code).ok
    first = int(session.run("counts[0]").stdout)
    time.sleep(1)
    assert int(session.run("counts[0]").stdout) - first < 100


def test_a_forked_child_does_not_take_the_next_cell(session):
    assert session.run("import os\nparent = os.getpid()\nchild = os.fork()").ok
    for _ in range(3):
        assert session.run("os.getpid() == parent").stdout == "True\n"


@pytest.mark.parametrize("link", ["os.symlink({target!r}, 'data2')", "os.symlink({target!r} + '/file', 'file')"])
def test_a_file_is_not_put_in_through_a_link_of_the_program(link, session, tmp_path):
    (tmp_path / "file").write_text("the host's")
    session.run("import os\n" + link.format(target=str(tmp_path)))
    result = session.run("1", files={"data2/file": b"owned", "file": b"owned"})
    assert (tmp_path / "file").read_text() == "the host's"
    assert result.left_out or session.run("open('file').read()").stdout == "'owned'\n"


def test_answers_that_a_program_forges_are_its_own_loss(session):
    session.run("x = 1")
    early = session.run("import os, time\nos.write(4, b'\\0\\0\\0'); time.sleep(2); y = 1")
    assert early.why == "ended"
    assert session.run("os.close(3)", limits=SHORT).why in ("ended", "time")
    for _ in range(3):
        last = session.run("1 + 1", limits=SHORT)
    assert last.stdout == "2\n"


def test_a_closed_session_says_so():
    session = Session(sandbox.strongest())
    session.close()
    with pytest.raises(SandboxError, match="open a new one"):
        session.run("1")


def test_plots_come_out_as_files():
    pytest.importorskip("matplotlib")
    limits = Limits(wall_seconds=60, cpu_seconds=60)
    with Session(sandbox.strongest(), packages=["matplotlib"], limits=limits) as session:
        drawn = session.run(
            "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.figure()\nplt.plot([2, 1])\nplt.show()"
        )
        assert list(drawn.files) == ["plot-1.png", "plot-2.png"], drawn.stderr
        assert all(data.startswith(b"\x89PNG") for data in drawn.files.values())
        assert list(session.run("plt.plot([3]);").files) == ["plot-3.png"]
        assert session.run("1").files == {}


def test_only_chosen_packages_can_be_imported(session):
    pytest.importorskip("numpy")
    assert "ModuleNotFoundError" in session.run("import numpy").stderr
    with Session(session.level, packages=["numpy"], limits=Limits(wall_seconds=60, cpu_seconds=60)) as chosen:
        result = chosen.run("import numpy\nprint(numpy.arange(3).sum(), numpy.__version__)")
        assert result.stdout == f"3 {chosen.packages.versions['numpy']}\n", result.stderr
        assert result.packages == chosen.packages.sha256 and len(result.packages) == 64
        assert "ModuleNotFoundError" in chosen.run("import yaml").stderr


def test_the_hash_of_packages_is_that_of_what_lies_there():
    numpy = pytest.importorskip("numpy")
    found = packages.chosen(("numpy",))
    assert found.places["numpy"] == str(numpy.__path__[0])
    assert found.sha256 != packages.chosen(("pyyaml",)).sha256
    assert packages.chosen(()).sha256 == ""


def test_a_package_that_is_not_here_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"packages: `no-such-package` is not installed here"):
        Session(packages=["no-such-package"])
