"""A small tokenizer of our own, and Llama 3's where the shared data lies beside the checkout."""

import json

import pytest
import tokenizers

from herd.tokenizer import Tokenizer
from tests.tokenizer.wild import TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 1500)


@pytest.fixture(scope="session")
def llama(shared_data) -> Tokenizer:
    return Tokenizer.load(shared_data / "llama3" / "tokenizer.model")


@pytest.fixture(scope="session")
def sentencepiece_style(tmp_path_factory):
    """A vocabulary as Llama 1 and 2 have it: pieces with a space mark, bytes as a last resort."""
    model = tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    built = tokenizers.Tokenizer(model)
    prepend, replace = tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")
    built.normalizer = tokenizers.normalizers.Sequence([prepend, replace])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    built.train_from_iterator([line for text in TEXTS[:2] for line in text.splitlines()], trainer)
    data = json.loads(built.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    folder = tmp_path_factory.mktemp("llama2")
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder
