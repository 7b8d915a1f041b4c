"""Herd's GGUF files in llama.cpp: the same greedy tokens, and how far its predictions are from Herd's own.

    python -m venv PEER && PEER/bin/pip install llama-cpp-python      (builds llama.cpp; needs cmake and a C++ compiler)
    python benchmarks/llama_cpp.py CHECKPOINT --peer PEER/bin/python

Writes the checkpoint as bf16, q8_0 and q4_0 GGUF. Both sides read the same files; Herd computes in float32 with the
numbers that the blocks stand for, llama.cpp with its own kernels, which round what they multiply with the weights: to 8
bits beside q8_0 and q4_0, to bfloat16 beside bf16. For the greedy tokens of the bf16 file Herd rounds alike.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from herd.environment import environment
from herd.formats.checkpoint import load
from herd.formats.convert import convert
from herd.formats.vocabulary import open_tokenizer
from herd.model.config import num_parameters

PEER = """
import json, sys
import numpy as np
from llama_cpp import Llama
request = json.load(open(sys.argv[1]))
model = Llama(request["model"], n_ctx=request["context"], n_batch=request["context"], n_threads=1, n_threads_batch=1,
              logits_all=True, type_k=0, type_v=0, verbose=False)
def logits(tokens):
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[:len(tokens)], dtype=np.float32)
rows = np.concatenate([logits(row) for row in request["rows"]]) if request["rows"] else np.zeros(0)
np.save(request["logits"], rows)
answers = []
for prompt in request["prompts"]:
    model.reset()
    model.eval(prompt)
    answer = []
    for _ in range(request["num_tokens"]):
        scores = model.scores[model.n_tokens - 1]
        answer.append(int(scores.argmax()))
        model.eval(answer[-1:])
    answers.append(answer)
json.dump({"answers": answers}, open(request["answers"], "w"))
"""
RESULT = Path(__file__).parent / "results" / "llama_cpp.json"
CLOSE = 1e-2  # two best logits nearer than this may change places
CONTEXT, NUM_TOKENS = 256, 64


def peer(python: str, folder: Path, model: Path, rows: list[list[int]], prompts: list[list[int]]):
    """llama.cpp's logits after every token of the rows, and its greedy answers to the prompts."""
    request = {"model": str(model), "context": CONTEXT, "rows": rows, "prompts": prompts, "num_tokens": NUM_TOKENS}
    request |= {"logits": str(folder / "logits.npy"), "answers": str(folder / "answers.json")}
    (folder / "request.json").write_text(json.dumps(request))
    subprocess.run([python, "-c", PEER, str(folder / "request.json")], check=True)
    return np.load(request["logits"]), json.loads((folder / "answers.json").read_text())["answers"]


@torch.inference_mode()
def logits_of(model, row: list[int], *, rounded: bool = False) -> torch.Tensor:
    """Logits of one row (T, V); `rounded` gives every product with the weights a left side in bfloat16."""
    if not rounded:
        return model(torch.tensor([row]))[0]
    halve = lambda _, inputs: (inputs[0].bfloat16().float(),)  # noqa: E731
    linears = [module for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)]
    hooks = [module.register_forward_pre_hook(halve) for module in linears]
    try:
        tokens = torch.tensor([row])
        hidden = model.model(model.model.embed(tokens), torch.arange(len(row))[None])
        return model.lm_head.logits(hidden.bfloat16().float())[0]
    finally:
        for hook in hooks:
            hook.remove()


def divergence(model, rows: list[list[int]], theirs: np.ndarray) -> dict[str, float]:
    """Kullback-Leibler divergence of llama.cpp's predictions from Herd's, mean of the tokens, in nats."""
    ours = torch.cat([logits_of(model, row) for row in rows]).log_softmax(-1)
    other = torch.from_numpy(theirs).log_softmax(-1)
    each = (ours.exp() * (ours - other)).sum(-1)
    return {
        "divergence_nats": float(each.mean()),
        "largest_divergence_nats": float(each.max()),
        "largest_log_probability_difference": float((ours - other).abs().max()),
        "same_likeliest_token": float((ours.argmax(-1) == other.argmax(-1)).float().mean()),
        "tokens": len(each),
    }


def greedy(model, prompts: list[list[int]], answers: list[list[int]], *, rounded: bool) -> dict[str, object]:
    """How far each of llama.cpp's greedy answers is Herd's too, and how near the two best logits were where it ends."""
    equal, gaps = 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = logits_of(model, prompt + answer, rounded=rounded)[len(prompt) - 1 : -1]
        for row, token in zip(logits, answer, strict=True):
            best = row.topk(2)
            if int(best.indices[0]) != token:
                gaps.append(float(best.values[0] - best.values[1]))
                break
            equal += 1
    ties = sum(gap < CLOSE for gap in gaps)
    return {
        "prompts": len(prompts),
        "tokens_asked": sum(map(len, answers)),
        "tokens_equal": equal,
        "ended_at_a_tie": ties,
        "ended_otherwise": len(gaps) - ties,
        "gaps_of_the_two_best_logits_where_it_ended": gaps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--peer", required=True, help="the Python that has llama-cpp-python")
    options = parser.parse_args()
    tokenizer = open_tokenizer(options.checkpoint)
    ids = tokenizer.encode(inspect.getsource(argparse))
    rows = [[tokenizer.bos_id, *ids[i : i + CONTEXT - 1]] for i in range(0, 8 * CONTEXT, CONTEXT)]
    prompts = [row[:24] for row in rows]
    figures: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("float32", "bfloat16", "q8_0", "q4_0"):
            file = Path(scratch) / f"{precision}.gguf"
            convert(options.checkpoint, file, precision=precision)
            model = load(file, dtype=torch.float32)
            logits, answers = peer(options.peer, Path(scratch), file, rows, prompts)
            rounded = precision == "bfloat16"
            figures[precision] = {"bytes": file.stat().st_size, "text": divergence(model, rows, logits)}
            figures[precision]["greedy"] = greedy(model, prompts, answers, rounded=rounded)
            if rounded:
                figures[precision]["greedy_beside_float32"] = greedy(model, prompts, answers, rounded=False)
            print(precision, figures[precision], file=sys.stderr)
    version = subprocess.run(
        [options.peer, "-c", "import llama_cpp; print(llama_cpp.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    here = environment()
    here["command"] = "python benchmarks/llama_cpp.py CHECKPOINT --peer PEER/bin/python"
    parameters = num_parameters(model.config)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "commit": commit,
        "llama_cpp_python": version,
        "parameters": parameters,
        "figures": figures,
        "environment": here,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
