"""lm-evaluation-harness over Herd's engine and over its own `hf` backend: the same tasks, rows, weights and answers.

    python -m benchmarks.evals --data FOLDER [--model FOLDER] [--rows 171 300 30] [--tasks mmlu hellaswag gsm8k]
        [--batch 1] [--out results/evals.json]

MMLU with 5 examples (3 rows a subject), HellaSwag, GSM8K with 5 examples (at most 256 tokens). Seconds by the clock and
of the processor are given: on a busy machine the latter tell. Both sides compute in float32 with PyTorch's threads as
they are set (OMP_NUM_THREADS), one after the other. `--batch` is the `hf` backend's batch (1 is its default). Tasks
that the result holds already, of the same rows and batch, stand beside those asked for now.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from herd.evals.harness import HarnessModel

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl, dev: {folder}/{name}-dev.jsonl}}}}
test_split: test
fewshot_split: dev
num_fewshot: {shots}
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: {choices}
doc_to_target: {target}
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
SUMS = """
task: gsm8k
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/gsm8k.jsonl, dev: {folder}/gsm8k-dev.jsonl}}}}
test_split: test
fewshot_split: dev
num_fewshot: 5
fewshot_config: {{sampler: first_n}}
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n", "Question:"], max_gen_toks: 256, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def rows_of(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prepare(folder: Path, data: Path, counts: list[int]) -> list[str]:
    """The tasks' files: MMLU one task a subject, as many rows of each as fit."""
    mmlu, dev = rows_of(data / "bench-mmlu/test.jsonl.gz"), rows_of(data / "bench-mmlu/dev.jsonl.gz")
    subjects = sorted({row["subject"] for row in mmlu})
    each = 3
    names, left = [], counts[0]
    text = (
        "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
    )
    letters = '["A", "B", "C", "D"]'
    for subject in subjects:
        own = [row for row in mmlu if row["subject"] == subject][: min(each, left)]
        if not own:
            break
        left -= len(own)
        name = f"mmlu_{subject}"
        write(folder / f"{name}.jsonl", own)
        write(folder / f"{name}-dev.jsonl", [row for row in dev if row["subject"] == subject])
        task = CHOICES.format(name=name, folder=folder, shots=5, text=text, choices=letters, target="answer")
        (folder / f"{name}.yaml").write_text(task)
        names.append(name)
    swag = rows_of(data / "bench-hellaswag/val.jsonl.gz")
    write(folder / "hellaswag.jsonl", swag[: counts[1]])
    write(folder / "hellaswag-dev.jsonl", swag[-5:])
    task = CHOICES.format(name="hellaswag", folder=folder, shots=0, text="{{ctx}}", choices="endings", target="label")
    (folder / "hellaswag.yaml").write_text(task)
    write(folder / "gsm8k.jsonl", rows_of(data / "bench-gsm8k/test.jsonl.gz")[: counts[2]])
    write(folder / "gsm8k-dev.jsonl", rows_of(data / "bench-gsm8k/train.jsonl.gz")[:5])
    (folder / "gsm8k.yaml").write_text(SUMS.format(folder=folder))
    return names


def measured(model: Any, folder: Path, tasks: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    clock, processor = time.perf_counter(), time.process_time()
    found = lm_eval.simple_evaluate(
        model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, verbosity="ERROR", batch_size=1
    )
    took = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
    return took, {
        name: [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
        for name, rows in found["samples"].items()
    }


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """The largest difference of log-likelihoods, and the share of equal texts."""
    apart, same = [0.0], []
    for name, rows in ours.items():
        for one, other in zip(rows, theirs[name], strict=True):
            for first, second in zip(one, other, strict=True):
                if isinstance(first[0], str):
                    same.append(first[0] == second[0])
                else:
                    apart.append(abs(first[0][0] - second[0][0]))
    return {"largest_difference_nats": max(apart), "equal_texts": sum(same) / len(same) if same else 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("../base-model/SmolLM2-135M-Instruct"))
    parser.add_argument("--rows", type=int, nargs=3, default=[171, 300, 30], metavar=("MMLU", "HELLASWAG", "GSM8K"))
    parser.add_argument("--tasks", nargs="+", default=["mmlu", "hellaswag", "gsm8k"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evals.json")
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    makers: dict[str, Callable[[], Any]] = {
        "herd": lambda: HarnessModel(options.model),
        "hf": lambda: HFLM(pretrained=str(options.model), dtype="float32", device="cpu", batch_size=options.batch),
    }
    setting = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    setting |= {"rows": options.rows, "hf_batch_size": options.batch, "torch": torch.__version__}
    before = json.loads(options.out.read_text()) if options.out.exists() else {}
    same = all(before.get(name) == value for name, value in setting.items())
    result: dict[str, Any] = setting | {"tasks": before["tasks"] if same else {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mmlu = prepare(folder, options.data, options.rows)
        models = {side: make() for side, make in makers.items()}
        for task, names in {"mmlu": mmlu, "hellaswag": ["hellaswag"], "gsm8k": ["gsm8k"]}.items():
            if task not in options.tasks:
                continue
            took, answers = {}, {}
            for side, model in models.items():
                took[side], answers[side] = measured(model, folder, names)
            found = took | {"agreement": agreement(answers["herd"], answers["hf"]), "load_average": os.getloadavg()[0]}
            result["tasks"][task] = found
            print(task, json.dumps(found), flush=True)
            tell(result, options.out)


def tell(result: dict[str, Any], out: Path) -> None:
    """Keep the result, with what all its tasks took together."""
    for unit in ("seconds", "cpu_seconds"):
        sums = {side: sum(one[side][unit] for one in result["tasks"].values()) for side in ("herd", "hf")}
        result[f"times_faster_by_{unit}"] = sums["hf"] / sums["herd"]
        print(unit, sums, f"{result[f'times_faster_by_{unit}']:.2f} times as fast", flush=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
