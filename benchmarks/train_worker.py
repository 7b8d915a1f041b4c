"""One contestant of benchmarks/train.py in a process of its own; needs only its own environment.

    python train_worker.py NAME FOLDER THREADS

NAME is herd, transformers, litgpt or nanochat with a variant (`herd:auto`, `litgpt:compiled`). FOLDER holds `start/`, a
Hugging Face checkpoint, and `tokens.npy` (steps, rows, context + 1). Told a number of steps on standard input, it does
the next ones and answers with their seconds and losses as a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

LEARNING_RATE = 1e-3
Step = Callable[["torch.Tensor"], float]  # noqa: F821


def herd(folder: Path, variant: str) -> Step:
    """Herd's own step: packed batch, chunked loss, float32 masters. Variants are those of `run.compile`."""
    import torch

    from herd.formats import checkpoint
    from herd.train.compile import compile_model, keep_freed_memory
    from herd.train.optimizer import FlatAdamW, OptimizerSettings
    from herd.types import Batch, Loss

    model = checkpoint.load(folder / "start", dtype=torch.bfloat16).train()
    optimizer = FlatAdamW(model, OptimizerSettings(learning_rate=LEARNING_RATE))
    compile_model(model, variant)
    keep_freed_memory()

    def objective(hidden, head, batch) -> Loss:
        return Loss(head.cross_entropy_sum(hidden, batch.labels), torch.tensor(batch.labels.numel()), {})

    def step(tokens: torch.Tensor) -> float:
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        positions = torch.arange(inputs.shape[1]).expand_as(inputs)
        ids = torch.zeros(inputs.shape, dtype=torch.int32)
        loss = model.run(objective, Batch(tokens=inputs, labels=labels, positions=positions, document_ids=ids))
        loss.sum.backward()
        optimizer.collect()
        count = loss.count.item()
        optimizer.step(LEARNING_RATE, count, optimizer.norm(count))
        return loss.sum.item() / count

    return step


def transformers(folder: Path, variant: str) -> Step:
    """Its Llama with PyTorch's SDPA: bf16 weights, or float32 weights under bf16 `autocast`."""
    import torch
    from transformers import AutoModelForCausalLM

    wide = variant == "autocast"
    dtype = torch.float32 if wide else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder / "start", dtype=dtype, attn_implementation="sdpa")
    called = torch.compile(model) if variant == "compiled" else model

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=wide):
            return called(tokens, use_cache=False).logits

    return plain_step(model, logits)


def litgpt(folder: Path, variant: str) -> Step:
    """Its GPT in Llama's shape, precision `bf16-true`, as `litgpt pretrain` builds it; embeddings tied like ours."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    shape = json.loads((folder / "start" / "config.json").read_text())
    config = Config(
        name="llama", block_size=shape["max_position_embeddings"], vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"], n_layer=shape["num_hidden_layers"], n_head=shape["num_attention_heads"],
        n_query_groups=shape["num_key_value_heads"], n_embd=shape["hidden_size"], rotary_percentage=1.0,
        parallel_residual=False, bias=False, norm_class_name="RMSNorm", norm_eps=shape["rms_norm_eps"],
        mlp_class_name="LLaMAMLP", intermediate_size=shape["intermediate_size"], rope_base=int(shape["rope_theta"]),
    )  # fmt: skip
    weights = load_file(folder / "start" / "model.safetensors")
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    converted: dict = {}
    copy_weights_hf_llama(config, {}, converted, weights)
    model = GPT(config)
    model.load_state_dict(converted)
    model = model.to(torch.bfloat16).train()
    model.lm_head.weight = model.transformer.wte.weight
    return plain_step(model, torch.compile(model) if variant == "compiled" else model)


def nanochat(folder: Path, variant: str) -> Step:
    """Its own architecture at the nearest size, with its own optimizers and learning rates, from its own start."""
    import torch
    from nanochat.gpt import GPT, GPTConfig

    shape = json.loads((folder / "start" / "config.json").read_text())
    config = GPTConfig(
        sequence_len=shape["max_position_embeddings"], vocab_size=shape["vocab_size"],
        n_layer=shape["num_hidden_layers"], n_head=shape["num_attention_heads"],
        n_kv_head=shape["num_key_value_heads"], n_embd=shape["hidden_size"], window_pattern="L",
    )  # fmt: skip
    model = GPT(config)
    model.init_weights()
    optimizer = model.setup_optimizer()
    called = torch.compile(model, dynamic=False) if variant == "compiled" else model

    def step(tokens: torch.Tensor) -> float:
        loss = called(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def plain_step(model, logits: Callable) -> Step:
    """A plain PyTorch step: loss, backward, clip, fused AdamW; like Herd's, it decays matrices only."""
    import torch

    parameters = list(model.train().parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)

    def step(tokens: torch.Tensor) -> float:
        found = logits(tokens[:, :-1].contiguous())
        loss = torch.nn.functional.cross_entropy(found.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


CONTESTANTS = {"herd": herd, "transformers": transformers, "litgpt": litgpt, "nanochat": nanochat}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints must not get between
    os.dup2(2, 1)
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    kind, _, variant = name.partition(":")
    step = CONTESTANTS[kind](folder, variant)
    batches = iter(torch.from_numpy(np.load(folder / "tokens.npy").astype(np.int64)))
    versions = {"torch": torch.__version__}
    print(json.dumps({"ready": name, **versions}), file=answers, flush=True)
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            began = time.perf_counter()
            losses.append(step(next(batches)))
            seconds.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
