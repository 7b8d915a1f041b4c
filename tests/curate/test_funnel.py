"""The funnel's counts, samples and page."""

import re

import pyarrow as pa
import pyarrow.parquet as pq

from herd.cli import main
from herd.curate.dropped import write_dropped
from herd.curate.funnel import KEPT, REST, Funnel, Step, domain, tables_of
from herd.curate.funnel_page import page, page_style


def row(url, drop=None, text="Some words.", **more):
    return {"url": url, "drop": drop, "text": text, "language": "en", "source": "web", "kind": "html"} | more


def test_a_sample_shows_the_words_that_broke_the_rule():
    step = Step("heuristics")
    text = "An honest beginning. " * 60 + "buy honey now " * 10
    step.drop("http://a.org", "gopher_top_ngram", "2-gram 'buy honey' is 40% of the characters", text)
    assert step.examples[0]["text"].startswith("… ") and "buy honey now" in step.examples[0]["text"]
    step.drop("http://a.org", "short", "3 words", text)
    assert step.examples[1]["text"].startswith("An honest")


def test_tables_tell_code_and_maths_from_prose():
    rows = [
        row("http://www.a.org/1"),
        row("http://a.org/2", "short", text="x = 1\ny = 2\nz", code_lines=[0, 2]),
        row("http://b.org/", text=r"\frac{a}{b} \sum " * 20),
        row("pages/x.py", kind="code"),
    ]
    tables = tables_of(rows)
    assert tables["domain"]["a.org"] == {KEPT: 1, "short": 1, "bytes": 11}
    assert {kind: sum(v for k, v in counts.items() if k != "bytes") for kind, counts in tables["kind"].items()} == {
        "prose": 1,
        "code": 2,
        "maths": 1,
    }
    assert (domain("http://[broken"), domain("pages/x.py")) == ("(broken address)", "(files)")


def test_a_table_of_millions_of_domains_stays_small(tmp_path):
    funnel = Funnel(tmp_path / "funnel.json")
    for part in range(4):
        small = {f"{part}-{i}.org": {KEPT: 1, "bytes": 10} for i in range(4000)}
        funnel.add_tables({"domain": small | {"big.org": {KEPT: 100, "bytes": 1000}}})
    table = funnel.tables["domain"]
    assert len(table) < 10_500 and table["big.org"][KEPT] == 400
    assert sum(counts[KEPT] for counts in table.values()) == 16_400 and table[REST][KEPT] > 5000


def test_the_page_is_one_file_and_says_everything_escaped():
    step = Step("heuristics", documents_in=3, documents_out=2, bytes_in=300, bytes_out=200)
    step.drop("http://a.org/?a=1&b=<2>", "gopher_top_ngram", "2-gram '<b>now' is 40%", "buy <b>now <b>now")
    tables = tables_of([row("http://a.org/"), row("http://a.org/2", "gopher_top_ngram")])
    read = Step("read", documents_in=3, documents_out=3, bytes_in=9000, bytes_out=9000).as_dict()
    html = page({"steps": [read, step.as_dict()], "tables": tables}, "Bees & honey")
    assert "<mark>&lt;b&gt;now</mark>" in html and "a=1&amp;b=&lt;2&gt;" in html
    assert "Bees &amp; honey" in html and "2 (66.7 %)" in html and "50.0 %" in html
    assert not re.search(r"""(?:src|href)\s*=|@import|url\(""", html), "nothing is loaded from elsewhere"


def test_each_rule_has_its_meaning_and_limits_and_all_drops_can_be_leafed_through(tmp_path):
    text = "A fine page by ann@bees.org about honey.\n" + "- a bullet\n" * 20
    rows = [{"url": f"http://a.org/{n}", "drop": "gopher_bullets", "drop_detail": "95% of lines"} for n in range(101)]
    rows.append({"url": "http://a.org/kept", "drop": None, "drop_detail": None})
    (tmp_path / "documents").mkdir()
    pq.write_table(pa.Table.from_pylist([row | {"text": text} for row in rows]), tmp_path / "documents" / "a.parquet")
    limits = {"*": {"gopher_bullets": {"most": 0.5}}}
    browsable = write_dropped(tmp_path, page_style(), limits)
    assert browsable == {"gopher_bullets": "dropped/gopher_bullets-0001.html"}
    first, second = (page.read_text() for page in sorted((tmp_path / "dropped").iterdir()))
    assert first.count("class=url") == 100 and second.count("class=url") == 1 and "a.org/kept" not in first + second
    assert "<mark>- a bullet</mark>" in first and "gopher_bullets-0002.html" in first
    assert "ann@bees.org" not in first and "email@example.com" in first
    step = Step("heuristics", documents_in=101)
    step.drop("http://a.org/0", "gopher_bullets", "95% of lines", text)
    html = page({"steps": [step.as_dict()]}, "The funnel", limits, browsable)
    assert "over 90 % of the lines start with a bullet" in html and "usual limits: most 0.9; here: most 0.5" in html
    assert "href='dropped/gopher_bullets-0001.html'" in html


def test_where_nothing_is_kept_the_reason_is_named_and_the_page_is_there(tmp_path, capsys):
    (tmp_path / "short.html").write_text("<html><body><p>Short page.</p></body></html>")
    assert main(["curate", f"pages=[{tmp_path / 'short.html'}]", f"out={tmp_path / 'out'}", "work.processes=1"]) == 2
    assert "gopher_word_count (1): Drop pages outside 50 to 100,000 words" in capsys.readouterr().err
    assert "Drop pages outside 50" in (tmp_path / "out" / "funnel.html").read_text()
