"""The pages of the running Python, and the user's own."""

import json

import pytest

from herd.curate.extract.html import html_to_text
from herd.curate.read.pages import find_files, read_pages
from herd.demo import stdlib
from herd.errors import DataError
from herd.stages.demo.pages import PagesSettings, run

MODULES = ["json", "os.path", "textwrap", "topics.lists"]


def pages_of(folder):
    from collections import Counter

    counts: Counter = Counter()
    return {page.url: page for file in find_files([folder]) for page in read_pages(file, counts)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return run(PagesSettings(out=tmp_path_factory.mktemp("pages") / "run", modules=MODULES, processes=2))


def test_modules_chapters_and_sources_become_pages(library):
    pages = pages_of(library)
    prefix = f"python://{stdlib.version()}"
    assert {f"{prefix}/doc/{name}.html" for name in MODULES} <= set(pages)
    assert pages[f"{prefix}/lib/textwrap.py"].content == (stdlib.stdlib_folder() / "textwrap.py").read_bytes()
    assert pages[f"{prefix}/lib/textwrap.py"].kind == "code" and pages[f"{prefix}/doc/json.html"].kind == "html"
    assert f"{prefix}/lib/json/decoder.py" in pages
    assert pages[f"{prefix}/doc/json.html"].date.endswith("Z")


def test_pages_read_well_as_text(library):
    page = pages_of(library)[f"python://{stdlib.version()}/doc/os.path.html"]
    text = html_to_text(page.content)
    assert "\n\njoin(a, *p)\n    Join two or more pathname components, inserting '/' as needed.\n    If any" in text
    assert "index" not in text.partition("\n")[0]


def test_pages_hold_nothing_of_this_machine(library):
    folder = str(stdlib.stdlib_folder()).encode()
    for page in pages_of(library).values():
        assert page.kind == "code" or folder not in page.content


def test_the_same_python_gives_the_same_bytes_and_finished_pages_are_kept(library, tmp_path):
    kept = tmp_path / "run/state" / stdlib.version()
    first = run(PagesSettings(out=tmp_path / "run", modules=MODULES, processes=1))
    assert (first / "pages.warc.gz").read_bytes() == (library / "pages.warc.gz").read_bytes()
    assert not kept.exists()


def test_a_killed_run_goes_on_with_the_modules_that_are_missing(library, tmp_path, monkeypatch):
    asked = []

    def stop(names, folder, **options):
        asked.append(list(names))
        render(names[:2], folder, **options)
        raise KeyboardInterrupt

    render = stdlib.render
    monkeypatch.setattr(stdlib, "render", stop)
    settings = PagesSettings(out=tmp_path / "run", modules=MODULES, processes=1)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.setattr(
        stdlib, "render", lambda names, folder, **o: (asked.append(list(names)), render(names, folder, **o))
    )
    run(settings)
    assert [len(names) for names in asked] == [4, 2]
    assert (tmp_path / "run/pages.warc.gz").read_bytes() == (library / "pages.warc.gz").read_bytes()


def test_modules_that_hang_crash_or_are_not_there_cost_one_page(tmp_path):
    (tmp_path / "hang.py").write_text("while True: pass")
    (tmp_path / "crash.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "leave.py").write_text("import os; os._exit(0)")
    (tmp_path / "call.py").write_text("import socket; socket.create_connection(('127.0.0.1', 9))")
    (tmp_path / "fine.py").write_text('"""All is well."""\nprint("noise")')
    found = {}
    names = ["hang", "crash", "call", "fine", "no_such_module"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib, "ENVIRONMENT", stdlib.ENVIRONMENT | {"PYTHONPATH": str(tmp_path)})
        stdlib.render(names, tmp_path, seconds=1.5, processes=1, report=found.__setitem__)
    assert "took longer" in found["hang"] and "signal 11" in found["crash"] and "not allowed" in found["call"]
    assert "no module named" in found["no_such_module"] and found["fine"] == ""
    assert b"All&nbsp;is&nbsp;well" in (tmp_path / "fine.html").read_bytes()


def test_what_is_left_out_is_named_and_the_rest_is_there():
    names = stdlib.module_names()
    parts = {part for name in names for part in name.split(".")}
    assert not parts & stdlib.EXCLUDED.keys() and all(stdlib.EXCLUDED.values())
    assert {"os", "os.path", "json.decoder", "email.message", "builtins"} <= set(names) and len(names) > 300
    assert len(stdlib.topic_names()) > 60
    sources = [file.relative_to(stdlib.stdlib_folder()).as_posix() for file in stdlib.source_files()]
    assert "posixpath.py" in sources and not any(
        name.startswith(("test/", "site-packages/", "idlelib")) for name in sources
    )


def test_own_pages_are_counted_and_pointed_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.html").write_text("<p>Bees.")
    out = run(PagesSettings(out=tmp_path / "run", pages=[tmp_path / "mine"]))
    assert json.loads((out / "sources.json").read_text()) == {"paths": [str((tmp_path / "mine").resolve())]}
    assert find_files([out]) == [tmp_path / "mine/a.html"]


def test_folders_without_pages_and_unknown_modules_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/note.xyz").write_text("x")
    with pytest.raises(DataError, match="no file of pages"):
        run(PagesSettings(out=tmp_path / "run", pages=[tmp_path / "empty"]))
    with pytest.raises(DataError, match="'nonsense' is not a public module"):
        run(PagesSettings(out=tmp_path / "other", modules=["nonsense"]))
