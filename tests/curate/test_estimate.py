"""What a curation takes is told from its first pages."""

import gzip
import json

import pytest

from herd.curate.dedup.duplicates import DocumentDedup, LineDedup
from herd.curate.estimate import estimate
from herd.curate.judge.documents import Rules
from herd.curate.pipeline import Work, curate
from herd.curate.read.pages import find_files


@pytest.mark.parametrize("packed", [False, True])
def test_disk_is_estimated_within_a_factor_of_two(tmp_path, shared_data, packed):
    with gzip.open(shared_data / "html-trafilatura/pages.jsonl.gz", "rt", encoding="utf-8") as rows:
        pages = [json.loads(row)["html"] for row in rows]
    folder = tmp_path / "pages"
    folder.mkdir()
    if packed:
        rows = "".join(json.dumps({"url": f"http://a.org/{i}", "html": page}) + "\n" for i, page in enumerate(pages))
        (folder / "pages.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    else:
        for number, page in enumerate(pages):
            (folder / f"{number}.html").write_text(page, encoding="utf-8")
    files = find_files([folder])
    expected = estimate(files, Rules(), 1, 20_000_000)
    out = tmp_path / "out"
    out.mkdir()
    curate(files, out, Rules(), DocumentDedup(), LineDedup(), Work(processes=1))
    taken = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert taken / 2 <= expected.disk_bytes <= 2 * taken and expected.seconds > 0
