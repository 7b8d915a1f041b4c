"""The first losses of every kind of training on a small committed fixture, as they were when they were right.

float32, one thread. The tolerance allows for the rounding of another processor or PyTorch, amplified by a few steps;
any change of the loss, the data's order, the initial weights, the optimizer or the schedule is far larger. After a
change that is meant, write them anew: `python -m tests.train.test_golden`.
"""

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from herd.data.conversations import load_conversations
from herd.data.loader import PackedLoader, Phase
from herd.data.preferences import load_pairs
from herd.data.shards import in_memory
from herd.model.reward import as_reward_model
from herd.run import read_metrics
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.objectives import dpo, next_token, reward_pairs
from herd.train.optimizer import OptimizerSettings
from herd.train.reference import log_probs
from herd.train.schedule import ScheduleSettings
from herd.train.trainer import Trainer
from tests.train.tiny import run_folder, tiny_model

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
LOSSES = GOLDEN / "losses.json"
TOLERANCE = 5e-4  # relative
STEPS = 8
ROW_TOKENS = 512
TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})  # bytes and special tokens, nothing learned


def pretrain():
    texts = (GOLDEN / "texts.txt").read_text(encoding="utf-8").split("\n")
    documents = in_memory("texts", [TOKENIZER.encode(text, bos=True, eos=True) for text in texts])
    return next_token, {"texts": documents}, {}


def sft():
    return next_token, load_conversations(GOLDEN / "conversations.jsonl", TOKENIZER, ROW_TOKENS), {}


def reward():
    pairs = load_pairs(GOLDEN / "pairs.jsonl", TOKENIZER, ROW_TOKENS)
    return reward_pairs, {"pairs": pairs.documents}, {"columns": pairs.reward_columns}


def preference():
    pairs = load_pairs(GOLDEN / "pairs.jsonl", TOKENIZER, ROW_TOKENS)
    pairs = pairs.with_reference(log_probs(model_for("dpo"), pairs, row_tokens=ROW_TOKENS))
    return partial(dpo, beta=0.5), {"pairs": pairs.documents}, {"columns": pairs.dpo_columns}


KINDS = {"pretrain": pretrain, "sft": sft, "reward": reward, "dpo": preference}


def model_for(kind):
    model = tiny_model(vocab_size=TOKENIZER.vocab_size)
    return as_reward_model(model, seed=0) if kind == "reward" else model


def losses(kind, folder):
    torch.set_num_threads(1)
    objective, sources, options = KINDS[kind]()
    mixture = dict.fromkeys(sources, 1.0)
    phase = Phase(batch_tokens=2 * ROW_TOKENS, row_tokens=ROW_TOKENS, mixture=mixture)
    loader = PackedLoader(sources, [phase], micro_tokens=ROW_TOKENS, **options)
    optimizer, schedule = OptimizerSettings(learning_rate=3e-3), ScheduleSettings(warmup_steps=2)
    with run_folder(folder) as run:
        Trainer(model_for(kind), objective, run, optimizer=optimizer, schedule=schedule).fit(loader, STEPS)
    return [row["loss"] for row in read_metrics(folder)]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_golden_ones(kind, tmp_path):
    assert losses(kind, tmp_path) == pytest.approx(json.loads(LOSSES.read_text())[kind], rel=TOLERANCE)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        found = {kind: losses(kind, Path(folder) / kind) for kind in KINDS}
    LOSSES.write_text(json.dumps(found, indent=1) + "\n")
