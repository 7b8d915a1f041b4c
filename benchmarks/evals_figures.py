"""lm-evaluation-harness's own figures beside Herd's, on the same prompts, weights and rows, item by item.

    python -m benchmarks.evals_figures --data FOLDER [--model FOLDER] [--rows 20] [--out results/evals_figures.json]

The likelihood tasks of `suite=table` (those whose choices follow one prompt) and GSM8K with 8 examples. Each is asked
three times: by Herd's task file, by the harness over Herd's engine, and by the harness's `hf` backend. float32.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from herd.evals.asking import ask, main_metric
from herd.evals.harness import HarnessModel
from herd.evals.scorers import last_number
from herd.evals.subject import Local
from herd.evals.task import Item, Task, items_of, load_task

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "evals"
CHOICES = (
    "boolq",
    "piqa",
    "siqa",
    "openbookqa",
    "arc-easy",
    "arc-challenge-text",
    "hellaswag",
    "truthfulqa-mc1",
    "commonsenseqa",
    "aqua",
    "mmlu",
)
HEAD = "task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
PICK = "output_type: multiple_choice\ndoc_to_text: text\ndoc_to_choice: '{{{{choices}}}}'\ndoc_to_target: gold\n"
FREE = "output_type: generate_until\ndoc_to_text: text\ndoc_to_target: gold\ngeneration_kwargs: {told}\n"
ENDS = {
    "choices": "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "generate": "metric_list: [{metric: exact_match}]\n",
}


def written(task: Task, items: list[Item], folder: Path) -> None:
    """The same questions as a task of the harness: whole prompts, with the examples in them."""
    file = folder / f"{task.name}.jsonl"
    rows = [{"text": str(item.prompt(task, False)), "choices": item.choices, "gold": item.best} for item in items]
    if task.ask == "generate":
        rows = [{"text": row["text"], "gold": item.right[0]} for row, item in zip(rows, items)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = json.dumps({"until": task.stop, "max_gen_toks": task.max_tokens, "do_sample": False})
    body = PICK if task.ask == "choices" else FREE.format(told=told)
    text = HEAD.format(name=task.name, file=file) + body.format() + ENDS[task.ask]
    (folder / f"{task.name}.yaml").write_text(text, encoding="utf-8")


def by_harness(model: Any, task: Task, items: list[Item], folder: Path) -> tuple[list[float], list[Any], float]:
    """Of each question its score by the task's own metric and what came back; seconds."""
    begin = time.perf_counter()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=[task.name], task_manager=manager, bootstrap_iters=0, verbosity="ERROR", batch_size=1
    )
    rows = sorted(found["samples"][task.name], key=lambda row: row["doc_id"])
    if task.ask == "choices":
        metric = {"accuracy": "acc", "accuracy_norm": "acc_norm"}[main_metric(task)]
        came = [[one[0][0] for one in row["resps"]] for row in rows]
        return [float(row[metric]) for row in rows], came, time.perf_counter() - begin
    texts = [row["resps"][0][0].strip() for row in rows]
    scores = [last_number(text, item.right) for text, item in zip(texts, items, strict=True)]
    return scores, texts, time.perf_counter() - begin


def compared(task: Task, items: list[Item], models: dict[str, Any], folder: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    own = ask(task, items, models["herd"].subject, base=True)
    took = {"herd's task file": time.perf_counter() - begin}
    scores = {"herd's task file": [one["scores"][main_metric(task)] for one in own]}
    came = {"herd's task file": [one.get("nats", one["answer"]) for one in own]}
    for side, model in models.items():
        name = f"harness over {side}"
        scores[name], came[name], took[name] = by_harness(model, task, items, folder)
    theirs = came["harness over hf"]
    found: dict[str, Any] = {"n": len(items), "metric": main_metric(task), "shots": task.shots}
    found["figures"] = {name: sum(values) / len(values) for name, values in scores.items()}
    found["same_score"] = {
        name: sum(a == b for a, b in zip(values, scores["harness over hf"])) for name, values in scores.items()
    }
    if task.ask == "choices":
        found["largest_difference_nats"] = {
            name: max(abs(a - b) for one, other in zip(rows, theirs) for a, b in zip(one, other))
            for name, rows in came.items()
        }
    else:
        found["same_text"] = {name: sum(a == b for a, b in zip(rows, theirs)) for name, rows in came.items()}
    return found | {"seconds": {name: round(value, 1) for name, value in took.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("../base-model/SmolLM2-135M-Instruct"))
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--free-rows", type=int, default=5, help="questions of GSM8K")
    parser.add_argument("--max-tokens", type=int, default=160, help="longest answer to them, on all sides")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evals_figures.json")
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    models = {
        "herd": HarnessModel(Local(options.model)),
        "hf": HFLM(pretrained=str(options.model), dtype="float32", device="cpu"),
    }
    told = f"--rows {options.rows} --free-rows {options.free_rows} --max-tokens {options.max_tokens}"
    result: dict[str, Any] = {"command": f"python -m benchmarks.evals_figures --data FOLDER {told}"}
    result |= {"machine": platform.processor() or platform.machine()}
    result |= {"model": options.model.name, "torch": torch.__version__, "threads": torch.get_num_threads()}
    result |= {"lm_eval": lm_eval.__version__, "load_average": round(os.getloadavg()[0], 1), "tasks": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in [*CHOICES, "gsm8k"]:
            limit = options.free_rows if file == "gsm8k" else options.rows
            task = replace(load_task(RECIPES / f"{file}.yaml", options.data, limit), chat=False)
            task = replace(task, max_tokens=min(task.max_tokens, options.max_tokens))
            items = items_of(task)
            written(task, items, folder)
            result["tasks"][task.name] = compared(task, items, models, folder)
            print(task.name, json.dumps(result["tasks"][task.name]), flush=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
