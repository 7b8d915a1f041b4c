"""Adapters begin at the base, learn, resume, merge and load in PEFT; 4-bit weights are QLoRA's."""

import json

import pytest
import torch

from herd.errors import CheckpointError, ConfigError
from herd.formats.checkpoint import load, save
from herd.model.reward import as_reward_model
from herd.ops.nf4 import CODE, dequantize, nf4_linear, quantize
from herd.parallel.settings import ParallelSettings
from herd.run import read_metrics
from herd.train.hooks import Hook
from herd.train.lora import LoraSettings, add_adapters, load_adapters, merged_model, save_adapters, save_merged
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.placement import place
from herd.train.saving import SavingSettings, finish
from herd.train.trainer import Trainer
from tests.train.tiny import run_folder, tiny_loader, tiny_model

TOKENS = torch.arange(3, 35)[None]


def adapted(base="as_is", **options):
    model = tiny_model()
    add_adapters(model, LoraSettings(rank=4, base=base, **options))
    return model


def train_tiny(path, model, **options):
    with run_folder(path) as run:
        optimizer = OptimizerSettings(learning_rate=3e-2)
        Trainer(model, next_token, run, optimizer=optimizer, **options).fit(tiny_loader(), 30)


def test_adapters_begin_as_the_base_and_only_they_are_learned(tmp_path):
    model, base = adapted(), tiny_model()
    assert torch.equal(model(TOKENS), base(TOKENS))
    train_tiny(tmp_path, model)
    rows = read_metrics(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert torch.equal(model.model.embed_tokens.weight, base.model.embed_tokens.weight)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < learned < 0.5 * sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize("base", ["as_is", "nf4"])
def test_merged_adapters_are_a_plain_checkpoint_that_does_the_same(tmp_path, base):
    model = adapted(base)
    train_tiny(tmp_path / "run", model)
    with torch.no_grad():
        before = model(TOKENS)
    save_merged(model, tmp_path / "merged")
    torch.testing.assert_close(load(tmp_path / "merged")(TOKENS), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", ["as_is", "nf4"])
def test_biases_stay_beside_the_adapters(tmp_path, base):
    model = tiny_model(attention_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(TOKENS)
        add_adapters(model, LoraSettings(rank=4, base=base))
        found = model(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4 if base == "as_is" else 5e-3)
    save_merged(model, tmp_path)
    torch.testing.assert_close(load(tmp_path)(TOKENS), found, atol=1e-4, rtol=1e-4)


def test_a_resumed_run_with_adapters_is_the_one_that_never_stopped(tmp_path):
    train_tiny(tmp_path / "whole", adapted("nf4"))

    def interrupt(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "torn", adapted("nf4"), hooks=[Hook(interrupt, lambda step, num_steps: step == 13)])
    train_tiny(tmp_path / "torn", adapted("nf4"))
    found = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("whole", "torn")]
    assert found[0] == found[1]


def test_peft_loads_our_adapters_and_we_load_pefts(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = adapted(targets=["q_proj", "down_proj"])
    train_tiny(tmp_path / "run", model)
    save(tiny_model(), tmp_path / "base")
    save_adapters(model, tmp_path / "adapters", base=str(tmp_path / "base"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS), atol=1e-4, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "peft")
    again = tiny_model()
    assert load_adapters(again, tmp_path / "peft").rank == 4
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_learned_whole_beside_adapters_and_peft_reads_both(tmp_path, tied):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = tiny_model(tie_word_embeddings=tied)
    save(model, tmp_path / "base")
    add_adapters(model, LoraSettings(rank=4, dropout=0.5, modules_to_save=["embed_tokens", "lm_head"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
        expected = model.eval()(TOKENS)
        assert not torch.equal(model.train()(TOKENS), expected)  # some of the adapters' inputs are left out
    save_adapters(model, tmp_path / "adapters", base=str(tmp_path / "base"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters").eval()
    load_adapters(again := tiny_model(tie_word_embeddings=tied), tmp_path / "adapters")
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(TOKENS), expected)
        torch.testing.assert_close(merged_model(model)(TOKENS), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(theirs(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)


def test_adapters_of_another_model_and_no_adapters_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="not an adapter folder in PEFT's format"):
        load_adapters(tiny_model(), tmp_path)
    save_adapters(adapted(), tmp_path / "adapters")
    with pytest.raises(CheckpointError, match=r"layers.0.*has shape \(4, 32\); this model needs \(4, 48\)"):
        load_adapters(tiny_model(hidden_size=48), tmp_path / "adapters")


@pytest.mark.parametrize(
    "more", [{"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"q_proj": 8}}, {"bias": "lora_only"},
             {"modules_to_save": ["norm"]}],
)  # fmt: skip
def test_adapters_that_change_more_than_is_read_are_refused(tmp_path, more):
    config = save_adapters(adapted(), tmp_path / "adapters") / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    with pytest.raises(CheckpointError, match=f"{next(iter(more))} is not supported"):
        load_adapters(tiny_model(), tmp_path / "adapters")


def test_the_score_head_of_a_reward_model_goes_with_its_adapters(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    save(base := as_reward_model(tiny_model(), 0), tmp_path / "base")
    add_adapters(base, LoraSettings(rank=4))
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
        expected = base(TOKENS)[:, -1]
    save_adapters(base, tmp_path / "adapters", base=str(tmp_path / "base"))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters").eval()
    again = as_reward_model(tiny_model(), 1)
    load_adapters(again, tmp_path / "adapters")
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS)[:, -1], expected)
        torch.testing.assert_close(theirs(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)


def test_four_bit_weights_are_the_nearest_codes_of_their_block():
    torch.manual_seed(0)
    weight = torch.randn(33, 50)
    packed = quantize(weight)
    assert packed.packed.dtype == torch.uint8 and len(packed.packed) == 26 * 32  # 1650 weights in 26 blocks of 64
    back = dequantize(*packed, torch.float32)
    scales = packed.scales.repeat_interleave(64)[:1650].view(33, 50)
    codes = torch.tensor(CODE)
    nearest = codes[((weight / scales)[..., None] - codes).abs().argmin(-1)] * scales
    assert torch.equal(back, nearest)
    assert (back - weight).norm() / weight.norm() < 0.1
    x = torch.randn(4, 50, requires_grad=True)
    got = nf4_linear(x, packed)
    torch.testing.assert_close(got, x @ back.T)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], back.sum(0).expand(4, -1))


def test_a_checkpoint_of_four_bits_takes_what_it_should():
    packed = quantize(torch.randn(256, 256))
    assert packed.packed.nbytes + packed.scales.nbytes == 256 * 256 * 4.5 / 8


def test_peft_config_names_what_it_must(tmp_path):
    config = json.loads((save_adapters(adapted(), tmp_path / "a") / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4 and config["lora_alpha"] == 16.0


def test_sft_with_adapters_over_four_bits_ends_with_a_merged_checkpoint_and_the_adapters_apart(tmp_path):
    model = tiny_model()
    options = OptimizerSettings(learning_rate=3e-2, lora=LoraSettings(rank=2, base="nf4"))
    with run_folder(tmp_path / "run") as run:
        saving = SavingSettings(snapshot_steps=5)
        Trainer(model, next_token, run, optimizer=options, saving=saving).fit(tiny_loader(), 10)
        finish(model, run)
    assert isinstance(load(tmp_path / "run").model.layers[0].self_attn.q_proj, torch.nn.Linear)
    assert (tmp_path / "run/adapter/adapter_config.json").exists()
    assert (tmp_path / "run/checkpoints/step-00000005/adapter_model.safetensors").exists()


def test_adapters_wider_than_the_model_are_refused_before_they_are_made():
    wide = OptimizerSettings(lora=LoraSettings(rank=100_000))
    with pytest.raises(ConfigError, match="more than hidden_size"):
        place(tiny_model().config, ParallelSettings(), wide, torch.device("cpu"), row_tokens=32)
