import json

import numpy as np
import pytest

from herd.data.shards import ShardWriter, in_memory, open_shards
from herd.errors import CheckpointError, DataError

DOCUMENTS = [[1, 5, 6, 2], [1, 2], [1, 7, 7, 7, 7, 2]]


def write(folder, source="library", number=0, tokenizer="t"):
    writer = ShardWriter(folder, source, number, tokenizer=tokenizer)
    for index, document in enumerate(DOCUMENTS):
        writer.add(document, num_bytes=10 * index, quality=index / 2)
    return writer.close()


def test_what_is_written_is_read_back_over_several_shards(tmp_path):
    assert write(tmp_path) == {"documents": 3, "tokens": 12, "bytes": 30}
    write(tmp_path, number=1)
    write(tmp_path, source="pydoc-2")
    sources = open_shards(tmp_path)
    assert set(sources) == {"library", "pydoc-2"}
    library = sources["library"]
    assert [library.tokens(i).tolist() for i in range(6)] == DOCUMENTS * 2
    assert library.num_bytes.tolist() == [0, 10, 20] * 2
    assert library.tokens(5, start=1, length=3).tolist() == [7, 7, 7]


def test_tokens_stay_on_disk_until_they_are_read(tmp_path):
    write(tmp_path)
    assert isinstance(open_shards(tmp_path)["library"].storage[0], np.memmap)


def test_only_the_better_documents_are_kept_above_a_percentile(tmp_path):
    write(tmp_path)
    library = open_shards(tmp_path)["library"]
    assert library.better_than(50).quality.tolist() == [0.5, 1.0]
    assert len(library.better_than(0)) == 3


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match="herd pack"):
        open_shards(tmp_path)


def test_a_truncated_shard_is_refused_by_name(tmp_path):
    write(tmp_path)
    file = tmp_path / "library-00000.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"library-00000\.npy"):
        open_shards(tmp_path)


def test_a_shard_that_contradicts_its_manifest_is_refused(tmp_path):
    write(tmp_path)
    np.save(tmp_path / "library-00000.npy", np.zeros(5, np.uint32))
    with pytest.raises(DataError, match="manifest says 12"):
        open_shards(tmp_path)


def test_a_manifest_that_is_not_one_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "library-00000.json").write_text("{}")
    with pytest.raises(DataError, match="not a shard manifest"):
        open_shards(tmp_path)


@pytest.mark.parametrize("ends", [[4, 6, 10**9], [6, 4, 12], [-1, 6, 12], [4, 6, 11]])
def test_a_manifest_whose_documents_do_not_lie_in_its_tokens_is_refused(tmp_path, ends):
    write(tmp_path)
    file = tmp_path / "library-00000.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"document_ends": ends}))
    with pytest.raises(DataError, match="document_ends do not ascend"):
        open_shards(tmp_path)


def test_a_manifest_of_another_format_is_refused(tmp_path):
    write(tmp_path)
    file = tmp_path / "library-00000.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        open_shards(tmp_path)


def test_shards_of_two_tokenizers_are_refused(tmp_path):
    write(tmp_path)
    write(tmp_path, number=1, tokenizer="other")
    with pytest.raises(CheckpointError, match="tokenizers"):
        open_shards(tmp_path)


def test_documents_in_memory_carry_their_mask():
    documents = in_memory("chat", [[1, 2, 3], [4, 5]], trained=[[False, True, True], [False, True]])
    assert documents.is_trained(1).tolist() == [False, True]
    assert documents.tokens(0, 1, 2).tolist() == [2, 3]
