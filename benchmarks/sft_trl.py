"""Supervised fine-tuning of a checkpoint: Herd beside TRL's SFTTrainer, on the same packed rows in the same order.

    pip install trl                                            # the peer, for this benchmark alone
    python benchmarks/sft_trl.py herd BASE CHATS...            # each in a process of its own: its peak memory counts
    python benchmarks/sft_trl.py trl BASE CHATS...
    python benchmarks/sft_trl.py report                        # benchmarks/results/sft_trl.json

Full fine-tuning with AdamW at a constant rate, loss on the assistant's tokens. `--dtype fp32` (the default) is float32
on both sides, which is what `dtype=auto` takes on a processor without fast bfloat16; `bf16`: Herd's bfloat16 weights
with float32 masters beside float32 weights under bfloat16 autocast, TRL's own `bf16=True`. TRL gets Herd's rows as they
are packed, with the lengths of their documents, and keeps documents apart (`padding_free`); on a CPU that is done by
masks. Tokens a second are the median step's. Neither saves checkpoints on the way; Herd saves the state that a run can
be resumed from after the second step and at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from train_step import commit, hardware

from herd.config import load
from herd.data.conversations import load_conversations
from herd.data.loader import PackedLoader, num_rows
from herd.formats.checkpoint import open_checkpoint
from herd.run import read_metrics
from herd.stages import sft
from herd.train.schedule import BatchSettings, phases
from herd.types import IGNORE, Batch

RESULT = Path(__file__).parent / "results" / "sft_trl.json"
RATE, ROWS, ROW_TOKENS = 2e-5, 2, 256


def loader(base: Path, files: list[Path], steps: int) -> PackedLoader:
    """The rows that `herd sft` takes, step by step."""
    sources = load_conversations(files, open_checkpoint(base).tokenizer, ROW_TOKENS)
    batch = BatchSettings(tokens=ROWS * ROW_TOKENS, row_tokens=ROW_TOKENS, micro_tokens=ROWS * ROW_TOKENS)
    weights = {name: float(count) for name, count in num_rows(sources, ROW_TOKENS).items()}
    return PackedLoader(sources, phases(batch, steps, weights), micro_tokens=batch.micro_tokens)


def as_trl(batch: Batch) -> list[dict[str, list[int]]]:
    """Herd's rows in TRL's columns: whole documents behind one another, labels at the token they name."""
    rows = []
    for tokens, labels, owners in zip(batch.tokens, batch.labels, batch.document_ids, strict=True):
        ids: list[int] = []
        named: list[int] = []
        lengths: list[int] = []
        for document in range(int(owners.max()) + 1):
            here = owners == document
            inside, told = tokens[here].tolist(), labels[here].tolist()
            last = [told[-1]] if told[-1] != IGNORE else []
            ids += inside + last
            named += [IGNORE, *told[:-1], *last]
            lengths.append(len(inside) + len(last))
        rows.append({"input_ids": ids, "labels": named, "seq_lengths": lengths})
    return rows


def run_herd(base: Path, files: list[Path], steps: int, dtype: str) -> dict[str, Any]:
    """Herd's figures."""
    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, Any] = {
            "conversations": [str(file) for file in files], "checkpoint": str(base), "epochs": 1000,
            "batch": {"tokens": ROWS * ROW_TOKENS, "row_tokens": ROW_TOKENS, "micro_tokens": ROWS * ROW_TOKENS},
            "schedule.shape": "constant", "saving.save_seconds": 1e9,
            "optimizer": {"learning_rate": RATE, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0},
        }  # fmt: skip
        began = time.perf_counter()
        rows = _sft(values | {"out": f"{folder}/run", "dtype": dtype, "max_steps": steps})
        seconds = [row["seconds"] for row in rows]
        return _found("Herd", [row["loss"] for row in rows], seconds, time.perf_counter() - began)


def _sft(values: dict[str, Any]) -> list[dict[str, Any]]:
    words = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return read_metrics(sft.run(load(sft.SftSettings, None, words)))


def run_trl(base: Path, files: list[Path], steps: int, dtype: str) -> dict[str, Any]:
    """The same with TRL."""
    import datasets
    import transformers
    import trl

    source = loader(base, files, steps)
    rows = [row for step in range(steps) for batch in source.batches(step) for row in as_trl(batch)]

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    exact: list[float] = []  # the log rounds

    class InOrder(trl.SFTTrainer):
        def compute_loss(self, *given: Any, **how: Any) -> Any:
            found = super().compute_loss(*given, **how)
            exact.append(float(found[0] if isinstance(found, tuple) else found))
            return found

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as folder:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        options = trl.SFTConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=ROWS, learning_rate=RATE,
            bf16=dtype == "bf16", lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none",
            use_cpu=True, packing=False, padding_free=True, max_length=None, gradient_checkpointing=False,
            weight_decay=0.0, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
            adam_beta2=0.999,
        )  # fmt: skip
        clock, began = Clock(), time.perf_counter()
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        data = datasets.Dataset.from_list(rows)
        trainer = InOrder(model, args=options, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
        trainer.train()
        wall = time.perf_counter() - began
    return _found(f"TRL {trl.__version__}, transformers {transformers.__version__}", exact, clock.seconds, wall)


def _found(name: str, losses: list[float], seconds: list[float], wall: float) -> dict[str, Any]:
    return {
        "name": name,
        "losses": [round(loss, 6) for loss in losses],
        f"mean_loss_of_{len(losses[-10:])}_steps": round(fmean(losses[-10:]), 4),
        "tokens_per_second": round(ROWS * ROW_TOKENS / median(seconds[1:]), 1),
        "wall_seconds": round(wall, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def report(parts: list[Path], dtype: str) -> dict[str, Any]:
    """Both beside one another."""
    herd, peer = (json.loads(part.read_text()) for part in parts)
    apart = [abs(one - other) for one, other in zip(herd["losses"], peer["losses"], strict=True)]
    steps = len(apart)
    return {
        "benchmark": "sft_trl",
        "commit": commit(),
        "command": f"python benchmarks/sft_trl.py herd BASE CHATS --steps {steps} --dtype {dtype}; so trl; report",
        "hardware": hardware(torch.get_num_threads()),
        "rows": f"{ROWS} packed rows of {ROW_TOKENS} tokens a step, {steps} steps",
        "dtype": dtype,
        "first_loss_apart": apart[0],
        "losses_apart": {"mean": round(fmean(apart), 6), "most": round(max(apart), 6), "last": round(apart[-1], 6)},
        "speed_ratio": round(herd["tokens_per_second"] / peer["tokens_per_second"], 2),
        "memory_ratio": round(herd["peak_memory_mb"] / peer["peak_memory_mb"], 2),
        "results": [herd, peer],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["herd", "trl", "report"])
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--parts", type=Path, default=Path("runs/sft_trl"))
    asked = parser.parse_args()
    files = [asked.parts / f"{name}.json" for name in ("herd", "trl")]
    asked.parts.mkdir(parents=True, exist_ok=True)
    if asked.what == "report":
        RESULT.write_text(json.dumps(report(files, asked.dtype), indent=1) + "\n")
        print(RESULT.read_text())
        return
    found = (run_herd if asked.what == "herd" else run_trl)(asked.base, asked.files, asked.steps, asked.dtype)
    files[asked.what == "trl"].write_text(json.dumps(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
