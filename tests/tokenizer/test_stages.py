"""`herd tokenizer` and `herd show`: from documents to a vocabulary, from a conversation to coloured tokens."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.config import load
from herd.curate.read.texts import num_rows, read_texts
from herd.data.coloured import colour
from herd.data.split import is_held_out
from herd.errors import ConfigError, DataError
from herd.formats.vocabulary import open_tokenizer
from herd.run import read_manifest
from herd.stages import show
from herd.stages import tokenizer as stage
from herd.tokenizer import Tokenizer
from herd.tokenizer.chat import render
from herd.tokenizer.io import save_tokenizer
from tests.tokenizer.wild import TEXTS


def documents(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("text", "source", "language", "group", "drop")
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    pq.write_table(table, folder / "part-00000.parquet")
    return folder.parent


@pytest.fixture
def curated(tmp_path):
    rows = [
        {"text": TEXTS[n % 4], "source": ["pydoc", "library"][n % 2], "language": "en", "group": f"m{n}"}
        for n in range(24)
    ]
    rows += [{"text": "DROPPED " * 50, "source": "pydoc", "language": "en", "group": "m1", "drop": "boilerplate"}]
    rows += [{"text": None, "source": "pydoc", "group": "m2"}]
    return documents(tmp_path / "curate" / "documents", rows)


def settings(curated, **changes):
    return stage.TokenizerSettings(
        **{"out": curated.parent / "out", "documents": curated, "vocab_size": 800, "holdout": 0.3} | changes
    )


def test_the_stage_writes_a_tokenizer_and_its_compression(curated):
    out = stage.run(settings(curated))
    trained = open_tokenizer(out)
    assert trained.vocab_size == 800
    figures = read_manifest(out)["figures"]
    assert (figures["vocab_size"], figures["largest_undercount"]) == (800, 0)
    assert figures["bytes_per_token"] > 1.5
    rows = json.loads((out / "compression.json").read_text())
    assert {(row["source"], row["held_out"]) for row in rows} == {
        (source, held_out) for source in ("pydoc", "library") for held_out in (False, True)
    }
    assert not (out / "state").exists()


def test_only_kept_and_not_held_out_texts_are_learned(curated):
    trained = open_tokenizer(stage.run(settings(curated)))
    kept = [TEXTS[n % 4] for n in range(24) if not is_held_out(f"m{n}", 0.3)]
    assert 0 < len(kept) < 24
    assert trained.fingerprint == Tokenizer.train(kept, 800).fingerprint


def test_a_second_run_is_skipped(curated):
    out = stage.run(settings(curated))
    written = (out / "tokenizer.model").stat().st_mtime_ns
    assert stage.run(settings(curated)) == out
    assert (out / "tokenizer.model").stat().st_mtime_ns == written


def test_an_interrupted_count_continues_and_ends_the_same(curated, monkeypatch):
    undisturbed = open_tokenizer(stage.run(settings(curated, out=curated.parent / "undisturbed")))
    monkeypatch.setattr(stage, "_SAVE_SECONDS", 0)
    monkeypatch.setattr("herd.tokenizer.pretokens._BATCH_CHARS", 20_000)
    read, fail_at = read_texts, 9

    def failing(path, **options):
        for number, text in enumerate(read(path, **options)):
            if number == fail_at:
                raise KeyboardInterrupt
            yield text

    monkeypatch.setattr(stage, "read_texts", failing)
    with pytest.raises(KeyboardInterrupt):
        stage.run(settings(curated))
    saved = curated.parent / "out" / "state" / "counts.json"
    assert json.loads(saved.read_text())["num_texts"] > 0
    monkeypatch.setattr(stage, "read_texts", read)
    assert open_tokenizer(stage.run(settings(curated))).fingerprint == undisturbed.fingerprint


def test_text_and_jsonl_are_read_as_well(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXTS[1], encoding="utf-8")
    (folder / "b.jsonl").write_text(json.dumps({"text": TEXTS[3]}) + "\n", encoding="utf-8")
    seen = []
    assert [row.text for row in read_texts(folder, seen.append)] == [TEXTS[1], TEXTS[3]]
    assert num_rows(folder) in (None, sum(seen))
    out = stage.run(stage.TokenizerSettings(out=tmp_path / "out", documents=folder, vocab_size=600, holdout=0))
    assert open_tokenizer(out).vocab_size == 600


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"PAR1 nonsense", "a.parquet", "cannot be read as Parquet"),
        (b"<html><body>Hi</body></html>", "a.html", "turn them into documents first"),
        (b"", "a.txt", "no document to train on"),
    ],
)
def test_bad_documents_are_one_clear_message(tmp_path, content, name, message):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        stage.run(stage.TokenizerSettings(out=tmp_path / "out", documents=folder))


def test_missing_empty_and_textless_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        stage.run(stage.TokenizerSettings(out=tmp_path / "out", documents=tmp_path / "nowhere"))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no `text` column, only body"):
        list(read_texts(tmp_path / "x.parquet"))


def test_impossible_settings_are_refused(curated):
    with pytest.raises(ConfigError, match="holdout must be at least 0 and below 1"):
        load(stage.TokenizerSettings, None, [f"out={curated}", f"documents={curated}", "holdout=1"])
    with pytest.raises(ConfigError, match="vocab_size must be at least 512"):
        load(stage.TokenizerSettings, None, [f"out={curated}", f"documents={curated}", "vocab_size=300"])


def test_a_base_is_extended(curated, tokenizer, tmp_path):
    base = save_tokenizer(tokenizer, tmp_path / "base")
    out = stage.run(settings(curated, base=base, vocab_size=1600))
    extended = open_tokenizer(out)
    assert extended.vocab_size == 1600
    assert list(extended.ranks)[: len(tokenizer.ranks)] == list(tokenizer.ranks)
    for row in json.loads((out / "compression.json").read_text()):
        assert row["base_tokens"] >= row["tokens"]
        assert row["base_bytes_per_token"] == round(row["bytes"] / row["base_tokens"], 3)
    with pytest.raises(ConfigError, match="vocab_size 1500 does not extend the base, which has 1500 rows"):
        stage.run(settings(curated, base=base, vocab_size=1500, out=tmp_path / "other"))


# ---- show ------------------------------------------------------------------------------------------------------------


TALK = [{"role": "user", "content": "Hi [b]you[/b]\x1b[31m"}, {"role": "assistant", "content": "Hello 😀"}]


@pytest.fixture
def shown(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    rows = [{"messages": TALK}, {"prompt": "1+1?", "response": "2"}]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": tmp_path / "talk.jsonl", "tokenizer": tmp_path / "tokenizer"}


def test_show_prints_what_is_trained_between_marks(shown, capsys):
    show.run(show.ShowSettings(**shown))
    printed = capsys.readouterr().out
    assert "⟦Hello 😀<|eot_id|>⟧" in printed
    assert "⟦2<|eot_id|>⟧" in printed
    assert "Hi [b]you[/b]␛[31m<|eot_id|>" in printed


def test_show_announces_the_tools_of_a_conversation(shown, capsys):
    tools = [{"type": "function", "function": {"name": "clock"}}, "wolfram_alpha"]
    for told in (tools, json.dumps(tools)):
        shown["path"].write_text(json.dumps({"messages": TALK, "tools": told}) + "\n")
        show.run(show.ShowSettings(**shown))
        printed = capsys.readouterr().out
        assert '"name": "clock"' in printed and "Tools: wolfram_alpha" in printed
    for wrong in ("[", {"a": 1}):
        shown["path"].write_text(json.dumps({"messages": TALK, "tools": wrong}) + "\n")
        with pytest.raises(DataError, match=r"talk\.jsonl.*`tools` is"):
            show.run(show.ShowSettings(**shown))


def test_show_begins_where_it_is_told(shown, capsys):
    show.run(show.ShowSettings(**shown, first=2, number=1))
    printed = capsys.readouterr().out
    assert "Hello" not in printed
    assert "1+1?" in printed
    with pytest.raises(DataError, match="has no conversation 3"):
        show.run(show.ShowSettings(**shown, first=3))


def test_trained_tokens_are_green(tokenizer):
    text = colour(tokenizer, render(tokenizer, TALK))
    green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
    assert green == "Hello 😀<|eot_id|>"
