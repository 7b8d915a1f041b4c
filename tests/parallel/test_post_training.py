"""`torchrun -m herd sft|reward|dpo`: the run of one process, on copies and shards, killed and resumed too."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from herd.formats.checkpoint import load, save
from herd.run import read_manifest, read_metrics
from herd.tokenizer.tokenizer import Tokenizer
from tests.parallel.torchrun import SECONDS, end, kill_all, kill_one, launch, wait_for_steps
from tests.train.tiny import tiny_model

WORDS = ["the", "bees", "fly", "from", "the", "hive", "to", "the", "lime", "trees", "and", "carry", "pollen", "home"]
COMMON = (
    "batch.tokens=768 batch.row_tokens=256 batch.micro_tokens=256 optimizer.learning_rate=3e-3 saving.save_seconds=0.2 "
    "schedule.shape=constant"
)
"""Three rows a step: two processes have unequal shares, of padding too."""


def text(number: int, length: int) -> str:
    return " ".join(WORDS[(number * 7 + i * (1 + number % 3)) % len(WORDS)] for i in range(length))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    save(tiny_model(vocab_size=tokenizer.vocab_size), folder / "base", tokenizer)
    messages = [
        [{"role": "user", "content": text(n, 4)}, {"role": "assistant", "content": text(n, 2 + n % 3)}]
        for n in range(41)
    ]
    (folder / "conversations.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in messages))
    pairs = [{"prompt": f"{n} {text(n, 2)}", "chosen": "bees", "rejected": text(n, 2 + n % 3)} for n in range(41)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def start(stage: str, inputs: Path, out: Path, *words: str, **how: int) -> subprocess.Popen:
    data = f"conversations=[{inputs}/conversations.jsonl]" if stage == "sft" else f"pairs=[{inputs}/pairs.jsonl]"
    data = [data] if stage != "reward" else [data, "holdout=0.3"]
    places = [f"checkpoint={inputs}/base", f"out={out}", f"epochs={EPOCHS[stage]}"]
    return launch(stage, *data, *places, *COMMON.split(), *words, **how)


ADAPTERS = "adapter_model.safetensors"
EPOCHS = {"sft": 20, "reward": 10, "dpo": 8}


def check_same(out: Path, alone: Path, exact: int = 5) -> None:
    names = ("loss", "gradient_norm")
    found, expected = (
        torch.tensor([[row[name] for name in names] for row in read_metrics(path)]) for path in (out, alone)
    )
    assert len(expected) > 30
    torch.testing.assert_close(found[:exact], expected[:exact], rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-2, atol=1e-3)  # rounding grows
    whole, ours = (load(path / "checkpoint").state_dict() for path in (alone, out))
    assert whole.keys() == ours.keys()
    assert max((whole[name] - ours[name]).abs().max() for name in whole) < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_rank_killed_on_shards_is_started_again_and_the_run_is_that_of_one_process(stage, inputs, tmp_path):
    end(start(stage, inputs, tmp_path / "alone"))
    process = start(stage, inputs, tmp_path / "run", "parallel.shard=2", processes=2)
    wait_for_steps(process, tmp_path / "run", 12)
    kill_one(process, tmp_path / "run")
    assert "exitcode: -9" in end(process)
    check_same(tmp_path / "run", tmp_path / "alone")
    figures, expected = (read_manifest(tmp_path / name)["figures"] for name in ("run", "alone"))
    assert figures.keys() >= {"loss"} and figures["loss"] == pytest.approx(expected["loss"], rel=0.02, abs=1e-3)
    if stage == "reward":
        assert figures["heldout_accuracy"] == pytest.approx(expected["heldout_accuracy"], abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "base", "mesh"),
    [
        ("sft", "as_is", "parallel.replicas=2"),
        ("sft", "nf4", "parallel.replicas=2"),
        ("sft", "as_is", "parallel.shard=2"),
    ],
)
def test_adapters_on_a_mesh_killed_are_continued_by_one_process_as_if_it_had_been_alone(
    stage, base, mesh, inputs, tmp_path
):
    words = ["optimizer.lora.rank=4", f"optimizer.lora.base={base}"]
    end(start(stage, inputs, tmp_path / "alone", *words))
    process = start(stage, inputs, tmp_path / "run", *words, mesh, processes=2)
    wait_for_steps(process, tmp_path / "run", 12)
    kill_all(process)
    end(start(stage, inputs, tmp_path / "run", *words))
    check_same(tmp_path / "run", tmp_path / "alone")
    assert (tmp_path / "run/adapter/adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_adapters_on_shards_with_a_rank_killed_are_those_of_one_process(stage, inputs, tmp_path):
    words = ["optimizer.lora.rank=4", "saving.snapshot_steps=10"]
    words.append("optimizer.learning_rate=1e-3")  # at 3e-3 gradients leap, and rounding grows with them on copies too
    end(start(stage, inputs, tmp_path / "alone", *words))
    process = start(stage, inputs, tmp_path / "run", *words, "parallel.shard=2", processes=2)
    wait_for_steps(process, tmp_path / "run", 12)
    kill_one(process, tmp_path / "run")
    assert "exitcode: -9" in end(process)
    check_same(tmp_path / "run", tmp_path / "alone")
    for folder in ("adapter", "checkpoints/step-00000010"):
        ours, theirs = (load_file(tmp_path / name / folder / ADAPTERS) for name in ("run", "alone"))
        assert ours.keys() == theirs.keys()
        assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("dpo", ["parallel.tensor=2"], "use replicas and shard"),
        ("reward", ["parallel.context=2"], "use replicas and shard"),
        ("sft", ["parallel.tensor=2", "optimizer.lora.rank=4"], "not with tensor or pipeline"),
        ("sft", ["parallel.shard=2", "optimizer.lora.rank=4", "optimizer.lora.base=nf4"], "use base=as_is with shards"),
        ("sft", ["parallel.shard=2", "optimizer.state=bf16"], "needs a whole copy on each process"),
        ("sft", ["parallel.shard=3"], "shard 3 needs 3 processes, but there are 2"),
    ],
)
def test_what_a_mesh_has_not_is_refused_once_in_words(stage, words, message, inputs, tmp_path):
    process = start(stage, inputs, tmp_path / "run", *words, processes=2, restarts=0)
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode != 0
    [line] = [line for line in said.splitlines() if line.startswith("error:")]
    assert message in line and "herd/stages" not in said
    assert not (tmp_path / "run/state").exists()
