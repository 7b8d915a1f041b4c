"""Curation from end to end, on a small crawl with everything in it."""

import errno
import json
import os
import random
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from herd.config import load, to_dict
from herd.curate import pipeline
from herd.curate.dedup.duplicates import DocumentDedup, LineDedup
from herd.curate.extract.part import DOCUMENT_SCHEMA, extract_part
from herd.curate.filters.addresses import Blocked
from herd.curate.judge.documents import Heuristics, Privacy, Rules, rules_to_json
from herd.curate.judge.part import judge_part
from herd.curate.pipeline import Work, curate
from herd.curate.read.pages import find_files
from herd.curate.read.warc import warc_record
from herd.errors import ConfigError, DataError
from herd.stages.curate import CurateSettings
from herd.stages.curate import run as run_stage
from herd.types import DOCUMENT_COLUMNS

WORDS = """
bee hive garden flower meadow winter keeper queen honey summer river morning stone wall path light rain cloud wing
voice song year month door window table glass bread salt wind hill field tree leaf root seed apple cherry barn roof
ladder rope cart wheel horse dog cat mouse owl night moon star fire smoke ash coal lamp book letter page word name story
child mother father brother sister friend stranger village town bridge mill""".split()  # noqa: SIM905
VERBS = "watched carried followed remembered counted moved opened guarded forgot painted mended sold".split()  # noqa: SIM905
NOTICE = "This page was printed by the garden society for its members only."
CODE = "\n\n".join(
    f'def {verb}(bee, place):\n    """Let a bee {verb} at a place."""\n\treturn  place.{verb}s(bee)'
    for verb in ("fly", "walk", "wait", "eat", "sleep", "sing")
)


def prose(seed, sentences=16):
    draw = random.Random(seed)
    word = lambda: draw.choice(WORDS)  # noqa: E731
    told = (
        f"{draw.choice(['The', 'A', 'That', 'One'])} {word()} {draw.choice(VERBS)} {word()} and {word()} with "
        f"{word()}, {draw.choice(['while', 'because', 'until', 'as'])} {word()} {draw.choice(VERBS)} the {word()} to "
        f"{word()}."
        for _ in range(sentences)
    )
    return " ".join(told)


def html(text):
    body = "".join(f"<p>{paragraph}</p>" for paragraph in text.split("\n"))
    return f"<html><head><title>Bees</title></head><body><nav>Home</nav><main>{body}</main></body></html>".encode()


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """Twenty good pages that share a notice, an old copy of one, a near-duplicate, junk, personal data and code."""
    folder = tmp_path_factory.mktemp("crawl")
    pages = {f"http://bees.org/{i}": f"{prose(i)}\n{NOTICE}\n{prose(100 + i)}" for i in range(20)}
    pages["http://bees.org/near"] = pages["http://bees.org/3"].replace("The ", "Our ", 2)
    pages["http://bees.org/mail"] = prose(50) + "\nWrite to jane@garden.org or 4111 1111 1111 1111."
    pages["http://bees.org/short"] = "Nothing here."
    pages["http://bees.org/spam"] = prose(60, 3) + " buy honey now" * 100
    pages["http://bees.org/german"] = GERMAN
    records = [warc_record("http://www.bees.org/7?utm_source=x", "2020-01-01T00:00:00Z", "text/html", html(prose(900)))]
    records += [warc_record(url, "2024-01-01T00:00:00Z", "text/html", html(text)) for url, text in pages.items()]
    records.append(warc_record("python://3.11/lib/bees/fly.py", "2024-01-01T00:00:00Z", "text/plain", CODE.encode()))
    (folder / "crawl.warc.gz").write_bytes(b"".join(records))
    return folder


GERMAN = (
    "Die Bienen fliegen jeden Morgen aus dem Stock. Wer sie ein Jahr lang beobachtet hat, wird nicht sagen, dass "
    "sie langsam lernen. Am Abend kommen sie zurück, und der "
    "Imker zählt, was sie gebracht haben. Im Winter bleiben sie im Stock und warten auf die ersten warmen Tage. Dann "
    "beginnt alles von vorn, und niemand hat je gesehen, dass sie einen Tag verloren hätten."
)
WORK = Work(part_bytes=12_000, processes=1)


def curated(crawl, out, rules=None, work=WORK, documents=None, lines=None):
    out.mkdir(exist_ok=True)
    rules, documents, lines = rules or Rules(), documents or DocumentDedup(), lines or LineDedup()
    figures = curate(find_files([crawl]), out, rules, documents, lines, work)
    rows = pq.read_table(out / "documents").to_pylist()
    return {row["url"]: row for row in rows}, json.loads((out / "funnel.json").read_text()), figures


@pytest.fixture(scope="module")
def result(crawl, tmp_path_factory):
    return curated(crawl, tmp_path_factory.mktemp("result"), work=Work(part_bytes=12_000, processes=2))


def test_every_page_is_there_kept_or_with_its_reason(result):
    rows, _, figures = result
    reasons = {url.rpartition("/")[2]: row["drop"] for url, row in rows.items() if row["drop"]}
    near = reasons.pop("near", None) or reasons.pop("3", None)
    assert near == "near_duplicate"
    assert {rows[f"http://bees.org/{name}"]["drop_detail"] for name in ("3", "near")} == {
        None,
        f"of http://bees.org/{'near' if rows['http://bees.org/3']['drop'] else '3'}",
    }
    assert rows["http://www.bees.org/7?utm_source=x"]["drop_detail"] == "the copy of 20240101 was kept"
    assert reasons == {
        "7?utm_source=x": "url_older_copy",
        "short": "gopher_word_count",
        "spam": "gopher_top_ngram",
    }
    assert figures["documents_read"] == len(rows) == 27 and figures["documents"] == 23
    assert all(row["drop_detail"] for row in rows.values() if row["drop"])


def test_the_result_has_the_columns_of_the_house(result):
    rows, _, _ = result
    assert list(next(iter(rows.values()))) == list(DOCUMENT_COLUMNS) == DOCUMENT_SCHEMA.names
    row = rows["http://bees.org/1"]
    assert row["language"] == "en" and row["source"] == "web" and row["group"] == "bees.org" and row["title"] == "Bees"
    assert (
        row["date"] == "2024-01-01T00:00:00Z"
        and 0 < row["quality"] <= 1
        and row["text"].startswith("Bees\n\n" + prose(1))
    )
    assert rows["http://bees.org/german"]["language"] == "de"


def test_repeated_lines_stay_once_and_prose_stays_whole(result):
    rows, funnel, _ = result
    assert sum(NOTICE in row["text"] for row in rows.values() if row["drop"] is None) == 1
    assert prose(5) in rows["http://bees.org/5"]["text"] and prose(105) in rows["http://bees.org/5"]["text"]
    (step,) = (step for step in funnel["steps"] if step["name"] == "line_dedup")
    assert step["notes"]["lines dropped"] >= 18


def test_code_stays_exactly_as_it_is(result):
    row = result[0]["python://3.11/lib/bees/fly.py"]
    assert row["text"] == CODE and row["drop"] is None
    assert (row["source"], row["group"], row["language"]) == ("library", "bees", "")


def test_personal_data_is_masked_and_counted(result):
    rows, funnel, _ = result
    assert rows["http://bees.org/mail"]["text"].endswith("Write to email@example.com or [card number].")
    (step,) = (step for step in funnel["steps"] if step["name"] == "pii")
    assert step["notes"] == {"email": 1, "card": 1}


def test_the_funnel_adds_up_and_shows_examples(result):
    _, funnel, _ = result
    steps = funnel["steps"]
    assert [step["name"] for step in steps] == [
        *("read", "addresses", "url_dedup", "extract", "language", "document_dedup"),
        *("line_dedup", "heuristics", "outliers", "decontaminate", "pii", "quality", "knowledge"),
    ]
    for before, step in pairwise(steps):
        assert step["documents_in"] == before["documents_out"]
        assert step["documents_in"] - step["documents_out"] == sum(step["reasons"].values())
        assert {example["reason"] for example in step["examples"]} <= set(step["reasons"])
    (spam,) = (e for step in steps for e in step["examples"] if e["url"].endswith("spam"))
    assert "honey" in spam["detail"] and "buy honey now" in spam["text"]


def test_the_cut_into_parts_changes_nothing(crawl, result, tmp_path):
    rows, funnel, _ = curated(crawl, tmp_path, work=Work(part_bytes=10_000_000, processes=1, memory_bytes=2000))
    assert rows == result[0]
    assert [step["reasons"] for step in funnel["steps"]] == [step["reasons"] for step in result[1]["steps"]]


def test_lost_damaged_and_half_written_parts_are_made_again_and_no_other(crawl, result, tmp_path, monkeypatch):
    curated(crawl, tmp_path)
    state = tmp_path / "state"
    (state / "text/000000-00001.json").unlink()
    (state / "text/.000000-00001.parquet.tmp").write_bytes(b"half")
    damaged = state / "text/000000-00000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"corrupted")
    (tmp_path / "documents/000000-00000.parquet").unlink()
    made = []
    for name in ("extract_part", "judge_part"):
        task = getattr(pipeline, name)
        monkeypatch.setattr(pipeline, name, lambda job, task=task: (made.append(job["name"]), task(job))[1])
    rows, funnel, _ = curated(crawl, tmp_path)
    assert rows == result[0] and funnel == result[1]
    assert made == ["000000-00000", "000000-00001", "000000-00000"]


def test_a_run_that_fails_anywhere_leaves_nothing_wrong(crawl, result, tmp_path, monkeypatch):
    """The disk is full after a few writes, later after more, until a run ends: the same documents come out."""
    replace, left = os.replace, 0

    def full(aside, path):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(aside, path)

    monkeypatch.setattr(os, "replace", full)
    for tries in range(1, 100):
        left = 4 * tries
        try:
            rows, funnel, _ = curated(crawl, tmp_path)
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC
    assert tries > 3 and rows == result[0] and funnel == result[1]
    assert not list(tmp_path.rglob("*.tmp")) and not list((tmp_path / "state").glob("spill-*"))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(crawl, result, tmp_path):
    """kill -9 at moments spread over the whole run."""
    program = (
        "import sys; from pathlib import Path; from tests.curate.test_pipeline import curated, WORK;"
        "curated(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    out, root = tmp_path / "out", Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(crawl), str(out)]
    for milliseconds in (*range(1000, 2600, 200), 60_000):
        child = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
        try:
            child.wait(milliseconds / 1000)
            break
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    assert child.returncode == 0
    rows = {row["url"]: row for row in pq.read_table(out / "documents").to_pylist()}
    assert rows == result[0] and json.loads((out / "funnel.json").read_text()) == result[1]


def test_languages_are_chosen_and_quality_is_asked_for(crawl, tmp_path):
    rows, _, _ = curated(crawl, tmp_path, rules=Rules(languages=["de"]))
    kept = {url for url, row in rows.items() if row["drop"] is None}
    assert kept == {"http://bees.org/german", "python://3.11/lib/bees/fly.py"}


def test_pages_after_the_cutoff_give_way_to_older_copies_and_blocked_ones_go(crawl, tmp_path):
    rules = Rules(cutoff="2020-12-31", blocked=Blocked(words={"spam": ["spam"]}))
    rows, funnel, _ = curated(crawl, tmp_path, rules)
    assert rows["http://www.bees.org/7?utm_source=x"]["drop"] is None
    assert rows["http://bees.org/7"]["drop"] == "after_cutoff" and rows["http://bees.org/7"]["text"] == ""
    rows, funnel, _ = curated(crawl, tmp_path / "words", Rules(blocked=rules.blocked))
    assert rows["http://bees.org/spam"]["drop"] == "blocked_word_spam"
    (step,) = (step for step in funnel["steps"] if step["name"] == "addresses")
    assert step["reasons"] == {"blocked_word_spam": 1} and step["documents_in"] - 1 == step["documents_out"]


def test_pages_without_a_date_stay_past_the_cutoff_and_are_counted(tmp_path):
    rows = [{"text": prose(i), "url": f"http://a.org/{i}", "date": "" if i % 2 else "2030-01-01"} for i in range(6)]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, figures = curated(tmp_path / "pages.jsonl", tmp_path / "out", Rules(cutoff="2024"))
    assert (figures["documents"], figures["undated"]) == (3, 3)


def test_steps_can_be_switched_off(crawl, tmp_path):
    off = Rules(heuristics=Heuristics(enabled=False), privacy=Privacy(mask=[]), titles=False)
    rows, _, _ = curated(crawl, tmp_path, off, documents=DocumentDedup(enabled=False), lines=LineDedup(enabled=False))
    assert {row["drop"] for row in rows.values()} == {None, "url_older_copy"}
    assert "jane@garden.org" in rows["http://bees.org/mail"]["text"]
    assert rows["http://bees.org/1"]["text"].startswith(prose(1))


def test_steps_are_plain_functions_of_a_part(crawl, result, tmp_path):
    """Without Daft: the same part gives the same documents when its two functions are called by hand."""
    curated(crawl, tmp_path)
    name, state = "000000-00000", str(tmp_path / "state")
    before = pq.read_table(tmp_path / f"documents/{name}.parquet")
    job = {"state": state, "name": name, "lines": True}
    extract_part(job | {"languages": None, "probability": 0.3, "documents": to_dict(DocumentDedup())})
    judge_part(job | {"out": str(tmp_path), "rules": rules_to_json(Rules())})
    assert pq.read_table(tmp_path / f"documents/{name}.parquet").equals(before)


def test_exact_verification_judges_by_the_n_grams_themselves(crawl, result, tmp_path):
    rows, _, _ = curated(crawl, tmp_path, documents=DocumentDedup(verify="exact"))
    assert rows == result[0]
    rows, _, _ = curated(crawl, tmp_path / "strict", documents=DocumentDedup(verify="exact", similarity=1.0))
    assert not any(row["drop"] == "near_duplicate" for row in rows.values())


def test_the_tables_count_every_document_once(result):
    rows, funnel, _ = result
    for table in funnel["tables"].values():
        assert sum(count for row in table.values() for name, count in row.items() if name != "bytes") == len(rows)
    assert funnel["tables"]["domain"]["bees.org"]["near_duplicate"] == 1
    assert funnel["tables"]["language"]["de"]["kept"] == 1


def test_every_document_tells_where_it_was_read(crawl, result):
    row = result[0]["http://bees.org/5"]
    file, _, offset = row["place"].rpartition("#")
    member = zlib.decompressobj(wbits=31).decompress(Path(file).read_bytes()[int(offset) :])
    assert b"WARC-Target-URI: http://bees.org/5\r\n" in member


def test_a_crawl_of_which_nothing_stays_says_why(tmp_path):
    (tmp_path / "a.html").write_bytes(html("Nothing here."))
    with pytest.raises(DataError, match=r"no document was kept.*gopher_word_count \(1\)"):
        curated(tmp_path / "a.html", tmp_path / "out")


def test_one_huge_page_is_dropped_and_the_others_go_on(tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "huge.html").write_bytes(b"<p>" + b"bee " * 12_500_000)
    (pages / "good.html").write_bytes(html(prose(1)))
    rows, _, _ = curated(pages, tmp_path / "out")
    assert {url.rpartition("/")[2]: row["drop"] for url, row in rows.items()} == {
        "huge.html": "page_size",
        "good.html": None,
    }


def test_the_stage_runs_once_and_then_is_skipped(crawl, tmp_path):
    settings = CurateSettings(out=tmp_path / "run", pages=[crawl], work=WORK)
    first = run_stage(settings)
    written = (first / "run.json").read_bytes()
    assert run_stage(settings) == first and (first / "run.json").read_bytes() == written
    assert not (first / "state").exists() and json.loads(written)["figures"]["documents"] == 23


@pytest.mark.parametrize(
    "words", [["documents.bands=0"], ["documents.similarity=2"], ["lines.max_count=0"], ["rules.quality.min_score=-1"]]
)
def test_impossible_settings_are_refused(words):
    from herd.config import load

    with pytest.raises(ConfigError, match=words[0].partition("=")[0].partition(".")[0]):
        load(CurateSettings, None, ["out=x", "pages=[y]", *words])


@pytest.mark.parametrize("words", [["pages=[]"], ["pages=[a]", "rules.quality.max_class_share=0"]])
def test_nothing_to_curate_and_a_share_without_classes_are_refused(words):
    with pytest.raises(ConfigError):
        load(CurateSettings, None, [*words, "out=run"])


def test_a_cutoff_may_be_a_year():
    assert load(CurateSettings, None, ["pages=[a]", "out=run", "rules.cutoff=2023"]).rules.cutoff == "2023"


@pytest.mark.parametrize(
    "rules", [Rules(language_probabilities={"de": 1.0}), Rules(language_probability=1.0, languages=None)]
)
def test_the_probability_of_a_language_is_asked_for_without_a_list_of_languages(crawl, tmp_path, rules):
    rows, _, _ = curated(crawl, tmp_path / "out", rules, Work(processes=1))
    assert rows["http://bees.org/german"]["drop"] == "language"


def test_rows_lists_and_code_that_many_pages_share_survive_while_their_notices_go(tmp_path):
    story = (
        "The bee number {n} of hive {n} flew to the {w} field, and it came back with {w} pollen and a tale of its own."
    )
    words = ["red", "blue", "green", "amber", "violet", "white", "grey", "black", "pink", "brown", "teal", "olive"]
    notice = "<p>All rights are reserved by the keepers of this garden and of its bees.</p>"
    table = "".join(f"<tr><td>Week {n}</td><td>{n * 3} kg of honey</td></tr>" for n in range(12))
    pages = tmp_path / "pages"
    pages.mkdir()
    for number, word in enumerate(words):
        prose = "".join(f"<p>{story.format(n=number * 9 + i, w=word + 'ish' * i)}</p>" for i in range(6))
        code = "<pre>for bee in hive:\n    fly(bee)</pre><ul><li>one spoon of honey</li><li>two of water</li></ul>"
        html = (
            f"<html><body><main><h1>{word} tales</h1>{prose}<table>{table}</table>{code}{notice}</main></body></html>"
        )
        (pages / f"{number:02d}.html").write_text(html)
    out = tmp_path / "out"
    out.mkdir()
    rules = Rules(heuristics=Heuristics(enabled=False))
    curate(find_files([pages]), out, rules, DocumentDedup(enabled=False), LineDedup(), Work(processes=1))
    texts = pq.read_table(out / "documents")["text"].to_pylist()
    for text in texts:
        assert text.count("kg of honey") == 12 and "one spoon" in text and "    fly(bee)" in text
    assert sum("All rights" in text for text in texts) == 1
    step = next(s for s in json.loads((out / "funnel.json").read_text())["steps"] if s["name"] == "line_dedup")
    assert step["notes"]["lines dropped"] == 11 and "All rights" in step["lines"][0]["text"]


def test_personal_data_is_masked_also_in_what_is_dropped_and_in_the_funnel(tmp_path):
    mail = "jane.doe@garden.org"
    triples = zip(WORDS, VERBS * 20, reversed(WORDS), strict=False)
    good = " ".join(f"The {a} {b} the {c}, and that was it." for a, b, c in triples)
    pages = {"short": f"Write to {mail} now.", "kept": good, "copy": f"{mail} writes. " + good}
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(f"<html><title>Mail {mail}</title><body><p>{text}</p></body></html>")
    out = tmp_path / "out"
    rules = Rules(heuristics=Heuristics(skip=["gopher_top_ngram", "gopher_repeated_ngrams"]))
    settings = CurateSettings(
        out=out, pages=[tmp_path / f"{name}.html" for name in pages], rules=rules, work=Work(processes=1)
    )
    run_stage(settings)
    written = [out / "funnel.json", out / "funnel.html"]
    assert all(mail not in file.read_text() for file in written)
    rows = pq.read_table(out / "documents").to_pylist()
    assert len(rows) == 3 and mail not in json.dumps(rows) and "email@example.com" in json.dumps(rows)
    assert any(row["drop"] and row["text"] for row in rows)


def test_a_page_goes_by_its_canonical_address_and_by_no_session_where_the_texts_agree(tmp_path):
    """A print version and a second session of one page go; pages that name a wrong address, or share a title, stay."""
    text = {name: prose(number) for number, name in enumerate(("story", "other", "third", "fourth", "fifth"))}
    story = f'<link href="/story?a=1&amp;b=2" rel="canonical" data-x>{text["story"]}'
    session = "http://bees.org/show?page=4&sid="
    pages = {
        "http://bees.org/story?a=1&b=2": story,
        "http://bees.org/print/17": story + " " + prose(77, 5),
        "http://bees.org/wrong": f"<LINK REL=Canonical HREF='http://bees.org/story?a=1&b=2'>{text['other']}",
        session + "9f86d081884c7d659a2feaa0c55ad015": text["third"] + prose(78, 5),
        session + "60303ae22b998861bce3b28f33eec1be": text["third"],
        session + "fd61a03af4f77d870fc21e05e7e80678": text["fourth"],
        "http://bees.org/2?x=a": f"<!-- canonical --><link rel=next href=http://bees.org/story>{text['fifth']}",
    }
    records = [warc_record(url, "2024-01-01T00:00:00Z", "text/html", html(body)) for url, body in pages.items()]
    (tmp_path / "crawl.warc.gz").write_bytes(b"".join(records))
    rows, _, _ = curated(tmp_path, tmp_path / "out", Rules(heuristics=Heuristics(enabled=False)))
    assert {url: row["drop"] for url, row in rows.items() if row["drop"]} == {
        "http://bees.org/story?a=1&b=2": "near_duplicate",
        session + "60303ae22b998861bce3b28f33eec1be": "near_duplicate",
    }
