"""A long run on real text, Herd's trainer beside a plain PyTorch loop around `transformers`' Llama, at equal tokens.

    python benchmarks/train_run.py prepare TEXTS...      # files *.jsonl.gz with a column `text`
    python benchmarks/train_run.py herd                  # each may be killed at any time and started again
    python benchmarks/train_run.py transformers
    python benchmarks/train_run.py report                # benchmarks/results/train_run.json and .svg

Both start from the same weights and see the same tokens in the same order, with the same learning rates, one thread
each. Herd trains in bfloat16 with float32 masters; the peer has float32 weights under bfloat16 autocast, its AdamW in
float32. Rows are cut so that each holds one document: nothing is masked, so that the two compute the same thing.
Everything lies in `--folder`; the loss on rows kept aside is measured by the same function for both at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from train_step import commit, hardware, text_rows

from herd.config import settings
from herd.data.loader import PackedLoader
from herd.data.shards import in_memory
from herd.formats import checkpoint
from herd.model.config import ModelConfig, num_parameters
from herd.model.init import initialize
from herd.model.llama import empty_model
from herd.run import atomic_write, open_run, read_metrics
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.saving import SavingSettings, finish
from herd.train.schedule import BatchSettings, ScheduleSettings, learning_rate, phases
from herd.train.trainer import Trainer

matplotlib.use("Agg")
RESULTS = Path(__file__).parent / "results"
CONTEXT, VOCABULARY = 512, 4096
BATCH = BatchSettings(tokens=8 * CONTEXT, row_tokens=CONTEXT, micro_tokens=8 * CONTEXT)
OPTIMIZER = OptimizerSettings(learning_rate=2e-3, beta2=0.95, weight_decay=0.1)
SCHEDULE = ScheduleSettings(shape="cosine", warmup_steps=50, final_share=0.1)
SAVE_SECONDS = 60.0
HELD_OUT = 128  # rows, taken evenly from all texts


@settings
class RunSettings:
    """What Herd's run folder records of this run."""

    steps: int = 0
    """Optimizer steps."""


def prepare(folder: Path, files: list[Path]) -> None:
    """Texts to rows of tokens, a tokenizer trained on them, and the weights that both start from."""
    rows, size = text_rows(files, VOCABULARY, CONTEXT)
    aside = np.zeros(len(rows), bool)
    aside[np.linspace(0, len(rows) - 1, HELD_OUT).astype(int)] = True
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train.npy", rows[~aside])
    np.save(folder / "heldout.npy", rows[aside])
    config = ModelConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=768, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    model = empty_model(config, device="cpu")
    initialize(model, seed=0)
    checkpoint.save(model, folder / "start")
    atomic_write(folder / "texts.json", json.dumps({"files": [file.name for file in files], "bytes": size}))
    print(f"{len(rows):,} rows of {CONTEXT} tokens, {size / rows.size:.2f} bytes a token")


def loader(folder: Path, num_steps: int) -> PackedLoader:
    documents = in_memory("text", list(np.load(folder / "train.npy")))
    return PackedLoader({"text": documents}, phases(BATCH, num_steps, {"text": 1.0}), micro_tokens=BATCH.micro_tokens)


def run_herd(folder: Path, num_steps: int) -> None:
    chosen = RunSettings(steps=num_steps)
    with open_run(folder / "herd", stage="benchmark", settings=chosen, inputs={"start": folder / "start"}) as run:
        if not run.finished:
            model = checkpoint.load(folder / "start", dtype=torch.bfloat16)
            batches = loader(folder, num_steps)
            saving = SavingSettings(save_seconds=SAVE_SECONDS)
            options = {"optimizer": OPTIMIZER, "schedule": SCHEDULE, "saving": saving, "label": "Herd"}
            Trainer(model, next_token, run, **options).fit(batches, num_steps)
            finish(model, run, figures={"heldout_loss": heldout_loss(model.eval(), folder)})


def run_peer(folder: Path, num_steps: int) -> None:
    """A loop as anyone would write it: autocast, clip, AdamW, a schedule, a checkpoint every minute."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), eps=OPTIMIZER.eps, fused=True,
    )  # fmt: skip
    state, rows = folder / "transformers.pt", []
    if state.exists():
        saved = torch.load(state, weights_only=False)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rows = saved["rows"]
    batches, saved_at = loader(folder, num_steps), time.monotonic()
    while (step := len(rows)) < num_steps:
        began = time.perf_counter()
        [batch] = batches.batches(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(SCHEDULE, OPTIMIZER.learning_rate, step, num_steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch.tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        rows.append({"step": step + 1, "tokens": (step + 1) * BATCH.tokens, "loss": loss.item(), "seconds": seconds})
        if time.monotonic() - saved_at > SAVE_SECONDS or step + 1 == num_steps:
            values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
            torch.save(values, aside := state.with_suffix(".tmp"))
            aside.replace(state)
            atomic_write(folder / "transformers.json", json.dumps({"rows": rows}))
            saved_at = time.monotonic()
    with torch.autocast("cpu", torch.bfloat16):
        figures = {"rows": rows, "heldout_loss": heldout_loss(_Logits(model.eval()), folder)}
    atomic_write(folder / "transformers.json", json.dumps(figures))


class _Logits(nn.Module):
    """A `transformers` model as a function from tokens to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, use_cache=False).logits


@torch.no_grad()
def heldout_loss(model: nn.Module, folder: Path) -> float:
    """Mean negative log-likelihood per token of the rows kept aside."""
    rows = torch.from_numpy(np.load(folder / "heldout.npy").astype(np.int64))
    losses = [
        F.cross_entropy(model(part[:, :-1]).float().flatten(0, 1), part[:, 1:].flatten()) for part in rows.split(8)
    ]
    return torch.stack(losses).mean().item()


def report(folder: Path, num_steps: int) -> None:
    manifest = folder / "herd" / "run.json"
    ours = {"rows": read_metrics(folder / "herd")} | json.loads(manifest.read_text()).get("figures", {})
    theirs = json.loads((folder / "transformers.json").read_text())
    shared = min(len(ours["rows"]), len(theirs["rows"]))
    sides = {"Herd": ours, f"transformers {transformers.__version__}": theirs}
    config = checkpoint.load(folder / "start").config
    curves = {name: smooth([row["loss"] for row in side["rows"][:shared]]) for name, side in sides.items()}
    result = {
        "benchmark": "train_run",
        "commit": commit(),
        "command": "python benchmarks/train_run.py prepare TEXTS...; ... herd; ... transformers; ... report",
        "hardware": hardware(1),
        "shared_machine": "both ran at lowest priority beside other work, so that seconds say little about speed",
        "texts": json.loads((folder / "texts.json").read_text()),
        "parameters": num_parameters(config),
        "tokens": shared * BATCH.tokens,
        "results": [summary(name, side, shared) for name, side in sides.items()],
        "planned_tokens": num_steps * BATCH.tokens,
        "herd_over_peer_percent_by_50_steps": differences(ours["rows"][:shared], theirs["rows"][:shared]),
        "curve": [
            {"tokens": (step + 1) * BATCH.tokens} | {name: round(curve[step], 4) for name, curve in curves.items()}
            for step in range(9, shared, 10)
        ],
    }
    atomic_write(RESULTS / "train_run.json", json.dumps(result, indent=1) + "\n")
    draw(curves, RESULTS / "train_run.svg")
    for row in result["results"]:
        print(row)


def summary(name: str, side: dict, shared: int) -> dict:
    rows = side["rows"][:shared]
    found = {"name": name, "minutes": round(sum(row["seconds"] for row in rows) / 60, 1)}
    found["loss_of_last_50_steps"] = round(float(np.mean([row["loss"] for row in rows[-50:]])), 4)
    if "heldout_loss" in side:
        found |= {"heldout_loss": round(side["heldout_loss"], 4)}
    return found


def differences(ours: list[dict], theirs: list[dict], steps: int = 50) -> list[float]:
    """By how many percent Herd's mean loss lies above the peer's, for each so many steps."""
    means = [[np.mean([row["loss"] for row in rows[i : i + steps]]) for i in range(0, len(rows), steps)]
             for rows in (ours, theirs)]  # fmt: skip
    return [round(100 * float(a / b - 1), 2) for a, b in zip(*means)]


def smooth(losses: list[float], steps: int = 10) -> list[float]:
    """The mean of each loss and those shortly before it."""
    return [float(np.mean(losses[max(0, i - steps + 1) : i + 1])) for i in range(len(losses))]


def draw(curves: dict[str, list[float]], file: Path) -> None:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    for (name, curve), style in zip(curves.items(), ("-", "--")):
        axis.plot(np.arange(1, len(curve) + 1) * BATCH.tokens / 1e6, curve, style, label=name)
    axis.set(xlabel="million tokens", ylabel="loss (nats a token, mean of 10 steps)", ylim=(None, math.log(VOCABULARY)))
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["prepare", "herd", "transformers", "report"])
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--folder", type=Path, default=Path("runs/train_run"))
    parser.add_argument("--tokens", type=float, default=8e6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    num_steps = round(options.tokens / BATCH.tokens)
    if options.part == "prepare":
        prepare(options.folder, options.texts)
    elif options.part == "report":
        report(options.folder, num_steps)
    else:
        {"herd": run_herd, "transformers": run_peer}[options.part](options.folder, num_steps)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(f"{options.part}: {usage.ru_utime + usage.ru_stime:.0f} s of processor time since it was last started")


if __name__ == "__main__":
    main()
