"""Tokenizer files: what is saved can be read by Herd, tiktoken, `tokenizers` and `transformers`, with equal ids."""

import base64
import functools
import gzip
import json
import os
import shutil
from itertools import islice

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from tiktoken.load import load_tiktoken_bpe
from transformers import AutoTokenizer

from herd.errors import DataError
from herd.tokenizer.io import load_tokenizer, save_tokenizer
from herd.tokenizer.specials import SPLIT_PATTERN
from tests.tokenizer.wild import TEXTS, WILD_TEXT


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    return save_tokenizer(tokenizer, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def fast(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def llama_fast(llama, tmp_path_factory):
    return tokenizers.Tokenizer.from_file(
        str(save_tokenizer(llama, tmp_path_factory.mktemp("llama")) / "tokenizer.json")
    )


@given(WILD_TEXT)
@settings(max_examples=500, deadline=None)
def test_ids_equal_those_of_the_tokenizers_library(tokenizer, fast, text):
    assert fast.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, allow_special=True)
    assert fast.encode(text).ids == tokenizer.encode(text, bos=True, allow_special=True)


@given(WILD_TEXT)
@settings(max_examples=500, deadline=None)
def test_llama3_ids_equal_those_of_the_tokenizers_library(llama, llama_fast, text):
    assert llama_fast.encode(text, add_special_tokens=False).ids == llama.encode(text, allow_special=True)


@pytest.mark.slow
def test_ids_are_equal_on_ten_thousand_wild_strings(llama, llama_fast, tokenizer, fast):
    @given(WILD_TEXT)
    @settings(max_examples=10_000, deadline=None)
    def check(text):
        assert llama_fast.encode(text, add_special_tokens=False).ids == llama.encode(text, allow_special=True)
        assert fast.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, allow_special=True)

    check()


def test_llama3_ids_equal_on_texts_in_eight_languages(llama, llama_fast, shared_data):
    with gzip.open(shared_data / "text-udhr" / "udhr.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            ids = llama.encode(row["text"])
            assert llama_fast.encode(row["text"], add_special_tokens=False).ids == ids, row["lang"]
            assert llama.decode(ids) == row["text"]


@pytest.mark.parametrize(
    "name",
    ["text-flores/dev", "text-docs-multilingual/docs", "text-math/latex", "text-thaigov/docs", "text-ud-web/sentences"],
)
def test_llama3_ids_equal_on_the_text_sets(llama, llama_fast, shared_data, name):
    with gzip.open(shared_data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in islice(file, 0, 8000, 40)]
    fast = llama_fast.encode_batch_fast(texts, add_special_tokens=False)
    assert [encoding.ids for encoding in fast] == llama.encode_batch(texts)


@pytest.mark.parametrize("name", ["", "tokenizer.json", "tokenizer.model"])
def test_every_saved_form_loads_as_the_same_tokenizer(tokenizer, folder, name):
    loaded = load_tokenizer(folder / name)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.eos_id, loaded.chat_template) == (tokenizer.eos_id, tokenizer.chat_template)


def test_ranks_are_what_tiktoken_reads(tokenizer, folder):
    ranks = load_tiktoken_bpe(str(folder / "tokenizer.model"))
    encoding = tiktoken.Encoding("x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        assert encoding.encode_ordinary(text) == tokenizer.encode(text)


def test_transformers_loads_the_folder(tokenizer, folder):
    loaded = AutoTokenizer.from_pretrained(folder)
    text = "def f(x):\n    return x  # 12345\n\nÇa va?"
    assert loaded(text)["input_ids"] == tokenizer.encode(text, bos=True)
    assert loaded.decode(tokenizer.encode(text)) == text
    assert len(loaded) == tokenizer.vocab_size
    ids = (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id)
    assert ids == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert loaded.decode(tokenizer.encode(text, bos=True), skip_special_tokens=True) == text


def test_what_transformers_saves_is_read_back(tokenizer, folder, tmp_path):
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.chat_template == tokenizer.chat_template


def test_saving_leaves_other_files_of_a_checkpoint_alone(tokenizer, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_tokenizer(tokenizer, tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }


def test_a_checkpoint_keeps_its_own_template_and_end_token(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"chat_template": "Today Date: {{ date }}", "eos_token": {"content": "<|eot_id|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos == "<|eot_id|>"
    assert loaded.eos_id == tokenizer.eos_id
    assert loaded.chat_style == "hf"
    again = load_tokenizer(save_tokenizer(loaded, tmp_path / "again"))
    assert (again.eos, again.chat_template) == (loaded.eos, loaded.chat_template)


def test_a_run_folder_and_metas_layout_are_found(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "run" / "checkpoint")
    assert load_tokenizer(tmp_path / "run").fingerprint == tokenizer.fingerprint
    save_tokenizer(tokenizer, tmp_path / "demo" / "dpo" / "checkpoint")
    write(tmp_path / "demo" / "run.json", {"format": 1, "checkpoint": "dpo/checkpoint"})
    assert load_tokenizer(tmp_path / "demo").fingerprint == tokenizer.fingerprint
    save_tokenizer(tokenizer, tmp_path / "hub" / "original")
    assert load_tokenizer(tmp_path / "hub").fingerprint == tokenizer.fingerprint


# ---- vocabularies of other makers ------------------------------------------------------------------------------------


@given(WILD_TEXT)
@settings(max_examples=200, deadline=None)
def test_a_sentencepiece_style_vocabulary_round_trips(sentencepiece_style, text):
    loaded = load_once(sentencepiece_style)
    library = tokenizers.Tokenizer.from_file(str(sentencepiece_style / "tokenizer.json"))
    assert loaded.encode(text, allow_special=True) == library.encode(text).ids
    assert loaded.decode(loaded.encode(text)) == text


@functools.cache
def load_once(folder):
    return load_tokenizer(folder)


def test_a_sentencepiece_style_vocabulary_has_no_chat_format(sentencepiece_style, tmp_path):
    loaded = load_tokenizer(sentencepiece_style)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.stop_ids) == (1, 2, 2, (2,))
    assert not set(loaded.encode("</s> stays text")) & {0, 1, 2}
    with pytest.raises(DataError, match="chat format cannot be used"):
        _ = loaded.eot_id
    assert load_tokenizer(save_tokenizer(loaded, tmp_path)).fingerprint == loaded.fingerprint


@pytest.mark.parametrize("pre_tokenizer", ["llama3", "gpt2"])
def test_byte_level_vocabularies_of_other_makers_keep_their_own_merges(tmp_path, tokenizer, pre_tokenizer):
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    if pre_tokenizer == "gpt2":
        built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated")
        to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    built.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(TEXTS, trainer)
    built.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    for text in [*TEXTS, "x<|end_of_text|>y", "a\ud800"]:
        if "\ud800" not in text:
            assert loaded.encode(text, allow_special=True) == built.encode(text).ids
        assert loaded.decode(loaded.encode(text)) == text.replace("\ud800", "\ufffd")


# ---- bad input -------------------------------------------------------------------------------------------------------


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def changed(folder, **model):
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"] |= model
    return data


def test_a_missing_file_is_one_clear_message(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "256 of the 256 single bytes"),
        (b"\x80\x81binary\x00", "line 1 is"),
        (b"IQ== 0\nIg== one\n", "line 2 is 'Ig== one'"),
        (b"IQ== 0\nI! 1\n", "line 2"),
        (b"{", "damaged"),
        (b"{}", "damaged"),
        (b'{"model": null}', "damaged"),
        (b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "SentencePiece"),
    ],
)
def test_a_damaged_file_is_one_clear_message(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        load_tokenizer(write(tmp_path / "tokenizer.model", content))


def test_missing_or_double_ranks_are_refused(tokenizer, tmp_path):
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in tokenizer.ranks.items()]
    without = write(tmp_path / "without.model", b"".join(lines[:300] + lines[301:]))
    with pytest.raises(DataError, match="are not 0 to 1242: lines are missing or repeated"):
        load_tokenizer(without)
    with pytest.raises(DataError, match="lines are missing or repeated"):
        load_tokenizer(write(tmp_path / "double.model", b"".join([*lines, b"YWJjZGVm 5\n"])))


def test_a_truncated_tokenizer_json_is_refused(folder, tmp_path):
    whole = (folder / "tokenizer.json").read_bytes()
    with pytest.raises(DataError, match=r"tokenizer\.json: damaged"):
        load_tokenizer(write(tmp_path / "tokenizer.json", whole[: len(whole) // 2]))


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_other_model_types_are_named(folder, tmp_path, kind):
    with pytest.raises(DataError, match=f"its model type is {kind}. Herd reads BPE"):
        load_tokenizer(write(tmp_path / "tokenizer.json", changed(folder, type=kind)))


def test_shapes_that_are_wrong_are_named_with_their_place(folder, tmp_path):
    for wrong, place in (
        ({"vocab": []}, "model.vocab"),
        ({"vocab": {"a": "b"}}, "model.vocab.a"),
        ({"merges": 3}, "model.merges"),
    ):
        with pytest.raises(DataError, match=f"made for something else: {place}"):
            load_tokenizer(write(tmp_path / "tokenizer.json", changed(folder, **wrong)))


def test_a_vocabulary_that_is_not_of_bytes_is_refused(folder, tmp_path):
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    with pytest.raises(DataError, match="neither byte-level"):
        load_tokenizer(write(tmp_path / "tokenizer.json", changed(folder, vocab=vocab | {"漢": len(vocab)})))


def test_a_vocabulary_of_whole_words_without_bytes_is_refused(folder, tmp_path):
    data = changed(folder)
    data["decoder"] = {"type": "WordPiece"}
    with pytest.raises(DataError, match="neither byte-level nor falls back to bytes"):
        load_tokenizer(write(tmp_path / "tokenizer.json", data))


def test_a_pattern_that_does_not_compile_is_refused(folder, tmp_path):
    data = changed(folder)
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(["
    with pytest.raises(DataError, match="the vocabulary cannot be used"):
        load_tokenizer(write(tmp_path / "tokenizer.json", data))


def test_special_tokens_that_collide_with_rows_are_refused(folder, tmp_path):
    data = changed(folder)
    data["added_tokens"][3]["id"] = 7
    with pytest.raises(DataError, match="special"):
        load_tokenizer(write(tmp_path / "tokenizer.json", data))


def test_a_file_that_cannot_be_read_is_named(folder, tmp_path):
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        copy = shutil.copytree(folder, tmp_path / name)
        (copy / name).unlink(missing_ok=True)
        (copy / name).mkdir()
        with pytest.raises(DataError, match=f"{name} is not a regular file"):
            load_tokenizer(copy)


def test_a_damaged_configuration_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t")
    for broken in (b"{", b"[]", b"\xff\xfe"):
        write(tmp_path / "t" / "tokenizer_config.json", broken)
        with pytest.raises(DataError, match=r"tokenizer_config.json: "):
            load_tokenizer(tmp_path / "t")
    write(tmp_path / "t" / "tokenizer_config.json", {"eos_token": "<nope>"})
    with pytest.raises(DataError, match="<nope>"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize("pattern", ["(x+x+)+y", "(a+)+$", r"(?=(\w+)+$)\w", r"\w*\w*\w*!"])
@pytest.mark.parametrize("place", ["normalizer", "pre_tokenizer"])
def test_a_pattern_that_backtracks_without_end_is_refused_in_one_sentence(folder, tmp_path, place, pattern):
    data, endless = changed(folder), {"Regex": pattern}
    if place == "normalizer":
        data["normalizer"] = {"type": "Replace", "pattern": endless, "content": ""}
    else:
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = endless
    with pytest.raises(DataError, match=r"a pattern in tokenizer.json backtracks too long"):
        load_tokenizer(write(tmp_path / "tokenizer.json", data))


def test_a_pattern_that_gives_up_on_a_long_text_only_is_one_sentence(folder, tmp_path):
    data = changed(folder)
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "((?:ab)+(?:ab)+)+c"}
    tokenizer = load_tokenizer(write(tmp_path / "tokenizer.json", data))
    with pytest.raises(DataError, match="gives up on a text of 20,002 characters"):
        tokenizer.encode("ab" * 10_000 + " c")


_MORE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
_DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [_MORE] * 5}}, "at most 300 steps"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 3_000_000}}, "at most 300 steps"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [_DIGITS] * 100_000}}, "at most 300 steps"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a|" * 100_000}}}, "at most 300 steps"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": "x"}}, "damaged"),
        ({"normalizer": {"type": "Sequence", "normalizers": [7]}}, "damaged"),
        ({"decoder": {"type": "Sequence", "decoders": 5}}, "damaged"),
        ({"post_processor": {"type": "TemplateProcessing", "single": 5}}, "damaged"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {}}]}}, "damaged"),
    ],
    ids=range(9),
)
def test_steps_that_make_much_of_little_are_refused(folder, tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        load_tokenizer(write(tmp_path / "tokenizer.json", changed(folder) | changes))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pipe_or_a_device_among_the_files_is_not_waited_for(folder, tmp_path, name):
    for number, make in enumerate((os.mkfifo, lambda place: place.symlink_to("/dev/zero"))):
        copy = shutil.copytree(folder, tmp_path / str(number))
        (copy / name).unlink(missing_ok=True)
        make(copy / name)
        with pytest.raises(DataError, match=f"{name} is not a regular file"):
            load_tokenizer(copy)
