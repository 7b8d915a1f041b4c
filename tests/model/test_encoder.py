"""The encoder gives the vectors of `transformers`, and heads learn on them."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers.implementations import BertWordPieceTokenizer

from herd.errors import CheckpointError, DataError
from herd.formats.encoder import load_head, open_encoder, save_head
from herd.model.encoder import train_head

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "road", "fast", "slow", "blue", "##s", ".", ",", "!"]
TEXTS = ["The cat sat on the mat.", "a dog", "", "Dogs ran fast, fast, fast! " * 12, "blue roads"]


def folder_of(kind: str, place: Path) -> Path:
    """A small encoder as `transformers` writes it."""
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 48, "max_position_embeddings": 40, "initializer_range": 0.3}
    torch.manual_seed(0)
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(**shape))
    else:
        model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**shape, type_vocab_size=1))
    model.save_pretrained(place)
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertWordPieceTokenizer(str(place / "vocab.txt")).save(str(place / "tokenizer.json"))
    return place


def their_vectors(folder: Path, encoder, texts: list[str]) -> torch.Tensor:
    """Mean of the hidden states of `transformers`, text by text, of length 1."""
    model, vectors = transformers.AutoModel.from_pretrained(folder).eval(), []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([encoder.tokenizer.encode(text).ids])
            vectors.append(model(ids).last_hidden_state[0].mean(0))
    return torch.nn.functional.normalize(torch.stack(vectors), dim=1)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_vectors_are_those_of_transformers_whatever_shares_a_batch(kind, tmp_path):
    folder = folder_of(kind, tmp_path)
    encoder = open_encoder(folder)
    torch.testing.assert_close(encoder.embed(TEXTS), their_vectors(folder, encoder, TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.embed(TEXTS, batch_tokens=1), encoder.embed(TEXTS), atol=1e-5, rtol=0)


def test_texts_that_are_cut_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    open_encoder(folder_of("bert", tmp_path)).embed(TEXTS)
    assert "1 of 5 texts are truncated to their first 40 tokens" in capsys.readouterr().err


def test_a_vocabulary_alone_is_enough_and_the_folders_own_pooling_counts(tmp_path):
    folder = folder_of("bert", tmp_path)
    whole = open_encoder(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "modules.json").write_text(json.dumps([{"type": "x.Transformer"}, {"type": "x.Pooling"}]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    encoder = open_encoder(folder)
    assert (encoder.max_tokens, encoder.pooling, encoder.normalize) == (8, "cls", False)
    ids = torch.tensor([whole.tokenizer.encode("a dog").ids])
    first = whole.model(ids, torch.ones_like(ids, dtype=torch.bool))[0, 0]
    torch.testing.assert_close(encoder.embed(["a dog"])[0], first, atol=1e-5, rtol=0)


def test_what_would_be_computed_otherwise_is_refused_by_name(tmp_path):
    folder = folder_of("bert", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for change, complaint in [
        ({"model_type": "deberta-v2"}, "model_type is 'deberta-v2'"),
        ({"hidden_act": "swish"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_size": 36}, "tensor embeddings"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=complaint):
            open_encoder(folder)
    with pytest.raises(CheckpointError, match="neither a folder nor an installed package"):
        open_encoder("no-such-encoder")


def test_an_installed_package_is_found_by_its_name(tmp_path, monkeypatch):
    folder_of("bert", tmp_path / "small_encoder" / "model")
    about = tmp_path / "small_encoder-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: small-encoder\nVersion: 1.0\n")
    (about / "RECORD").write_text("small_encoder/model/config.json,,\nsmall_encoder/model/vocab.txt,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_encoder("small-encoder").size == 32


def test_a_head_learns_classes_and_is_read_back_with_its_own_encoder_only(tmp_path):
    encoder = open_encoder(folder_of("bert", tmp_path / "encoder"))
    texts = [f"{animal} {rest}" for rest in ("sat", "ran fast", "on the mat .", "slow") for animal in ("cat", "dog")]
    classifier = train_head(encoder, texts, [text.split()[0] for text in texts])
    found = classifier.probabilities(["cat on the road", "dog on the road"])
    assert classifier.labels == ["cat", "dog"]
    assert found.argmax(1).tolist() == [0, 1]
    save_head(classifier, tmp_path / "head", source="a test")
    again = load_head(tmp_path / "head", encoder)
    torch.testing.assert_close(again.probabilities(texts), classifier.probabilities(texts))
    with pytest.raises(CheckpointError, match="another encoder"):
        load_head(tmp_path / "head", open_encoder(folder_of("roberta", tmp_path / "other")))
    with pytest.raises(DataError, match="two classes"):
        train_head(encoder, texts, ["cat"] * len(texts))


def test_minilm_gives_the_vectors_of_transformers_and_knows_what_is_alike():
    place = Path(os.environ.get("HERD_BASE_MODEL") or Path(__file__).resolve().parents[3] / "base-model")
    folder = place / "all-MiniLM-L6-v2"
    if not folder.is_dir():
        pytest.skip("the encoder is not here: make base-model")
    encoder = open_encoder(folder)
    texts = ["A cat sits on the mat.", "A kitten is resting on a rug.", "Interest rates rose again.", "日本語 " * 300]
    vectors = encoder.embed(texts)
    torch.testing.assert_close(vectors, their_vectors(folder, encoder, texts), atol=1e-5, rtol=0)
    near = vectors @ vectors.T
    assert near[0, 1] > 0.5 > 0.2 > near[0, 2]
    assert encoder.max_tokens == 256
