"""Verbatim rates, spans with their documents, who holds a URL, and planted secrets that masking keeps out."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from herd.config import load
from herd.curate.privacy.personal import mask_pii
from herd.data.ngrams import NgramIndex, build_index, whole
from herd.data.shards import open_shards
from herd.errors import DataError
from herd.safety.memory import Corpus, exposure, matches, tainted, verbatim
from herd.stages import forget, pack
from herd.stages.memory import spans
from herd.tokenizer.io import save_tokenizer
from tests.infer.models import small_tokenizer, tiny_model

TEXTS = [f"Page {number} of the book tells about {thing} and nothing else at all, whatever one may ask of it." * 2
         for number, thing in enumerate(["cats", "dogs", "rivers", "stars", "bread", "wool"])]  # fmt: skip
TEXTS.append(f"As somebody wrote: {TEXTS[2]} So it was.")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    (root / "curate" / "documents").mkdir(parents=True)
    for place, some in enumerate((range(4), range(4, 7))):
        rows = [
            {"id": str(number), "url": f"https://a.org/{number}", "title": "", "text": TEXTS[number], "source": "web"}
            | {"group": f"g{number}", "quality": 1.0, "drop": "short" if number == 1 else None}
            for number in some
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / "curate" / "documents" / f"{place:06}.parquet")
    save_tokenizer(small_tokenizer(), root / "tokenizer")
    words = [f"documents={root / 'curate'}", f"tokenizer={root / 'tokenizer'}", f"out={root / 'pack'}", "holdout=0"]
    pack.run(load(pack.PackSettings, None, words))
    return root


def test_stretches_of_a_text_are_found_with_the_document_that_holds_them(packed, capsys):
    settings = spans.SpansSettings(
        path=packed / "pack", text=f"I say: {TEXTS[4][:60]} and no more", tokenizer=packed / "tokenizer", json=True
    )
    spans.run(settings)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["url"] == "https://a.org/4" and "Page 4 of the book tells about bread" in found["text"]
    corpus = Corpus(packed / "pack")
    text = small_tokenizer().encode("nothing of this stands anywhere there")
    assert matches(text, corpus) == []
    with pytest.raises(DataError, match="no run folder of `herd pack`"):
        Corpus(packed / "curate")


def test_going_on_verbatim_is_counted_with_its_interval(packed, tmp_path):
    corpus = Corpus(packed / "pack")
    sources = open_shards(packed / "pack" / "train")
    build_index(whole(sources), tmp_path / "index", 10, small_tokenizer().fingerprint)
    index = NgramIndex(tmp_path / "index")
    stored = np.concatenate([np.asarray(tokens) for _, tokens, _ in corpus.shards()]).tolist()

    def parrot(prompts, count):
        starts = [next(at for at in range(len(stored)) if stored[at : at + len(one)] == one) for one in prompts]
        return [stored[at + len(one) : at + len(one) + count] for at, one in zip(starts, prompts, strict=True)]

    knows = verbatim(parrot, corpus, index, count=40)
    assert knows["verbatim"] > 0.6 and knows["included"] == 1 and 0 < knows["verbatim_by_prevalence"] <= 1
    nothing = verbatim(lambda prompts, count: [[1] * count for _ in prompts], corpus, index, count=40)
    assert nothing["verbatim"] == nothing["included"] == 0 and 0 < nothing["verbatim_high"] < 0.15
    build_index(whole(sources), tmp_path / "long", 5000, small_tokenizer().fingerprint)
    with pytest.raises(DataError, match="no training document has 10000 tokens"):
        verbatim(parrot, corpus, NgramIndex(tmp_path / "long"), count=1)


def test_a_url_is_forgotten_and_who_holds_it_is_told(packed, tmp_path, capsys):
    for name, stage, paths in (
        ("pretrain", "pretrain", [str(packed / "pack")]),
        ("sft", "sft", ["pretrain/checkpoint"]),
        ("other", "pretrain", ["elsewhere/pack-of-mine"]),
    ):
        run = packed / name
        (run / "checkpoint").mkdir(parents=True, exist_ok=True)
        (run / "checkpoint" / "config.json").write_text("{}")
        (run / "checkpoint" / "model.safetensors").write_text("")
        (run / "run.json").write_text(json.dumps({"format": 1, "stage": stage, "state": "finished"}))
        (run / "inputs.json").write_text(json.dumps({"shards": {"path": paths, "sha256": name}}))
    assert {folder.name for folder, _ in tainted(packed, Corpus(packed / "pack"))} == {"pretrain", "sft"}
    forget.run(forget.ForgetSettings(path="https://a.org/2", pack=packed / "pack", out=tmp_path / "out"))
    told = capsys.readouterr().out
    assert "train/web-00000.npy, document 1: https://a.org/2" in told and "pretrain/checkpoint" in told
    record = json.loads((tmp_path / "out" / "forgotten.json").read_text())
    assert record["quoted_by"][0]["shard"] == "train/web-00001.npy" and record["quoted_by"][0]["document"] == 2
    left = [
        row for file in sorted((tmp_path / "out" / "documents").iterdir()) for row in pq.read_table(file).to_pylist()
    ]
    assert [row["id"] for row in left] == ["0", "1", "3", "4", "5", "6"]
    words = [f"documents={tmp_path / 'out'}", f"tokenizer={packed / 'tokenizer'}", f"out={tmp_path / 'pack'}"]
    again = pack.run(load(pack.PackSettings, None, [*words, "holdout=0"]))
    assert "https://a.org/2" not in [held.row["url"] for held in Corpus(again).rows()]
    with pytest.raises(DataError, match="no URL is it"):
        forget.run(forget.ForgetSettings(path="https://a.org/", pack=packed / "pack"))


def test_planted_secrets_are_found_in_what_was_learned_and_not_where_they_were_masked():
    secret, form = "jo.rasmussen81@posteo.de", "Write to {} if you want the keys."
    others = [f"jo.rasmussen{number}@posteo.de" for number in range(20, 52)]
    masked, counts = mask_pii(form.format(secret))
    assert counts and secret not in masked
    assert exposure(losses(learned(form.format(secret))), form.format(secret), [form.format(o) for o in others]) > 5
    assert exposure(losses(learned(masked)), form.format(secret), [form.format(other) for other in others]) < 4


def learned(text):
    """A tiny model that has seen a text many times."""
    model = tiny_model().train()
    tokens = torch.tensor([small_tokenizer().encode(text)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:]).backward()
        optimizer.step()
    return model.eval()


def losses(model):
    def of(texts):
        found = []
        for text in texts:
            tokens = torch.tensor([small_tokenizer().encode(text)])
            with torch.no_grad():
                found.append(float(torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:])))
        return found

    return of
