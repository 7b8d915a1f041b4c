"""Pages that lie behind URLs: the same as the same files on the disk."""

import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.curate.read.pages import find_files, read_pages
from herd.curate.read.storage import identity, location
from herd.curate.read.warc import warc_record
from herd.errors import DataError
from herd.stages.curate import CurateSettings
from herd.stages.curate import run as curate
from tests.curate.test_pipeline import WORK, html, prose

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One page in each format."""
    path = tmp_path_factory.mktemp("formats")
    record = warc_record("http://a.org/warc", "2024-01-01T00:00:00Z", "text/html", html(prose(1)))
    (path / "a.warc.gz").write_bytes(record)
    row = {"url": "http://a.org/jsonl", "text": prose(2)}
    (path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    with pa.output_stream(str(path / "c.jsonl.zst"), compression="zstd") as file:
        file.write(json.dumps({"url": "http://a.org/zst", "text": prose(3)}).encode())
    pq.write_table(pa.table({"url": ["http://a.org/parquet"], "text": [prose(4)]}), path / "d.parquet")
    (path / "e.html").write_bytes(html(prose(5)))
    return path


def remote(kind, folder, tmp_path):
    if kind == "file":
        return f"file://{folder}"
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "pages.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"inner/{file.name}")
        return f"zip://inner::{tmp_path / 'pages.zip'}"
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe(f"/pages/{file.name}", file.read_bytes())
    return "memory://pages"


@pytest.mark.parametrize("kind", ["file", "memory", "zip"])
def test_pages_behind_a_url_are_the_pages_of_the_disk(kind, folder, tmp_path):
    def contents(path):
        pages = [page for file in find_files([path]) for page in read_pages(file, Counter())]
        return [(page.kind, page.content) for page in pages], pages

    here, _ = contents(folder)
    there, pages = contents(Path(remote(kind, folder, tmp_path)))
    assert there == here and len(there) == 5
    assert all(page.place.startswith(f"{kind}://") for page in pages)


def test_a_corpus_is_curated_from_a_url(folder, tmp_path):
    out = curate(CurateSettings(out=tmp_path / "run", pages=[Path(remote("memory", folder, tmp_path))], work=WORK))
    assert json.loads((out / "run.json").read_text())["figures"]["documents"] == 5
    again = CurateSettings(out=tmp_path / "run", pages=[Path("memory://pages")], work=WORK)
    assert curate(again) == out  # finished, and the pages are the same


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/crawl", "s3://bucket/crawl"),
        ("zip://inner::s3://bucket/a.zip", "zip://inner::s3://bucket/a.zip"),
        ("file:///data/pages", "file:///data/pages"),
        ("/data/a:b", None),
        ("runs/demo", None),
    ],
)
def test_a_url_survives_being_a_path(path, url):
    assert location(Path(path)) == url


def test_what_is_not_there_is_said_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match="memory://nowhere: no such file or folder"):
        find_files([Path("memory://nowhere")])
    with pytest.raises(DataError, match=r"nosuch://x: .*nosuch"):
        find_files([Path("nosuch://x")])
    with pytest.raises(DataError, match="no file of pages"):
        fsspec.filesystem("memory").pipe("/odd/a.bin", b"x")
        find_files([Path("memory://odd")])


def test_the_identity_of_a_folder_changes_with_its_files(folder, tmp_path):
    before = identity(Path(remote("memory", folder, tmp_path)))
    fsspec.filesystem("memory").pipe("/pages/e.html", b"<p>longer or shorter</p>")
    assert identity(Path("memory://pages")) != before
