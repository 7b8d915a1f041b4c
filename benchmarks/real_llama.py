"""A model that nobody here made, beside llama.cpp on the same 4-bit file: predictions, and greedy answers.

    make base-model
    python benchmarks/real_llama.py ../shared/data/text-wikitext2/FILE

llama.cpp (the wheel `xllamacpp`) gives for each place the 1,000 likeliest tokens; the divergence is taken over these
and all others together, so it is a lower bound, and a near one: the rest has little of the probability.
Herd computes in float32 with the numbers that the blocks stand for, llama.cpp rounds what it multiplies with them to
8 bits: `--answers` asks it for the greedy answers again from a file of the same numbers in float32, where it rounds
nothing, and puts them beside the others. The model is Instruct; the text is an encyclopedia's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import tempfile
import urllib.request
from pathlib import Path

import torch
import xllamacpp

from herd.environment import environment
from herd.formats.checkpoint import open_checkpoint
from herd.formats.convert import convert
from herd.model.llama import Llama
from herd.tokenizer.chat import render, stops
from herd.tokenizer.tokenizer import Tokenizer

RESULT = Path(__file__).parent / "results" / "real_llama.json"
ROW, NUM_ROWS, BEST, NEAR = 250, 8, 1000, 0.2
NUM_TOKENS = 48
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three primary colours.",
    "Who wrote Hamlet?",
)


def text_of(path: Path) -> str:
    """The text of a file: plain, or the `text` of JSON lines."""
    data = path.read_bytes()
    content = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    if content.lstrip()[:1] == "{":
        return "\n".join(json.loads(line)["text"] for line in content.splitlines() if line.strip())
    return content


class LlamaCpp:
    """llama.cpp's own server in this process."""

    def __init__(self, path: Path) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
        parameters.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(parameters)

    def ask(self, prompt: list[int], **options: object) -> dict:
        body = {"prompt": prompt, "temperature": 0.0, "cache_prompt": True, **options}
        request = urllib.request.Request(self.server.listening_address + "/completion", json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def divergence(theirs: list[dict], ours: torch.Tensor) -> float:
    """KL of llama.cpp's prediction from Herd's in nats, over its likeliest tokens and the rest as one."""
    ids = torch.tensor([one["id"] for one in theirs])
    p = torch.tensor([one["logprob"] for one in theirs], dtype=torch.float64)
    q = torch.log_softmax(ours.double(), -1)[ids]
    inside = float((p.exp() * (p - q)).sum())
    rest_p, rest_q = max(1 - float(p.exp().sum()), 0.0), max(1 - float(q.exp().sum()), 1e-12)
    return inside + (rest_p * math.log(rest_p / rest_q) if rest_p > 1e-9 else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    usual = Path(os.environ.get("HERD_BASE_MODEL") or Path(__file__).resolve().parents[2] / "base-model")
    parser.add_argument("--model", type=Path, default=usual / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--answers", action="store_true")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.model)
    tokenizer, model = checkpoint.tokenizer, checkpoint.load(dtype=torch.float32)
    if args.answers:
        result = json.loads(RESULT.read_text()) | {"answers": answers(args.model, tokenizer, model)}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result["answers"], indent=1))
        return
    ids = tokenizer.encode(text_of(args.text)[: 20 * ROW * args.rows])
    theirs = LlamaCpp(args.model)
    found, same = [], 0
    for row in (ids[i * ROW : (i + 1) * ROW] for i in range(args.rows)):
        with torch.inference_mode():
            logits = model(torch.tensor([row]))[0]
        for place in range(len(row)):
            told = theirs.ask(row[: place + 1], n_predict=1, n_probs=BEST)["completion_probabilities"][0]
            found.append(divergence(told["top_logprobs"], logits[place]))
            same += told["top_logprobs"][0]["id"] == int(logits[place].argmax())
    result = {
        "environment": environment(),
        "model": args.model.name,
        "text": args.text.name,
        "tokens": len(found),
        "mean_divergence_nats": sum(found) / len(found),
        "largest_divergence_nats": max(found),
        "same_likeliest_token": same / len(found),
        "greedy": [greedy(theirs, tokenizer, model, question) for question in QUESTIONS],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=1))


def answers(path: Path, tokenizer: Tokenizer, model: Llama) -> dict:
    """llama.cpp's answers from the file and from its numbers in float32, beside Herd's."""
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "float32.gguf"
        convert(path, exact, precision="float32", check=False)
        theirs = {"the file": LlamaCpp(path), "its numbers in float32": LlamaCpp(exact)}
        found = {name: [greedy(one, tokenizer, model, q) for q in QUESTIONS] for name, one in theirs.items()}
    return {"environment": environment(), **found}


@torch.inference_mode()
def greedy(theirs: LlamaCpp, tokenizer: Tokenizer, model: Llama, question: str) -> dict:
    """How far both give the same answer, and how near the two tokens were (in logits) where they part."""
    prompt = render(tokenizer, [{"role": "user", "content": question}], generation_prompt=True).tokens
    told = theirs.ask(prompt, n_predict=NUM_TOKENS, return_tokens=True)["tokens"]
    for place, token in enumerate(told):
        logits = model(torch.tensor([prompt + told[:place]]))[0, -1]
        if (best := int(logits.argmax())) != token:
            gap = float(logits[best] - logits[token])
            return {"question": question, "same": place, "gap": gap, "near": gap < NEAR}
        if token in stops(tokenizer):
            break
    return {"question": question, "same": len(told), "gap": 0.0, "near": True}


if __name__ == "__main__":
    main()
