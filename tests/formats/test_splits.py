"""Every way in which llama.cpp cuts text: the same ids there, in `tokenizers` and here, from a folder and from GGUF."""

import json
import os
import random
import subprocess
import sys

import pytest
import tokenizers

from herd.errors import DataError
from herd.formats.gguf_vocabulary import gguf_fields
from herd.formats.vocabulary import open_tokenizer
from herd.tokenizer.splits import SPLITS, find_split, pre_tokenizer
from tests.formats.test_gguf_vocabulary import write_model
from tests.tokenizer.wild import PIECES, TEXTS

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
STRINGS = [
    *TEXTS,
    "".join(PIECES),
    " ".join(PIECES),
    "1234567 and 12 \u0663\u0664\u0665",
    "x  \n y\t\tz \n\n",
    "a<|im_end|>b",
]

ALIKE = random.Random(0)
STRINGS += ["".join(ALIKE.choices(PIECES, k=ALIKE.randint(1, 12))) for _ in range(150)]
ASK = """
import json, sys
from tests.formats.test_gguf_vocabulary import LlamaCpp
reader = LlamaCpp(sys.argv[1])
found = [[reader.encode(text, parse_special=parsed) for parsed in (False, True)] for text in json.load(sys.stdin)]
print("ids", json.dumps(found), flush=True)
"""


def llama_cpps_ids(file):
    """llama.cpp's ids of all strings, as plain text and with special strings read; in a process of its own."""
    pytest.importorskip("xllamacpp")
    command = [sys.executable, "-c", f"{ASK}\nimport os\nos._exit(0)", str(file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        command, input=json.dumps(STRINGS), capture_output=True, text=True, env=environment, timeout=120
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ids ")).removeprefix("ids "))


def trained(split, folder):
    """A folder with a vocabulary that was learned on text cut in this way; its special tokens come first."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=split.whole_first))
    steps = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(one), "isolated") for one in split.patterns]
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*steps, to_bytes])
    built.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator([line for text in TEXTS for line in text.splitlines(keepends=True)], trainer)
    folder.mkdir(exist_ok=True)
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return built


@pytest.mark.parametrize("name", SPLITS)
def test_ids_equal_those_of_llama_cpp_and_of_tokenizers(name, tmp_path):
    library = trained(SPLITS[name], tmp_path / "folder")
    ours = open_tokenizer(tmp_path / "folder")
    assert not ours.add_bos and ours.encode("x", bos=True) == ours.encode("x")
    fields = gguf_fields(ours)
    assert fields["tokenizer.ggml.pre"] == name
    file = write_model(tmp_path / "vocabulary.gguf", fields)
    again = open_tokenizer(file)
    for text, (plain, parsed) in zip(STRINGS, llama_cpps_ids(file), strict=True):
        ids = ours.encode(text, allow_special=True)
        assert library.encode(text).ids == ids == again.encode(text, allow_special=True)
        assert again.encode(text) == ours.encode(text)
        if llama_cpp_agrees(name, text):
            assert (plain, parsed) == (ours.encode(text), ids), text
        assert ours.decode(ours.encode(text)) == text


def llama_cpp_agrees(name, text):
    """Its own pattern for two ways cuts marks and capitals of other scripts; U+3000 is no punctuation to it."""
    return (name not in ("tekken", "gpt-4o") or text.isascii()) and (
        not name.startswith("deepseek") or "\u3000" not in text
    )


def test_a_way_that_only_looks_different_has_the_same_name(tmp_path):
    trained(SPLITS["smollm"], tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, to_bytes]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert gguf_fields(open_tokenizer(tmp_path))["tokenizer.ggml.pre"] == "smollm"


def test_a_file_without_a_name_is_read_as_llama_cpp_reads_it_and_an_unknown_name_is_refused(tmp_path):
    trained(SPLITS["default"], tmp_path)
    fields = gguf_fields(open_tokenizer(tmp_path))
    del fields["tokenizer.ggml.pre"]
    file = write_model(tmp_path / "nameless.gguf", fields)
    found = open_tokenizer(file)
    assert [found.encode(text) for text in STRINGS] == [plain for plain, _ in llama_cpps_ids(file)]
    write_model(tmp_path / "unknown.gguf", fields | {"tokenizer.ggml.pre": "none-such"})
    with pytest.raises(DataError, match="'none-such', which is not supported; supported are llama-bpe, smollm"):
        open_tokenizer(tmp_path / "unknown.gguf")
    assert find_split("starcoder") == SPLITS["smollm"] and pre_tokenizer(SPLITS["gpt-2"])["type"] == "Sequence"


def test_the_base_models_vocabulary_is_the_same_from_its_file_and_its_folder(base_model):
    file, folder = open_tokenizer(base_model.file), open_tokenizer(base_model.folder)
    assert file.fingerprint == folder.fingerprint
    assert (folder.bos, folder.eos, folder.add_bos, folder.stop_ids) == ("<|im_start|>", "<|im_end|>", False, (2,))
    library = tokenizers.Tokenizer.from_file(str(base_model.folder / "tokenizer.json"))
    for text, (plain, parsed) in zip(STRINGS, llama_cpps_ids(base_model.file), strict=True):
        assert parsed == library.encode(text).ids and plain == folder.encode(text)
        assert library.encode(text).ids == folder.encode(text, bos=True, allow_special=True)
