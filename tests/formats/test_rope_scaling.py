"""Every scaling of the rotary frequencies: as `transformers` computes it from a folder, llama.cpp from a GGUF file."""

import json
import urllib.request
from dataclasses import replace

import gguf
import pytest
import torch
import transformers

import herd
from herd.errors import ConfigError
from herd.formats import checkpoint
from herd.formats.checkpoint import open_checkpoint
from herd.formats.convert import convert
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.tokenizer import Tokenizer

PLAIN = ModelConfig(
    vocab_size=600,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rope_theta=10_000.0,
)
SHORT, LONG = [1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0]
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear, old key": {"type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, old key": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "finetuned": True},
    "yarn, all settings": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 0.8,
        "beta_fast": 16.0, "beta_slow": 2.0,
    },
    "yarn, DeepSeek's": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn, not truncated": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False,
    },
    "longrope": {
        "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 64,
    },
    "longrope, own attention": {
        "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 64,
        "attention_factor": 1.3,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def build(config=PLAIN) -> LlamaForCausalLM:
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder without scaling, whose config.json the tests change."""
    place = tmp_path_factory.mktemp("plain")
    tokenizer = Tokenizer.train(["some text about some words"], 600)
    model = build(replace(PLAIN, vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos_id))
    checkpoint.save(model, place / "model", tokenizer)
    return place / "model"


def scaled(plain, folder, key: str, scaling: dict):
    """The same weights under another scaling, as transformers 4 or 5 writes it."""
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((plain / "config.json").read_text())
    if key == "rope_parameters":
        scaling = scaling | {"rope_theta": values.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(values | {key: scaling}))
    return folder


def tokens_of(length: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", SCALINGS)
@torch.no_grad()
def test_logits_equal_those_of_transformers_within_and_beyond_the_original_context(name, key, plain, tmp_path):
    folder = scaled(plain, tmp_path / "model", key, SCALINGS[name])
    ours = checkpoint.load(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    unscaled = checkpoint.load(plain)
    for length in (20, 64, 65, 128, 129, 400):
        tokens = tokens_of(length)
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=2e-4, rtol=0)
    assert (ours(tokens) - unscaled(tokens)).abs().max() > 0.1
    again = ModelConfig.from_dict(json.loads(json.dumps(ours.config.to_dict())))
    assert again == ours.config


@torch.no_grad()
def test_texts_packed_into_one_row_are_each_scaled_by_their_own_length(plain, tmp_path):
    model = checkpoint.load(scaled(plain, tmp_path / "model", "rope_scaling", SCALINGS["dynamic"]))
    parts = [tokens_of(length) for length in (150, 40, 300)]
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    from_row = herd.model.rope.rotary_table(model.config, positions, torch.float32)
    alone = [herd.model.rope.rotary_table(model.config, torch.arange(n)[None], torch.float32) for n in (150, 40, 300)]
    for index in (0, 1):
        assert torch.equal(from_row[index], torch.cat([tables[index] for tables in alone], 1))


@pytest.mark.parametrize("name", ["yarn", "dynamic", "longrope", "linear"])
def test_the_engine_answers_as_the_model_does_where_the_length_changes_nothing(name, plain, tmp_path):
    folder = scaled(plain, tmp_path / "model", "rope_scaling", SCALINGS[name])
    model = checkpoint.load(folder)
    engine = herd.Engine(folder, dtype=torch.float32, cache_bytes=10_000_000)
    prompt = tokens_of(100)[0].tolist()  # beyond the original context of those that have one, within the model's
    answer = engine.generate([prompt], herd.SamplingParams(temperature=0.0, max_tokens=8))[0]
    row = torch.tensor([prompt + list(answer.tokens)])
    with torch.no_grad():
        assert model(row)[0, 99:-1].argmax(-1).tolist() == list(answer.tokens)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def llama_cpps_log_probs(path, prompts: list[list[int]], context: int, size: int) -> torch.Tensor:
    """llama.cpp's log-probabilities after each prompt, (N, V)."""
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = context, 1, False
    parameters.cpuparams.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds
    server = xllamacpp.Server(parameters)
    rows = []
    for prompt in prompts:
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0.0, "n_probs": size, "cache_prompt": False}
        body |= {"logit_bias": [[65, 1000.0]]}  # of half a letter it would give no probabilities
        request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            found = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
        row = torch.full((size,), -torch.inf)
        row[[entry["id"] for entry in found]] = torch.tensor([entry["logprob"] for entry in found])
        rows.append(row)
    return torch.stack(rows)


@torch.no_grad()
def assert_llama_cpp_agrees(file, context: int, lengths=(20, 60, 120)) -> None:
    model = open_checkpoint(file).load(dtype=torch.float32)
    prompts = [tokens_of(length)[0].tolist() for length in lengths]
    theirs = llama_cpps_log_probs(file, prompts, context, model.config.vocab_size)
    fixed = herd.model.rope.fixed_rope(model.config, context)
    model.model.config = fixed
    for prompt, row in zip(prompts, theirs, strict=True):
        ours = model(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        torch.testing.assert_close(ours, row, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "dynamic"])
def test_llama_cpp_computes_the_same_from_the_files_that_are_written(name, plain, tmp_path):
    folder = scaled(plain, tmp_path / "model", "rope_scaling", SCALINGS[name])
    convert(folder, tmp_path / "model.gguf", precision="float32")
    assert open_checkpoint(tmp_path / "model.gguf").config.rope_scaling == open_checkpoint(folder).config.rope_scaling
    assert_llama_cpp_agrees(tmp_path / "model.gguf", 256)
    (tmp_path / "foreign.gguf").write_bytes(
        (tmp_path / "model.gguf").read_bytes().replace(b"herd.rope_scaling", b"some.other_fields", 1)
    )
    assert_llama_cpp_agrees(tmp_path / "foreign.gguf", 256, lengths=(60,))


def rewritten(source, target, fields: dict, tables: dict | None = None):
    """A GGUF file with other fields, written by the `gguf` package as another tool would."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name.startswith("herd."):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for key, value in fields.items():
        kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.FLOAT32
        writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if isinstance(value, int) else kind)
    for name, table in (tables or {}).items():
        writer.add_tensor(name, torch.tensor(table, dtype=torch.float32).numpy())
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


SCALED = "llama.rope.scaling."
FOREIGN = {
    "a factor without a type": ({SCALED + "factor": 3.0}, {}),
    "the old key": ({"llama.rope.scale_linear": 2.0}, {}),
    "a factor under the type none": ({SCALED + "type": "none", SCALED + "factor": 3.0}, {}),
    "attention alone": ({SCALED + "attn_factor": 1.2}, {}),
    "linear and attention": ({SCALED + "type": "linear", SCALED + "factor": 2.0, SCALED + "attn_factor": 0.9}, {}),
    "yarn": ({SCALED + "type": "yarn", SCALED + "factor": 4.0, SCALED + "original_context_length": 32}, {}),
    "yarn without an original context": ({SCALED + "type": "yarn", SCALED + "factor": 4.0}, {}),
    "yarn and what llama.cpp passes over": (
        {
            SCALED + "type": "yarn", SCALED + "factor": 4.0, SCALED + "yarn_log_multiplier": 0.7,
            SCALED + "yarn_beta_fast": 16.0, SCALED + "yarn_attn_factor": 2.0,
        },
        {},
    ),
    "unusual divisors": ({}, {"rope_freqs.weight": [1.0, 1.0, 2.0, 2.0, 5.0, 6.0, 7.0, 9.0]}),
    "divisors and a factor": ({SCALED + "factor": 2.0}, {"rope_freqs.weight": SHORT}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_tools_mean_here_what_llama_cpp_makes_of_them(name, plain, tmp_path):
    convert(plain, tmp_path / "plain.gguf", precision="float32")
    assert_llama_cpp_agrees(rewritten(tmp_path / "plain.gguf", tmp_path / "foreign.gguf", *FOREIGN[name]), 256)


@pytest.mark.parametrize("context", [256, 512])
def test_longrope_takes_its_divisors_by_the_context_as_llama_cpp_does(context, plain, tmp_path):
    convert(plain, tmp_path / "plain.gguf", precision="float32")
    fields = {SCALED + "type": "longrope", SCALED + "original_context_length": 256, SCALED + "attn_factor": 1.1}
    tables = {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG}
    file = rewritten(tmp_path / "plain.gguf", tmp_path / "foreign.gguf", fields, tables)
    assert_llama_cpp_agrees(file, context, lengths=(20, 100))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({SCALED + "type": "ntk"}, "RoPE scaling of the type 'ntk'; supported are linear, yarn"),
        ({SCALED + "wavelength": 2.0}, "llama.rope.scaling.wavelength changes RoPE in an unknown way"),
        ({SCALED + "factor": -2.0}, "scaling.factor is -2.0, expected a positive number"),
        ({SCALED + "type": 3}, "RoPE scaling of the type 3"),
    ],
)
def test_a_scaling_that_is_not_known_is_refused_in_gguf_too(fields, message, plain, tmp_path):
    convert(plain, tmp_path / "plain.gguf", precision="float32")
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(rewritten(tmp_path / "plain.gguf", tmp_path / "foreign.gguf", fields)).config  # noqa: B018


def test_dynamic_scaling_survives_a_gguf_file_though_llama_cpp_has_no_word_for_it(plain, tmp_path):
    folder = scaled(plain, tmp_path / "model", "rope_scaling", SCALINGS["dynamic"])
    convert(folder, tmp_path / "model.gguf", precision="float32")
    assert open_checkpoint(tmp_path / "model.gguf").config.rope_scaling == open_checkpoint(folder).config.rope_scaling
    assert_llama_cpp_agrees(tmp_path / "model.gguf", 128, lengths=(20, 100))
