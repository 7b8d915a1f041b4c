"""`torchrun -m herd pretrain`: the run of one process, whatever the mesh, also when a rank is killed."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from herd.data.shards import ShardWriter
from herd.formats.checkpoint import load
from herd.run import read_manifest, read_metrics
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer
from tests.parallel.torchrun import SECONDS, another, end, kill_all, kill_one, launch, wait_for_steps

TEXT = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n"
SHAPE = (
    "model.hidden_size=32 model.num_hidden_layers=2 model.intermediate_size=64 model.num_attention_heads=4 "
    "model.tie_word_embeddings=false batch.row_tokens=64 batch.tokens=320 batch.micro_tokens=128 "
    "optimizer.learning_rate=3e-3 dtype=fp32 saving.save_seconds=0.3 saving.snapshots=2 tokens=32000"
)
NUM_STEPS = 100


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Shards and tokenizer of a small text whose documents have unequal lengths."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = Tokenizer.train([TEXT * 3], 540)
    save_tokenizer(tokenizer, folder / "tokenizer")
    for side, count in (("train", 40), ("heldout", 3)):
        (folder / "shards" / side).mkdir(parents=True)
        writer = ShardWriter(folder / "shards" / side, "code", 0, tokenizer=tokenizer.fingerprint)
        for number in range(count):
            text = TEXT.replace("1", str(number)) * (1 + number % 3)
            writer.add(tokenizer.encode(text, bos=True, eos=True), num_bytes=len(text.encode()))
        writer.close()
    return folder


def start(corpus: Path, out: Path, *words: str, processes: int = 1, restarts: int = 1) -> subprocess.Popen:
    places = [f"shards={corpus / 'shards'}", f"tokenizer={corpus / 'tokenizer'}", f"out={out}"]
    return launch("pretrain", *places, *SHAPE.split(), *words, processes=processes, restarts=restarts)


def curve(out: Path) -> torch.Tensor:
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    return torch.tensor([[row["loss"], row["gradient_norm"]] for row in rows])


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    end(start(corpus, out))
    return out


def check_same(
    out: Path, alone: Path, checkpoints: Sequence[str] = ("checkpoint", f"checkpoints/step-{NUM_STEPS // 2:08d}")
) -> None:
    torch.testing.assert_close(curve(out)[:10], curve(alone)[:10], rtol=1e-5, atol=0)
    torch.testing.assert_close(curve(out), curve(alone), rtol=1e-3, atol=0)  # rounding grows over a hundred steps
    figures, expected = (read_manifest(path)["figures"] for path in (out, alone))
    assert figures["heldout_bits_per_byte"] == pytest.approx(expected["heldout_bits_per_byte"], rel=1e-2)
    for folder in checkpoints:
        whole, ours = (load(path / folder).state_dict() for path in (alone, out))
        assert whole.keys() == ours.keys()
        assert all(whole[name].shape == ours[name].shape for name in whole)
        assert max((whole[name] - ours[name]).abs().max() for name in whole) < 5e-3


@pytest.mark.slow
def test_a_rank_killed_in_mid_run_is_started_again_and_the_losses_are_those_of_one_process(corpus, alone, tmp_path):
    out = tmp_path / "run"
    process = start(corpus, out, "parallel.shard=2", processes=2)
    wait_for_steps(process, out, 30)
    kill_one(process, out)
    assert "exitcode: -9" in end(process)
    check_same(out, alone)


@pytest.mark.slow
@pytest.mark.parametrize("told", ["the launcher", "one process"])
def test_told_to_end_all_processes_save_at_the_same_step_and_the_same_command_goes_on(corpus, alone, tmp_path, told):
    out, words = tmp_path / "run", ["parallel.shard=2", "saving.save_seconds=1000000"]
    process = start(corpus, out, *words, processes=2, restarts=0)
    wait_for_steps(process, out, 20)
    os.kill(process.pid if told == "the launcher" else another(process, out), signal.SIGTERM)
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode != 0
    assert said.count("stopped; the same command continues where it was") == 1, said
    saved, steps = sorted((out / "state").glob("step-*"))[-1], len(read_metrics(out))
    assert saved.name == f"step-{steps:08d}" and 20 <= steps < NUM_STEPS
    end(start(corpus, out, *words, processes=2))
    check_same(out, alone)


@pytest.mark.slow
def test_a_run_begun_on_one_mesh_is_continued_on_another_and_ended_by_one_process(corpus, alone, tmp_path):
    out = tmp_path / "run"
    for steps, words in ((20, ["parallel.tensor=2"]), (50, ["parallel.pipeline=2", "parallel.interleave=2"])):
        process = start(corpus, out, *words, processes=2)
        wait_for_steps(process, out, steps)
        kill_all(process)
    end(start(corpus, out))
    check_same(out, alone)


@pytest.mark.slow
def test_adapters_beside_fresh_weights_in_shards_have_the_losses_of_one_process(corpus, tmp_path):
    words = ["optimizer.lora.rank=4"]
    end(start(corpus, tmp_path / "alone", *words))
    end(start(corpus, tmp_path / "run", *words, "parallel.shard=2", processes=2))
    check_same(tmp_path / "run", tmp_path / "alone", ["checkpoint"])


@pytest.mark.slow
def test_a_mesh_that_cannot_be_is_refused_once_with_every_fault(corpus, tmp_path):
    process = start(corpus, tmp_path / "run", "parallel.tensor=3", processes=2, restarts=0)
    text = process.communicate(timeout=SECONDS)[1]
    assert process.returncode != 0
    [message] = [line for line in text.splitlines() if line.startswith("error:")]
    assert "tensor 3 needs 3 processes, but there are 2" in message
    assert "does not divide the model's num_attention_heads (4)" in text
    assert "herd/stages" not in text  # no traceback of ours
