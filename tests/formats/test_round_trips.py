"""What a publisher wrote beside the weights comes back from a conversion and from training; nothing is invented."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from herd.cli import main
from herd.formats import checkpoint
from herd.formats.checkpoint import open_checkpoint
from herd.formats.convert import convert
from herd.formats.vocabulary import open_tokenizer
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.io import load_tokenizer, save_tokenizer
from herd.tokenizer.sentencepiece import opening
from tests.formats.test_splits import SPLITS, trained
from tests.tokenizer.templates import TEMPLATES
from tests.tokenizer.wild import PIECES, TEXTS

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pretraining_tp": 1,
    "use_cache": True,
    "is_llama_config": True,
    "torch_dtype": "float32",
    "transformers_version": "4.42.3",
}
GENERATION = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": [2, 0], "temperature": 0.2, "top_k": 7}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_prefix_space": False,
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True, "lstrip": False}},
    "bos_token": "<|im_start|>",
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "rstrip": False},
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "model_max_length": 8192,
    "chat_template": TEMPLATES["chatml"],
    "vocab_size": 1200,
    "my_own_key": [1, 2],
}
MAP = {
    "bos_token": {"content": "<|im_start|>", "normalized": False},
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint as a publisher of another house left it."""
    folder = tmp_path_factory.mktemp("published")
    trained(SPLITS["smollm"], folder)
    rows = open_tokenizer(folder).vocab_size
    model = LlamaForCausalLM(ModelConfig.from_dict(CONFIG | {"vocab_size": rows}))
    initialize(model, 0)
    checkpoint.save(model, folder / "aside", dtype=torch.float32)
    shutil.move(folder / "aside" / "model.safetensors", folder / "model.safetensors")
    shutil.rmtree(folder / "aside")
    files = {"config": CONFIG | {"vocab_size": rows}, "generation_config": GENERATION, "tokenizer_config": TOKENIZER}
    for name, values in (files | {"special_tokens_map": MAP}).items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def told(folder):
    names = ("config", "generation_config", "tokenizer_config", "special_tokens_map", "tokenizer")
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def test_every_field_survives_a_conversion(published, tmp_path):
    convert(published, tmp_path / "copy")
    assert told(tmp_path / "copy") == told(published)
    convert(published, tmp_path / "half", precision="bfloat16")
    wanted = told(published)
    wanted["config"]["torch_dtype"] = "bfloat16"
    assert told(tmp_path / "half") == wanted


def test_every_field_survives_a_gguf_file(published, tmp_path):
    convert(published, tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "again")
    wanted, found = told(published), told(tmp_path / "again")
    assert {name: found[name] for name in found if name != "tokenizer"} == {
        name: wanted[name] for name in wanted if name != "tokenizer"
    }
    assert open_tokenizer(tmp_path / "again").encode(TEXTS[0]) == open_tokenizer(published).encode(TEXTS[0])
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(TEXTS[1])["input_ids"] == open_tokenizer(published).encode(
        TEXTS[1]
    )


def test_what_was_not_there_is_not_invented(published, tmp_path):
    bare = shutil.copytree(published, tmp_path / "bare")
    (bare / "generation_config.json").unlink()
    (bare / "special_tokens_map.json").unlink()
    config = {key: value for key, value in TOKENIZER.items() if key in ("tokenizer_class", "eos_token")}
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    convert(bare, tmp_path / "copy")
    assert {file.name for file in (tmp_path / "copy").iterdir()} == {file.name for file in bare.iterdir()}
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text()) == config
    convert(bare, tmp_path / "model.gguf")
    found = open_checkpoint(tmp_path / "model.gguf")
    assert found.chat_template is None and found.tokenizer.chat_template is None and not found.tokenizer.add_bos
    convert(tmp_path / "model.gguf", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text()) == config
    assert not (tmp_path / "again" / "generation_config.json").exists()


def test_training_gives_back_what_it_began_with(published, tmp_path):
    talk = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello there!"}]}
    (tmp_path / "talks.jsonl").write_text("\n".join([json.dumps(talk)] * 4))
    words = ["sft", f"checkpoint={published}", f"conversations=[{tmp_path}/talks.jsonl]", f"out={tmp_path}/run"]
    assert main([*words, "epochs=1", "batch.row_tokens=128", "batch.micro_tokens=128"]) == 0
    wanted, found = told(published), told(tmp_path / "run" / "checkpoint")
    ends = found["config"].pop("eos_token_id")
    assert ends == [2] and found["generation_config"].pop("eos_token_id") in ([2], [2, 0])
    wanted["config"].pop("eos_token_id"), wanted["generation_config"].pop("eos_token_id")
    found["config"].pop("torch_dtype"), wanted["config"].pop("torch_dtype")
    assert found == wanted


@pytest.mark.parametrize(
    "place", ["tokenizer_config", "special_tokens_map", "config", "generation_config", "vocabulary"]
)
def test_begin_and_end_are_taken_from_wherever_they_are_named(published, tmp_path, place):
    folder = shutil.copytree(published, tmp_path / "model")
    for name in ("tokenizer_config", "special_tokens_map", "config", "generation_config"):
        (folder / f"{name}.json").unlink()
    names, ids = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, {"bos_token_id": 1, "eos_token_id": [2, 0]}
    if place == "vocabulary":
        data = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": opening("<|im_start|>", 1)}
        (folder / "tokenizer.json").write_text(json.dumps(data))
        found = load_tokenizer(folder)
        assert (found.bos, found.eos, found.add_bos) == ("<|im_start|>", None, True)
        return
    told = ids if place in ("config", "generation_config") else names
    (folder / f"{place}.json").write_text(json.dumps(told))
    found = load_tokenizer(folder)
    assert (found.bos, found.eos, found.add_bos) == ("<|im_start|>", "<|im_end|>", False)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_alone_gives_sentencepieces_ids(tmp_path, kind):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type=kind,
        vocab_size=700 if kind == "bpe" else 500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.add_bos, ours.chat_template) == (1, 2, True, None)
    for text in [*TEXTS, *PIECES, "it </s> is", " one", "  two", " ", "a\n b"]:
        if "\x00" not in text:
            assert ours.encode(text) == theirs.encode(text), text
    again = load_tokenizer(save_tokenizer(ours, tmp_path / "again"))
    assert again.encode(TEXTS[0], bos=True) == ours.encode(TEXTS[0], bos=True) == [1, *theirs.encode(TEXTS[0])]
