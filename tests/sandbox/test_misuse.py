"""What a caller can get wrong, and what a program leaves behind to trip up whoever collects it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading

import pytest

from herd import sandbox
from herd.errors import ConfigError, SandboxError
from herd.sandbox import Limits, Pool, Sandbox, Session, packages, run_tests


@pytest.fixture(scope="module")
def box():
    with Sandbox(sandbox.strongest()) as one:
        yield one


@pytest.fixture
def session():
    with Session(sandbox.strongest(), limits=Limits(wall_seconds=20)) as one:
        yield one


WRONG_LIMITS = [
    ("wall_seconds", -1), ("wall_seconds", 0), ("wall_seconds", math.nan), ("cpu_seconds", math.inf),
    ("wall_seconds", None), ("memory_bytes", -1), ("memory_bytes", 1.5), ("memory_bytes", "1"), ("memory_bytes", 2**70),
    ("disk_bytes", 0), ("output_bytes", -1), ("output_bytes", True), ("returned_bytes", -1), ("num_processes", 0),
    ("open_files", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG_LIMITS)
def test_what_is_no_limit_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"limit {name}: expected .* from .* got"):
        Limits(**{name: value})


WRONG_FILES = {
    "a list": ["a"],
    "text": {"a": "text"},
    "a number for a name": {1: b""},
    "a lone surrogate": {"a\ud800": b""},
    "an undecodable name": {"a\udc80": b""},
    "a long name": {"x" * 300: b""},
    "a deep name": {"a/" * 40 + "b": b""},
    "one name twice": {"a": b"1", "./a": b"2"},
    "a file as a folder": {"a": b"1", "a/b": b"2"},
    "the name of the code": {"main.py": b"mine"},
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_files_that_cannot_be_are_refused(kind, box):
    with pytest.raises(ConfigError, match=r"expected|another file|is a file"):
        box.run("pass", files=WRONG_FILES[kind])


@pytest.mark.parametrize("size", ["input", "code"])
def test_a_program_whose_files_do_not_fit_does_not_run(size, box):
    code, files = ("pass", {"a": bytes(9000)}) if size == "input" else ("#" * 9000, None)
    if box.level == "landlock":
        pytest.skip("the limit of the disk is one of each file there")
    with pytest.raises(SandboxError, match=r"could not be written \(No space left on device\).*disk_bytes is 8192"):
        box.run(code, files=files, limits=Limits(disk_bytes=8192))
    assert box.run("print(1)").stdout == "1\n"


def test_misuse_is_said_in_words(box, session):
    with pytest.raises(ConfigError, match="code: expected text, got bytes"):
        box.run(b"print(1)")
    with pytest.raises(ConfigError, match="code: expected text, got NoneType"):
        run_tests(None, "pass", box=box)
    with pytest.raises(ConfigError, match="code: expected text"):
        session.run(None)
    with pytest.raises(ConfigError, match="limits: expected Limits"):
        box.run("1", limits={"wall_seconds": 1})
    with pytest.raises(ConfigError, match="no language"):
        box.run("1", ["python"])
    with pytest.raises(ConfigError, match="workers: expected a whole number"):
        Pool(-1)
    assert session.run("1").stdout == "1\n"


@pytest.mark.parametrize("names", ["numpy", None, [""], [None], ["../x"], ["numpy==1"], ["numpy[x]"], ["a\n"]])
def test_what_is_no_package_name_is_refused(names):
    with pytest.raises(ConfigError, match=r"packages: .*expected"):
        packages.chosen(names)


def test_text_that_is_no_unicode_is_the_programs_own_fault(box, session):
    assert "SyntaxError" in box.run("print('\ud800')").stderr
    wrong = session.run("print('\ud800')")
    assert (wrong.status, wrong.state_lost) == (1, False) and "UnicodeEncodeError" in wrong.stderr


LEAVES = {
    "a signal without a name": ("os.kill(os.getpid(), 40)", None),
    "a folder that cannot be entered": ("os.makedirs('a/b'); os.chmod('a', 0o600)", None),
    "a folder that cannot be read": ("os.mkdir('a'); os.chmod('a', 0)", None),
    "a home that cannot be read": ("open('f', 'w').write('x'); os.chmod('.', 0)", {"f": b"x"}),
    "folders without end": ("for _ in range(3000): os.mkdir('d'); os.chdir('d')", None),
    "long paths": ("for _ in range(200): os.mkdir('d' * 250); os.chdir('d' * 250)\n"
                   "for n in range(2000): os.symlink('x', str(n))", None),
    "too many links": ("for n in range(3000): os.symlink('x', str(n))", None),
    "names in no encoding": ("open(b'\\xff', 'w').write('1'); open(b'\\xfe', 'w').write('2')",
                             {"\\udcff": b"1", "\\udcfe": b"2"}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAVES)
def test_nothing_that_a_program_leaves_ends_the_sandbox(name, box, session):
    code, files = LEAVES[name]
    result = box.run(f"import os\n{code}")
    assert result.files == (files or {})
    assert sum(map(len, result.left_out)) < 1 << 20
    if name in ("folders without end", "too many links"):
        assert result.left_out
    session.run(f"import os\n{code}")
    for _ in range(2):
        last = session.run("print(1)")
    assert last.stdout == "1\n"


def test_a_signal_without_a_name_is_told_by_number(box):
    result = box.run("import os; os.kill(os.getpid(), 40)")
    assert (result.why, result.status) == ("signal 40", -40)


def test_a_cell_that_loses_its_output_keeps_its_state(session):
    session.run("import sys; x = 1; kept = sys.stdout; sys.stdout = None")
    assert session.run("sys.stdout = kept; print(x)").stdout == "1\n"


def test_threads_that_share_a_sandbox_get_their_own_answers(box):
    answers = []

    def ask(number):
        answers.extend((box.run(f"print({number + n})").stdout, f"{number + n}\n") for n in range(5))

    threads = [threading.Thread(target=ask, args=(100 * n,)) for n in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(answers) == 15 and all(got == wanted for got, wanted in answers)


def test_an_answer_that_was_not_waited_for_is_not_the_next_ones():
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Sandbox(sandbox.strongest()) as box:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(KeyboardInterrupt):
                box.run("import time; time.sleep(5); print('old')")
            with pytest.raises(SandboxError, match="open a new one"):
                box.run("print('new')")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("level", ["full", "landlock"])
def test_a_closed_sandbox_says_so(level):
    box = Sandbox(level, allow_weaker=True)
    box.close()
    box.close()
    with pytest.raises(SandboxError, match="open a new one"):
        box.run("print(1)")


@pytest.mark.parametrize("place", ["bin", ".local/bin"])
def test_a_program_in_the_users_home_does_not_show_the_home(place, tmp_path):
    program = tmp_path / place / "go"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    code = "from herd.sandbox import languages; print(*languages.visible('go'), sep='\\n')"
    own = {**os.environ, "HOME": str(tmp_path), "PATH": str(program.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()
    assert str(program) in shown and not {str(tmp_path), str(tmp_path / ".local")} & set(shown)
