from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys

import pytest

from herd.kernels.native import find_compiler, library

NAME = "native_layers"
pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no compiler")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache folder with one library in it."""
    base = tmp_path_factory.mktemp("cache")
    _load_elsewhere(base)
    return base


@pytest.fixture
def cache(compiled, tmp_path, monkeypatch):
    base = tmp_path / "cache"
    shutil.copytree(compiled, base)
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    return base


def _load_elsewhere(base) -> None:
    code = f"from herd.kernels.native import library; import sys; sys.exit(library({NAME!r}) is None)"
    environment = os.environ | {"XDG_CACHE_HOME": str(base)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment)


def the_library(base):
    (file,) = (base / "herd").glob("*.so")
    return file


def test_the_cache_is_the_users_own_and_a_whole_library_is_not_compiled_again(cache, monkeypatch, tmp_path):
    (cache / "herd").chmod(0o775)  # as folders are made under umask 002
    before = the_library(cache).stat()
    assert library(NAME) is not None
    assert the_library(cache).stat().st_ino == before.st_ino
    assert (cache / "herd").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (cache / "herd").iterdir()} == {0o600}


@pytest.mark.parametrize("damage", ["cut", "changed", "no record", "a link", "writable by others"])
def test_a_library_that_is_not_as_it_was_written_is_compiled_again(cache, tmp_path, damage):
    file = the_library(cache)
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:3000])
    elif damage == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no record":
        next(file.parent.glob("*.sha256")).unlink()
    elif damage == "a link":
        file.rename(tmp_path / "elsewhere.so")
        file.symlink_to(tmp_path / "elsewhere.so")
    else:
        file.chmod(0o666)
    inode = file.lstat().st_ino
    _load_elsewhere(cache)
    assert the_library(cache).lstat().st_ino != inode and not the_library(cache).is_symlink()
    assert the_library(cache).read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("whose", ["the folder", "the library", "what it lies in"])
def test_another_users_library_is_never_loaded(cache, whose, capsys):
    file = the_library(cache)
    given = {"the folder": cache / "herd", "the library": file, "what it lies in": cache}[whose]
    os.chown(given, 12345, 12345)
    inode = file.stat().st_ino
    assert library(NAME) is not None  # its own, compiled now
    with open("/proc/self/maps") as maps:
        loaded = {int(line.split()[4]) for line in maps if NAME in line}
    assert inode not in loaded
    assert whose == "the library" or "another user's" in capsys.readouterr().err


def test_a_relative_cache_folder_and_a_user_without_a_home_do_without_one(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert library(NAME) is not None
    assert list(tmp_path.iterdir()) == []
    assert "XDG_CACHE_HOME=here is not an absolute path" in capsys.readouterr().err

    def nobody(user):
        raise KeyError(user)

    library.cache_clear()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert library(NAME) is not None and library("native_attention") is not None
    assert capsys.readouterr().err.count("no home folder") == 1
