"""GGUF's fields: what llama.cpp reads gives the same ids."""

import json
import urllib.request

import gguf
import numpy as np
import pytest
from hypothesis import given, settings

from herd.errors import DataError
from herd.formats.gguf_vocabulary import gguf_fields
from herd.formats.vocabulary import open_tokenizer
from herd.tokenizer.io import save_tokenizer
from tests.tokenizer.wild import TEXTS, WILD_TEXT

HIDDEN = 32


def write_model(path, fields):
    """A GGUF file of these tokenizer fields and a Llama of one layer, all zeros."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in fields.items():
        kinds = {list: writer.add_array, bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        kinds[type(value)](key, value)
    rows = len(fields["tokenizer.ggml.tokens"])
    shapes = {"token_embd": (rows, HIDDEN), "output_norm": (HIDDEN,)}
    shapes |= {f"blk.0.{name}_norm": (HIDDEN,) for name in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (HIDDEN, HIDDEN) for name in ("gate", "up", "down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaCpp:
    """llama.cpp's own tokenizer, asked through its server."""

    def __init__(self, path):
        xllamacpp = pytest.importorskip("xllamacpp")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = 64, 1, False
        self.server = xllamacpp.Server(parameters)

    def encode(self, text, **options):
        body = json.dumps({"content": text, "add_special": False, "parse_special": False} | options).encode()
        request = urllib.request.Request(self.server.listening_address + "/tokenize", body)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]


@pytest.fixture(scope="module")
def llama_cpp(tokenizer, tmp_path_factory):
    return LlamaCpp(write_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf_fields(tokenizer)))


@given(WILD_TEXT)
@settings(max_examples=200, deadline=None)
def test_llama_cpp_gives_the_same_ids(tokenizer, llama_cpp, text):
    assert llama_cpp.encode(text) == tokenizer.encode(text)
    assert llama_cpp.encode(text, parse_special=True) == tokenizer.encode(text, allow_special=True)


@pytest.mark.slow
def test_llama_cpp_gives_the_same_ids_on_ten_thousand_wild_strings(tokenizer, llama_cpp):
    @given(WILD_TEXT)
    @settings(max_examples=10_000, deadline=None)
    def check(text):
        assert llama_cpp.encode(text) == tokenizer.encode(text)

    check()


def test_llama_cpp_gives_llama3s_golden_ids(llama, tmp_path):
    reader = LlamaCpp(write_model(tmp_path / "llama3.gguf", gguf_fields(llama)))
    text = "This is a test sentence."
    assert reader.encode(text, add_special=True) == [128000, 2028, 374, 264, 1296, 11914, 13]
    for text in TEXTS:
        assert reader.encode(text) == llama.encode(text)


def test_llama_cpp_gives_the_same_ids_for_a_sentencepiece_style_vocabulary(sentencepiece_style, tmp_path):
    loaded = open_tokenizer(sentencepiece_style)
    fields = gguf_fields(loaded)
    reader = LlamaCpp(write_model(tmp_path / "llama2.gguf", fields))
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.unknown_token_id"]) == ("llama", 0)
    assert fields["tokenizer.ggml.token_type"][:4] == [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, 6]
    for text in TEXTS:
        assert reader.encode(text) == loaded.encode(text)


def test_the_fields_name_every_row_its_kind_and_the_special_ids(tokenizer):
    fields = gguf_fields(tokenizer)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == tokenizer.vocab_size == len(set(tokens))
    assert [tokens[i] for i in tokenizer.special.values()] == list(tokenizer.special)
    assert all((kind == gguf.TokenType.CONTROL) == (i in tokenizer.special.values()) for i, kind in enumerate(types))
    for name, token_id in (
        *(("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("eot", tokenizer.eot_id)),
        *(("eom", tokenizer.eom_id), ("padding", tokenizer.pad_id)),
    ):
        assert fields[f"tokenizer.ggml.{name}_token_id"] == token_id
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template


def test_rows_that_only_the_model_has_are_marked_unused(tokenizer):
    fields = gguf_fields(tokenizer, num_rows=tokenizer.vocab_size + 2)
    assert fields["tokenizer.ggml.tokens"][-2:] == [f"[PAD{tokenizer.vocab_size + i}]" for i in range(2)]
    assert fields["tokenizer.ggml.token_type"][-3:] == [gguf.TokenType.CONTROL, *[gguf.TokenType.UNUSED] * 2]
    with pytest.raises(DataError, match="the model's embedding only 10"):
        gguf_fields(tokenizer, num_rows=10)


def test_a_way_of_splitting_that_gguf_cannot_name_is_refused(tokenizer, tmp_path):
    data = json.loads((save_tokenizer(tokenizer, tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\s+|."
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="GGUF has no name"):
        gguf_fields(open_tokenizer(tmp_path))


def test_a_vocabulary_comes_back_from_the_fields_with_the_same_ids(tokenizer, tmp_path):
    write_model(tmp_path / "vocabulary.gguf", gguf_fields(tokenizer))
    again = open_tokenizer(tmp_path / "vocabulary.gguf")
    assert again.fingerprint == tokenizer.fingerprint and again.chat_template == tokenizer.chat_template
    assert (again.bos, again.eos) == (tokenizer.bos, tokenizer.eos)


def test_a_sentencepiece_style_vocabulary_comes_back_with_the_same_ids(sentencepiece_style, tmp_path):
    tokenizer = open_tokenizer(sentencepiece_style)
    write_model(tmp_path / "vocabulary.gguf", gguf_fields(tokenizer))
    again = open_tokenizer(tmp_path / "vocabulary.gguf")
    for text in ("some words", " opens with spaces", "ünïcödé and \U0001f600", "line\nline", "aaaa bbbb  c"):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
