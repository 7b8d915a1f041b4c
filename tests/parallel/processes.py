"""Processes, started once, that check one mesh after the other; each mesh uses as many of them as it needs."""

from __future__ import annotations

import json
import multiprocessing
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp

from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import empty_model
from herd.parallel.layout import check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.train.lora import LoraSettings, adapt, add_adapters
from herd.train.metrics import Totals
from herd.train.objectives import next_token
from herd.types import IGNORE
from tests.train.tiny import VOCABULARY, tiny_loader

NUM_STEPS = 2
ROWS = 5  # of a step: shares of unequal size on 2 or 4 processes
LORA = LoraSettings(rank=6, alpha=12.0)  # of four shards of `lora_A` one has no row


def shape(**changes) -> ModelConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # queries and keys matter from the start
    }
    return ModelConfig(**(sizes | changes))


def loader(rank: int = 0, world: int = 1):
    return tiny_loader(batch_tokens=32 * ROWS, micro_tokens=64, rank=rank, world=world)


def whole_model(config: ModelConfig, lora: LoraSettings | None = None):
    model = empty_model(config, device="cpu")
    initialize(model, 0)
    if lora is not None:
        add_adapters(model, lora)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):  # while it is zero, A has no gradient
                parameter.data.normal_(0, 0.2, generator=generator)
    return model


def sources_loss(hidden, head, batch):
    """Cross entropy from the head's sums, and a term of its logits themselves (z-loss)."""
    loss = next_token(hidden, head, batch, sources=("library", "pydoc"))
    z = head.logits(hidden[batch.labels != IGNORE]).float().logsumexp(-1).square().sum()
    return loss._replace(sum=loss.sum + 0.1 * z)


def alone(config: ModelConfig, lora: LoraSettings | None = None) -> list[tuple[dict, dict]]:
    """Means and gradients (divided once) of each step in one process."""
    model, steps = whole_model(config, lora), []
    for step in range(NUM_STEPS):
        totals = Totals()
        model.zero_grad()
        for batch in loader().batches(step):
            loss = model.run(sources_loss, batch)
            loss.sum.backward()
            totals.add(loss)
        gradients = {name: p.grad / totals.count for name, p in model.named_parameters() if p.requires_grad}
        steps.append((totals.means() | {"count": totals.count}, gradients))
    return steps


def together(
    config: ModelConfig, settings: ParallelSettings, dtype: torch.dtype, lora: LoraSettings | None, folder: Path
) -> None:
    """The same on a mesh: means as JSON, gradients through DCP, under the names of the whole model."""
    layout = check(config, settings, dist.get_world_size(), row_tokens=32)
    frozen = {} if lora is None else {"adapt": partial(adapt, options=lora)}
    model = ParallelModel(config, settings, Mesh(layout), dtype, **frozen).materialize()
    model.fill(whole_model(config, lora).named_parameters())
    mine = loader(layout.data_index(dist.get_rank()), layout.num_data)
    for step in range(NUM_STEPS):
        totals = Totals()
        model.zero_grad()
        for loss in model.losses(sources_loss, mine.batches(step)):
            totals.add(loss)
        totals.reduce()
        gradients = {}
        for shard in model.shards():
            learned = shard.parameter.requires_grad
            assert shard.parameter.dtype == (torch.float32 if learned else dtype)
            assert learned or shard.parameter.grad is None
            if learned and 0 not in shard.shape:
                gradients[shard.name] = shard.chunk(shard.parameter.grad)
        dcp.save(gradients, checkpoint_id=folder / f"gradients-{step}")
        if dist.get_rank() == 0:
            (folder / f"means-{step}.json").write_text(json.dumps(totals.means() | {"count": totals.count}))


def work(rank: int, meshes: list, folder: Path) -> None:
    torch.set_num_threads(1)
    for number, (world, call, arguments) in enumerate(meshes):
        if rank >= world:
            continue
        here = folder / f"mesh-{number}"
        store = dist.FileStore(str(here / "store"), world)
        timeout = timedelta(seconds=40)
        dist.init_process_group("gloo", rank=rank, world_size=world, store=store, timeout=timeout)
        try:
            call(*arguments, here)
        except Exception:
            (here / f"error-{rank}.txt").write_text(traceback.format_exc())
            raise
        dist.destroy_process_group()


def run_on_meshes(meshes: list, folder: Path) -> list[Path]:
    """Run (world, function, arguments) one after the other on as many processes; each has a folder of its own."""
    for number in range(len(meshes)):
        (folder / f"mesh-{number}").mkdir(parents=True)
    multiprocessing.set_forkserver_preload(["tests.parallel.processes"])  # PyTorch is imported once, not eight times
    processes = max(world for world, _, _ in meshes)
    mp.start_processes(work, args=(meshes, folder), nprocs=processes, start_method="forkserver")
    return [folder / f"mesh-{number}" for number in range(len(meshes))]
