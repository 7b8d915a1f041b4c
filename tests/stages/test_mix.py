"""Mixing sources, packing the mix, and finding the way back from a token."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.config import load
from herd.curate.mix import copies, epochs
from herd.data.shards import open_shards
from herd.errors import ConfigError, DataError
from herd.formats.vocabulary import open_tokenizer
from herd.stages import mix, pack, trace
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer
from tests.train.test_stages import SCHEMA, document


@pytest.fixture
def sources(tmp_path):
    """Two hundred general documents and twenty of code."""
    save_tokenizer(Tokenizer({bytes([byte]): byte for byte in range(256)}), tmp_path / "tokenizer")
    found = {}
    for name, count in (("general", 200), ("code", 20)):
        folder = found[name] = tmp_path / name / "documents"
        folder.mkdir(parents=True)
        rows = [
            document(n, id=f"{name}{n}", url=f"http://{name}.org/{n}", place=f"crawl.warc.gz#{n}") for n in range(count)
        ]
        rows.append(document(count, id="gone", drop="too short"))
        pq.write_table(pa.Table.from_pylist(rows[::2], schema=SCHEMA), folder / "0.parquet")
        pq.write_table(pa.Table.from_pylist(rows[1::2], schema=SCHEMA), folder / "1.parquet")
    return found


def mixed(tmp_path, sources, *words):
    named = ", ".join(f"{name}: {folder}" for name, folder in sources.items())
    settings = [f"sources={{{named}}}", "weights={general: 75, code: 25}", f"out={tmp_path / 'mix'}", *words]
    return mix.run(load(mix.MixSettings, None, settings))


def test_the_mix_has_the_weights_and_repeats_the_scarce_source(tmp_path, sources):
    out = mixed(tmp_path, sources, "max_epochs=3")
    figures = json.loads((out / "mix.json").read_text())
    assert figures["code"]["epochs"] == 3 and figures["code"]["documents"] == 60
    assert figures["general"]["share"] == pytest.approx(0.75, abs=0.05) and figures["general"]["epochs"] < 1
    rows = pq.read_table(out / "documents").to_pylist()
    assert {row["source"] for row in rows} == {"general", "code"} and all(row["drop"] is None for row in rows)


def test_a_larger_mix_contains_a_smaller_one_whatever_the_cut():
    ids = [f"d{i}" for i in range(3000)]
    few, many = copies(ids, 0.3, seed=1), copies(ids, 1.6, seed=1)
    assert (many >= few).all() and few.mean() == pytest.approx(0.3, abs=0.03)
    assert many.mean() == pytest.approx(1.6, abs=0.03) and set(many) == {1, 2}
    assert np.array_equal(np.concatenate([copies(ids[:7], 0.3, 1), copies(ids[7:], 0.3, 1)]), few)
    assert not np.array_equal(copies(ids, 0.3, seed=2), few)


def test_a_source_that_cannot_fill_its_share_is_capped():
    found = epochs({"web": 1000, "code": 10}, {"web": 50, "code": 50}, total=1000, most=4)
    assert found == {"web": 0.5, "code": 4.0}


@pytest.mark.parametrize(
    ("available", "weights"), [({"a": 1}, {"b": 1}), ({"a": 1}, {"a": 0}), ({"a": 0, "b": 1}, {"a": 1, "b": 1})]
)
def test_a_mix_that_cannot_be_is_refused(available, weights):
    with pytest.raises(ConfigError):
        epochs(available, weights)


def test_every_token_leads_back_to_its_page(tmp_path, sources):
    out = mixed(tmp_path, sources)
    (out / "funnel.json").write_text(json.dumps({"steps": [{"name": "read", "documents_out": 3}]}))
    words = [f"documents={out / 'documents'}", f"tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'pack'}"]
    packed = pack.run(load(pack.PackSettings, None, [*words, "holdout=0.3"]))
    tokenizer = open_tokenizer(tmp_path / "tokenizer")
    for side in ("train", "heldout"):
        for manifest in sorted((packed / side).glob("*.json")):
            shard, ends = manifest.with_suffix(".npy"), json.loads(manifest.read_text())["document_ends"]
            tokens = np.load(shard)
            for number in {0, len(ends) // 2, len(ends) - 1}:
                found = trace.trace(shard, token=ends[number] - 1)
                begin = ends[number - 1] if number else 0
                assert tokenizer.decode(tokens[begin : ends[number]].tolist(), skip_special=True) == found["text"]
                assert found == trace.trace(shard, document=number) and found["passed"] == ["read"]
                assert found["url"].startswith(f"http://{found['source']}.org/") and "crawl.warc.gz#" in found["place"]
    assert open_shards(packed / "train").keys() == {"general", "code"}
    with pytest.raises(DataError, match="no such position"):
        trace.trace(shard, document=10_000)
    with pytest.raises(DataError, match="no token shard"):
        trace.trace(tmp_path / "nothing-00000.npy", document=0)
    with pytest.raises(DataError, match="does not match"):
        trace.trace(shard, document=len(ends) - 1, documents=sources["code"].parent / "documents" / "1.parquet")


@pytest.mark.parametrize(
    "words",
    [
        ("sources={../out: a}", "weights={../out: 1}"),
        ("sources={}", "weights={}"),
        ("sources={a: a}", "weights={a: nan}"),
        ("sources={a: a}", "weights={a: 1}", "max_epochs=nan"),
    ],
)
def test_names_that_leave_the_folder_and_weights_that_are_no_numbers_are_refused(words):
    with pytest.raises(ConfigError):
        load(mix.MixSettings, None, [*words, "out=mix"])


def test_several_folders_of_documents_are_packed_and_learned_from_in_one_way(tmp_path, sources):
    folders = list(sources.values())
    packed = load(
        pack.PackSettings,
        None,
        [
            f"documents=[{folders[0]},{folders[1]}]",
            f"tokenizer={tmp_path}/tokenizer",
            f"out={tmp_path}/both",
            "holdout=0",
        ],
    )
    pack.run(packed)
    index = json.loads((tmp_path / "both/index.json").read_text())
    assert sum(row["documents"] for row in index["train"].values()) == 220
    shards = sorted((tmp_path / "both/train").glob("*.npy"))
    urls = {trace.trace(shard, document=0)["url"] for shard in shards}
    assert any("general" in url for url in urls) and any("code" in url for url in urls)


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="`general` is empty"):
        load(mix.MixSettings, None, ['sources={general: ""}', "weights={general: 1}", f"out={tmp_path}/x"])


def test_a_value_beyond_all_measure_is_left_out_of_a_mix_and_told(tmp_path, sources, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    rows = [document(900, id="large", text="x" * 65_000_000), document(901, id="small")]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sources["code"] / "2.parquet")
    out = mixed(tmp_path, sources, "max_epochs=3")
    ids = pq.read_table(out / "documents", columns=["id"])["id"].to_pylist()
    assert "large" not in ids and "code1" in ids
    assert "2.parquet: 1 rows left out" in capsys.readouterr().err
