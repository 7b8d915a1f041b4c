"""The engine over two processes gives the answers of one."""

from __future__ import annotations

import json

import torch.distributed as dist
import torch.multiprocessing as mp

from herd.errors import ConfigError
from herd.infer.engine import Engine
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model

PROMPTS = ["The quick", "def main(argument)", "What does this function do? " * 4]
GREEDY = SamplingParams(temperature=0, max_tokens=16)
BIASES = {"attention_bias": True, "mlp_bias": True}
HOT = SamplingParams(temperature=1.1, max_tokens=10, n=3)


def work(rank: int, folder: str) -> None:
    """One of two processes: answer, and write the answers down."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    engine = Engine.of(tiny_model(), small_tokenizer(), group=dist.group.WORLD, cache_bytes=2**22)
    part = engine.model.model.layers[0].mlp.up_proj.weight.shape[0]
    answers = engine.generate(PROMPTS, GREEDY)
    hot = engine.generate(PROMPTS[0], HOT)  # without a seed: the processes agree on one
    try:
        Engine.of(tiny_model(intermediate_size=97), small_tokenizer(), group=dist.group.WORLD)
        refusal = ""
    except ConfigError as error:
        refusal = str(error)
    biased = Engine.of(tiny_model(**BIASES), small_tokenizer(), group=dist.group.WORLD).generate(PROMPTS, GREEDY)
    found = {"greedy": [a.tokens for a in answers], "hot": [a.tokens for a in hot], "part": part, "refusal": refusal}
    found["biased"] = [a.tokens for a in biased]
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


def test_two_processes_answer_like_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for name, changes in (("biased", BIASES), ("greedy", {})):
        whole = Engine.of(tiny_model(**changes), small_tokenizer()).generate(PROMPTS, GREEDY)
        assert first[name] == [a.tokens for a in whole]
    assert len({tuple(tokens) for tokens in first["hot"]}) == 3
    assert first["part"] == 48 and "intermediate_size 97" in first["refusal"]
