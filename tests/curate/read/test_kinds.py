"""Pages are read as what they are, whatever they are called."""

from collections import Counter

import pytest

from herd.curate.read.kinds import kind_of
from herd.curate.read.pages import find_files, page_made_of, read_pages
from herd.curate.read.warc import warc_record

PAGE = b"<!doctype html><html><body><p>Bees fly early.</p></body></html>"
FEED = b"<?xml version='1.0'?>\n<!-- made -->\n<rss version='2.0'><channel><title>Bees</title></channel></rss>"
ATOM = b'<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom"></feed>'


@pytest.mark.parametrize(
    ("url", "declared", "content", "kind"),
    [
        ("http://a/x", "text/html", PAGE, "html"),
        ("http://a/x", "text/html", b"<p>Bees fly.", "html"),
        ("http://a/x", "text/html", b"%PDF-1.7\n...", "pdf"),
        ("http://a/x.pdf", "application/pdf", b"%PDF-1.4", "pdf"),
        ("http://a/x", "text/html", FEED, "feed"),
        ("http://a/x", "application/rss+xml", FEED, "feed"),
        ("http://a/x", "text/xml", ATOM, "feed"),
        ("http://a/x", "text/plain", FEED, "feed"),
        ("http://a/x", "text/html", b"\x89PNG\r\n\x1a\n", None),
        ("http://a/x", "text/html", b'{"bees": [1, 2]}', None),
        ("http://a/x", "text/plain", b'[{"bees": 1}]', None),
        ("http://a/x", "text/plain", b"[Chorus] Bees fly, bees fly.", "text"),
        ("http://a/x", "text/html", b"/*! jQuery v3 */ !function(e,t){}(this);", None),
        ("http://a/x", "text/html", b"@media print { a { color: red } }", None),
        ("http://a/x", "text/html", b"Bees fly early in spring, and late in autumn.", "text"),
        ("http://a/sitemap.xml", "application/xml", b'<?xml version="1.0"?><urlset></urlset>', None),
        ("http://a/x", "application/xml", b'<?xml version="1.0"?>' + PAGE, "html"),
        ("http://a/x", "application/xhtml+xml", b'<?xml version="1.0"?>\n<html xmlns="x">', "html"),
        ("http://a/README.md", "text/plain", b"# Bees\n\nThey fly.", "markdown"),
        ("http://a/x", "text/markdown", b"# Bees", "markdown"),
        ("http://a/x.tex", "application/x-tex", b"\\documentclass{article}", "latex"),
        ("http://a/x.py", "text/x-python", b"x = 1", "code"),
        ("http://a/x.css", "text/plain", b"a { color: red }", None),
        ("http://a/x", "", PAGE, "html"),
        ("http://a/x", "application/octet-stream", b"\x00\x01\x02", None),
        ("http://a/notes.txt", "application/octet-stream", b"Bees fly early.", "text"),
        ("http://a/x", "text/html", PAGE.decode().encode("utf-16"), "html"),
        ("http://a/x", "image/png", PAGE, None),
        ("http://a/x", "application/force-download", PAGE, "html"),
        ("http://a/x", "text", PAGE, "html"),
        ("http://a/x", "text/html", b"BEGIN:VCARD\r\nVERSION:3.0\r\nFN:Anne\r\nEND:VCARD", None),
        ("http://a/x", "text/plain", b"BEGIN:VCALENDAR\r\nVERSION:2.0", None),
        ("http://a/x", "text/html", rb"{\rtf1\ansi Bees fly.}", None),
        ("http://a/x", "text/plain", b"-----BEGIN CERTIFICATE-----\nMIIB", None),
        ("http://a/x", "text/plain", b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\nBees fly.", "text"),
        ("http://a/robots.txt", "text/plain", b"User-agent: *\nDisallow: /", None),
        ("http://a/x", "text/plain", b"User-agents are programs that read pages for a user.", "text"),
        ("http://a/x", "text/html", b"body { margin: 0 }\n.a, .b > c { color: #fff; }\n", None),
        (
            "http://a/x",
            "text/html",
            b"window.dataLayer = window.dataLayer || [];\nfunction gtag(){f(arguments);}",
            None,
        ),
        ("http://a/x", "text/html", b"define(['jquery'], function($){ return 1; });", None),
        ("http://a/x", "text/html", b"callback({'a': 1});", None),
        ("http://a/x", "text/html", b"// A remark on the left, he said, is a remark too.\nThe bees fly early.", "text"),
        ("http://a/x", "text/html", b"Import duties on honey (and wax) rise again; so do prices.", "text"),
        ("http://a/x", "text/html", b"<svg xmlns='http://www.w3.org/2000/svg'><path d='M0 0'/></svg>", None),
        ("http://a/x", "text/html", b"<urlset><url><loc>http://a</loc></url></urlset>", None),
        ("http://a/x", "application/atom+xml", b"<atom:feed><atom:entry/></atom:feed>", "feed"),
        ("http://a/x", "text/plain", b'{"a": 1}\n{"a": 2}\n', None),
        ("http://a/x", "text/html", b")]}',\n[1]", None),
        ("http://a/x", "text/plain", b"ID3 tags hold the title of a song, and more of it.", "text"),
        ("http://a/x.html", "text/html", b"Bees fly early in spring.\nAnd late in autumn.", "text"),
        ("http://a/x", "text/plain", b"\\documentclass{article}\n\\begin{document}", "latex"),
        ("http://a/x", "text/plain", b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n", "code"),
        ("http://a/x", "application/octet-stream", b"Bees fly early in spring.", "text"),
        ("http://a/x.css", "", b"a { color: red }", None),
    ],
)
def test_the_bytes_decide_where_they_speak_clearly(url, declared, content, kind):
    assert kind_of(url, declared, content) == kind


def test_what_a_crawl_declares_wrongly_is_counted(tmp_path):
    contents = {"a": PAGE, "b": b"%PDF-1.7", "c": FEED, "d": b'{"x": 1}'}
    records = [warc_record(f"http://a/{name}", "2024", "text/html", content) for name, content in contents.items()]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    counts: Counter = Counter()
    assert [page.kind for page in read_pages(tmp_path / "a.warc.gz", counts)] == ["html", "pdf", "feed"]
    assert counts["declared as HTML, read as pdf"] == counts["not a page: text/html"] == 1


def test_files_are_looked_into_and_a_pages_own_scripts_are_no_documents(tmp_path):
    files = {"a.html": PAGE, "b.html": b"%PDF-1.7", "c.xml": FEED, "d.xml": b"<?xml version='1.0'?><urlset/>"}
    files |= {"e.md": b"# Bees", "f.tex": b"\\section{Bees}", "_static/g.js": b"var x = 1", "print.css": b"a {}"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    counts: Counter = Counter()
    found = {file.name: [p.kind for p in read_pages(file, counts)] for file in find_files([tmp_path])}
    assert found == {"a.html": ["html"], "b.html": ["pdf"], "c.xml": ["feed"], "d.xml": [], "e.md": ["markdown"]} | {
        "f.tex": ["latex"]
    }
    (tmp_path / "a.html").unlink(), (tmp_path / "b.html").unlink()
    assert {"g.js", "print.css"} <= {file.name for file in find_files([tmp_path])}


def test_the_source_of_a_page_is_known_by_its_address():
    assert page_made_of("/d/html/_sources/library/os.rst.txt") == "/d/html/library/os.html"
    assert page_made_of("https://a.org/_sources/x.md.txt") == "https://a.org/x.html"
    assert page_made_of("https://a.org/x.html") is None and page_made_of("https://a.org/_sources/") is None
