"""An index of n-grams on disk: exact against counting, and the shares of a text that stand in a corpus."""

from collections import Counter

import numpy as np
import pytest

from herd import cli
from herd.data.ngrams import NgramIndex, build_index
from herd.data.shards import ShardWriter, open_shards
from herd.errors import DataError
from herd.run import read_manifest
from tests.post.models import save_model, small_tokenizer


@pytest.fixture
def shards(tmp_path):
    writer = ShardWriter(tmp_path / "pack" / "train", "books", 0, tokenizer=small_tokenizer().fingerprint)
    generator = np.random.default_rng(0)
    for _ in range(30):
        writer.add(generator.integers(0, 3, size=60).tolist(), num_bytes=60)
    writer.close()
    return tmp_path / "pack"


def test_every_ngram_is_counted_as_often_as_it_stands_in_a_document(shards, tmp_path):
    documents = open_shards(shards / "train")["books"]
    told = build_index([documents], tmp_path / "index", 5, documents.tokenizer)
    index = NgramIndex(tmp_path / "index")
    expected = Counter()
    for document in range(len(documents)):
        tokens = documents.tokens(document).tolist()
        expected.update(tuple(tokens[place : place + 5]) for place in range(len(tokens) - 4))
    assert told["num_distinct"] == len(expected)
    assert told["num_tokens"] == 1800
    for ngram, count in expected.items():
        assert index.counts(list(ngram)).tolist() == [count]
    assert index.counts([7, 7, 7, 7, 7]).tolist() == [0]
    assert len(index.counts([1, 2])) == 0


def test_the_overlap_is_the_share_of_tokens_in_a_found_ngram(tmp_path, shards):
    documents = open_shards(shards / "train")["books"]
    build_index([documents], tmp_path / "index", 8, documents.tokenizer)
    index = NgramIndex(tmp_path / "index")
    inside = documents.tokens(3)[10:20].tolist()
    assert index.overlap(inside) == 1.0
    assert index.overlap([*[9] * 10, *inside]) == 0.5
    assert index.overlap([9] * 20) == 0.0
    assert index.overlap([]) == 0.0


def test_the_command_states_bytes_a_token_and_queries_a_second(shards, tmp_path):
    save_model(tmp_path / "model")
    words = [f"path={shards}", f"tokenizer={tmp_path / 'model'}", f"out={tmp_path / 'index'}"]
    assert cli.main(["ngrams", *words]) == 0
    figures = read_manifest(tmp_path / "index")["figures"]
    assert 0 < figures["bytes_per_token"] <= 12
    assert figures["queries_per_second"] > 0
    (tmp_path / "index" / "counts.u32").write_bytes(b"")
    with pytest.raises(DataError, match="u32 has 0 bytes"):
        NgramIndex(tmp_path / "index")
