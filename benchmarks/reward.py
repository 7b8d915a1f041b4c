"""A reward model of people's preferences: Herd's beside TRL's RewardTrainer, on the same base, rows and settings.

    pip install trl
    python -m benchmarks.reward OUT                   # prepare, train both, measure; what is done is not done again
    python -m benchmarks.reward OUT --only herd       # one trainer, so that both may run side by side

Rows are hh-rlhf's harmless pairs (../shared/data/post-hh-rlhf, MIT), split by their first question. The base is
SmolLM2-135M-Instruct (`make base-model`), which stands in for a pre-trained model, cut to its first `--layers` layers,
and rows to those of at most `--max-tokens` a dialogue (`--last-turn`: of the last question with its answer alone), so
that it ends on two shared cores. Both reward models are scored by their own code on every held-out pair. The result
goes to benchmarks/results/reward.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.base_model import FOLDER, place
from herd.data.choices import choices_of
from herd.data.talks import Notes
from herd.evals.statistics import compared, summary
from herd.formats.checkpoint import open_checkpoint
from herd.model.config import num_parameters
from herd.post.reward import RewardModel
from herd.stages import reward as stage
from herd.tokenizer.chat import render
from herd.train.optimizer import OptimizerSettings
from herd.train.schedule import BatchSettings, ScheduleSettings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "post-hh-rlhf" / "harmless_base_test.jsonl.gz"
RESULTS = Path(__file__).parent / "results"
PAIRS_A_STEP, SEED = 16, 0


def prepare(out: Path, given: argparse.Namespace) -> None:
    """Write the cut base, `train.jsonl` and `test.jsonl`."""
    layers, max_tokens, held_out = given.layers, given.max_tokens, given.held_out
    if (out / "test.jsonl").exists():
        return
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(place() / FOLDER, dtype=torch.float32)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.save_pretrained(out / "base")
    transformers.AutoTokenizer.from_pretrained(place() / FOLDER).save_pretrained(out / "base")
    tokenizer = open_checkpoint(out / "base").tokenizer
    rows: dict[str, list[dict]] = {"train": [], "test": []}
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        for line in lines:
            for choice in choices_of(json.loads(line), Notes()):
                prompt = choice.prompt[-1:] if given.last_turn else choice.prompt
                whole = {name: [*prompt, *response] for name, response in choice.responses.items()}
                if max(len(render(tokenizer, messages).tokens) for messages in whole.values()) > max_tokens:
                    continue
                group = choice.prompt[0]["content"].strip()
                number = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
                row = {"prompt": prompt, **choice.responses, "group": group}
                rows["test" if number < held_out else "train"].append(row)
    for name, found in rows.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def train_herd(out: Path, given: argparse.Namespace) -> None:
    """`herd reward` on all training rows."""
    pairs = len((out / "train.jsonl").read_text().splitlines())
    row_tokens = 2 * given.max_tokens + 2
    tokens = sum(_lengths(out)) // -(-pairs // PAIRS_A_STEP) // row_tokens * row_tokens
    settings = stage.RewardSettings(
        checkpoint=out / "base",
        pairs=[out / "train.jsonl"],
        out=out / "herd",
        holdout=0.0,
        dtype="fp32",
        batch=BatchSettings(row_tokens=row_tokens, tokens=tokens, micro_tokens=2 * row_tokens),
        optimizer=OptimizerSettings(learning_rate=given.learning_rate, beta2=0.999, weight_decay=0.0),
        schedule=ScheduleSettings(shape="linear", warmup_steps=5, final_share=0.0),
        seed=SEED,
    )
    stage.run(settings)


def _lengths(out: Path) -> list[int]:
    tokenizer = open_checkpoint(out / "base").tokenizer
    rows = map(json.loads, (out / "train.jsonl").read_text().splitlines())
    return [
        len(render(tokenizer, [*row["prompt"], *row[name]]).tokens) for row in rows for name in ("chosen", "rejected")
    ]


def train_trl(out: Path, given: argparse.Namespace) -> None:
    """TRL's RewardTrainer on the same rows, with the same learning rate, schedule and pairs a step."""
    if (out / "trl" / "model.safetensors").exists():
        return
    import transformers
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    data = Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows])
    torch.manual_seed(SEED)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        out / "base", num_labels=1, dtype=torch.float32
    )
    options = RewardConfig(
        output_dir=str(out / "trl-state"),
        max_length=given.max_tokens + 8,
        learning_rate=given.learning_rate,
        warmup_steps=5,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=PAIRS_A_STEP // 4,
        num_train_epochs=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        logging_steps=5,
        seed=SEED,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "base")
    trainer = RewardTrainer(model=model, args=options, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(out / "trl"))


@torch.inference_mode()
def trl_scores(folder: Path, talks: list[list[dict]]) -> list[float]:
    """The scores of TRL's model by `transformers`, one dialogue at a time."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for talk in talks:
        ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
        found.append(float(model(ids).logits[0, 0]))
    return found


def measure(out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of both on the held-out pairs, with intervals over prompts, and the paired difference."""
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    talks = [[*row["prompt"], *row[name]] for row in rows for name in ("chosen", "rejected")]
    scores = {"herd": RewardModel(out / "herd").score(talks), "trl": trl_scores(out / "trl", talks)}
    groups = [row["group"] for row in rows]
    won = {name: [float(a > b) for a, b in zip(of[::2], of[1::2])] for name, of in scores.items()}
    longer = [float(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"])) for row in rows]
    found: dict[str, Any] = {}
    for name, values in {**won, "longer response (no model)": longer}.items():
        interval = summary(values, groups)
        found[name] = {"accuracy": interval.value, "low": interval.low, "high": interval.high}
    paired = compared(won["herd"], won["trl"], groups)
    config = open_checkpoint(out / "base").config
    layer_parameters = num_parameters(config) - config.vocab_size * config.hidden_size
    tokens = sum(_lengths(out))
    return {
        "held_out_pairs": len(rows),
        "held_out_prompts": len(set(groups)),
        "train_pairs": len((out / "train.jsonl").read_text().splitlines()),
        "train_tokens": tokens,
        "train_flops_each": 6 * layer_parameters * tokens,
        "base": f"SmolLM2-135M-Instruct, its first {config.num_hidden_layers} of 30 layers",
        "max_tokens": given.max_tokens,
        "last_turn_alone": given.last_turn,
        "learning_rate": given.learning_rate,
        "results": found,
        "herd_minus_trl": {
            "value": paired.difference.value,
            "low": paired.difference.low,
            "high": paired.difference.high,
            "p": paired.p,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--last-turn", action="store_true", help="leave out what was said before the last question")
    parser.add_argument("--held-out", type=float, default=0.25, help="share of the prompts")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--only", choices=["herd", "trl", "measure"])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    prepare(given.out, given)
    for name, train in (("herd", train_herd), ("trl", train_trl)):
        if given.only in (None, name):
            train(given.out, given)
    if given.only in (None, "measure"):
        found = measure(given.out, given)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        sizes = f"--layers {given.layers} --max-tokens {given.max_tokens} --held-out {given.held_out}"
        rate = f"--learning-rate {given.learning_rate}" + " --last-turn" * given.last_turn
        about = {
            "command": f"python -m benchmarks.reward OUT {sizes} {rate}",
            "date": date.today().isoformat(),
            "commit": commit,
        }
        record = {**about, "hardware": f"{os.cpu_count()} shared cores, no GPU", **found}
        (RESULTS / "reward.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
