from __future__ import annotations

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from herd import cli, sandbox
from herd.errors import ConfigError, SandboxError
from herd.sandbox import LAYERS, LEVELS, Limits, Pool, Sandbox, languages, run

HELLO = {
    "python": "print('hello')",
    "bash": "echo hello",
    "c": '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }',
    "c++": '#include <iostream>\nint main() { std::cout << "hello\\n"; }',
    "javascript": "console.log('hello')",
    "typescript": "const word: string = 'hello'; console.log(word)",
    "java": 'public class Main { public static void main(String[] a) { System.out.println("hello"); } }',
    "go": 'package main\nimport "fmt"\nfunc main() { fmt.Println("hello") }',
    "rust": 'fn main() { println!("hello"); }',
    "sql": "SELECT 'hello';",
}


@pytest.fixture(scope="module")
def box():
    with Sandbox(sandbox.strongest()) as one:
        yield one


@pytest.mark.parametrize("language", HELLO)
def test_every_language_says_hello(language, box):
    if absent := languages.missing(language):
        pytest.skip(f"{language}: {', '.join(absent)} not here")
    result = box.run(HELLO[language], language, limits=Limits(wall_seconds=60, cpu_seconds=60))
    assert (result.stdout, result.why, result.status) == ("hello\n", "ended", 0), result.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_a_result_names_its_level_and_layers(level):
    if any(sandbox.available()[layer] for layer in LAYERS[level]):
        pytest.skip(f"`{level}` is not available here: {sandbox.available()}")
    result = run("print(1)", level=level)
    assert (result.stdout, result.level, result.layers) == ("1\n", level, LAYERS[level])


STOPS = {"full": True, "namespaces": True, "landlock": True, "limits": False}
READS = "import sys; print(open(sys.argv[1] if len(sys.argv) > 1 else {path!r}).read())"


@pytest.mark.parametrize(
    ("level", "stops"), [("full", True), ("namespaces", True), ("landlock", True), ("limits", False)]
)
def test_each_level_keeps_files_outside_unread_or_says_that_it_does_not(level, stops, tmp_path):
    if any(sandbox.available()[layer] for layer in LAYERS[level]):
        pytest.skip(f"`{level}` is not available here: {sandbox.available()}")
    (tmp_path / "secret").write_text("secret")
    result = run(READS.format(path=str(tmp_path / "secret")), level=level)
    assert ("secret\n" in result.stdout) != stops


@pytest.mark.parametrize(
    ("level", "stops"), [("full", True), ("namespaces", True), ("landlock", True), ("limits", False)]
)
def test_each_level_refuses_sockets_or_says_that_it_does_not(level, stops):
    if any(sandbox.available()[layer] for layer in LAYERS[level]):
        pytest.skip(f"`{level}` is not available here: {sandbox.available()}")
    result = run("import socket; socket.socket(); print('open')", level=level)
    assert ("open" in result.stdout) != stops


def test_files_go_in_and_come_out_and_links_do_not(box):
    code = (
        "import os; open('out', 'w').write(open('d/in').read() * 2); os.mkfifo('p'); "
        "os.symlink('/etc/passwd', 'link'); os.symlink('/usr', 'folder')"
    )
    result = box.run(code, files={"d/in": b"ab"})
    assert result.files == {"out": b"abab"}
    assert set(result.left_out) == {"link", "p", "folder"}


def test_nothing_is_left_for_the_next_run(box):
    box.run("open('kept', 'w').write('x'); open('/tmp/kept', 'w').write('x')")
    assert "kept" not in box.run("import os; print(os.listdir('.'), os.listdir(os.environ['TMPDIR']))").stdout


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
def test_a_file_that_leads_out_of_the_box_is_refused(name, box):
    with pytest.raises(ConfigError, match="expected a file's name inside the box"):
        box.run("pass", files={name: b""})


def test_output_is_cut_at_its_limit_and_said_so(box):
    result = box.run("print('x' * 1000)", limits=Limits(output_bytes=100))
    assert (len(result.stdout), result.why, result.ok) == (100, "output", False)


def test_a_fault_of_the_program_is_its_own(box):
    result = box.run("raise SystemExit(3)")
    assert (result.status, result.why, result.ok) == (3, "ended", False)
    assert "could not be started" not in result.stderr


def test_a_weaker_level_must_be_asked_for_in_words(monkeypatch):
    levels_really = sandbox.available()
    refused = {"namespaces": "refused", "landlock": None, "seccomp": None, "rlimits": None}
    monkeypatch.setattr("herd.sandbox.levels.available", lambda: refused)
    with pytest.raises(SandboxError, match=r"namespaces: refused.*strongest here is `landlock`.*allow_weaker=true"):
        Sandbox()
    if levels_really["landlock"] is None:
        with Sandbox(allow_weaker=True) as weaker:
            assert weaker.level == "landlock"


def test_layers_are_tried_where_no_thread_holds_a_lock():
    code = """
import os
from herd import sandbox
os.fork = None
print(*sandbox.available())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["namespaces", "landlock", "seccomp", "rlimits", "cgroup"], done.stderr


def test_a_sandbox_outlives_the_thread_that_opened_it():
    with ThreadPoolExecutor(1) as threads:
        box = threads.submit(Sandbox, sandbox.strongest()).result()
    with box:
        assert box.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("level", LEVELS)
def test_closing_ends_what_runs(level):
    if any(sandbox.available()[layer] for layer in LAYERS[level]):
        pytest.skip(f"`{level}` is not available here: {sandbox.available()}")
    with Sandbox(level) as box, ThreadPoolExecutor(1) as threads:
        code = "import os\nfor _ in range(2): os.fork()\nos.execlp('sleep', 'sleep', '97.5')"
        running = threads.submit(box.run, code)
        while sum(b"97.5" in command for command in commands()) < 4:
            assert not running.done(), running.result()
        box.close()
        with pytest.raises(SandboxError, match=r"open a new one|its process ended"):
            running.result()
    assert not any(b"97.5" in command for command in commands())


def commands():
    """The command lines of every process of this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def test_a_pool_gives_results_in_order():
    with Pool(2, sandbox.strongest()) as pool:
        assert [r.stdout for r in pool.map(f"print({n})" for n in range(12))] == [f"{n}\n" for n in range(12)]


def test_the_verb_prints_layers_and_result(tmp_path, capsys):
    (tmp_path / "a.py").write_text("print('\\x1b[31mred')")
    assert cli.main(["sandbox", str(tmp_path / "a.py"), f"level={sandbox.strongest()}"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "\\x1b[31mred\n"  # no escape reaches the terminal
    assert f"level {sandbox.strongest()}" in printed.err
