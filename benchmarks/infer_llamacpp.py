"""llama.cpp's side of benchmarks/infer.py: run by the Python of its own environment, driven line by line over a pipe.

Each line on standard input is a JSON object; each answer is one line on standard output. `quantize` writes a smaller
copy of a GGUF file, `generate` computes prompts together and decodes so many tokens greedily for each.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

import llama_cpp.llama_cpp as llama
import numpy as np

BATCH = 512
FILE_TYPES = {"Q8_0": 7, "Q4_0": 2}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp's own chatter goes to standard error
    llama.llama_backend_init()
    state: dict = {}
    for line in sys.stdin:
        task = json.loads(line)
        answers.write(json.dumps(globals()[task.pop("do")](state, **task)) + "\n")
        answers.flush()


def quantize(state: dict, source: str, target: str, kind: str) -> dict:
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[kind], 2
    return {"ok": llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) == 0}


def load(state: dict, file: str, context: int, sequences: int, threads: int) -> dict:
    state["model"] = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context, BATCH, BATCH, sequences
    params.n_threads = params.n_threads_batch = threads
    state["context"] = llama.llama_init_from_model(state["model"], params)
    state["vocab_size"] = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(state["model"]))
    state["batch"] = llama.llama_batch_init(BATCH, 0, 1)
    return {"ok": bool(state["context"]), "system": llama.llama_print_system_info().decode()}


def generate(state: dict, prompts: list[list[int]], num_tokens: int) -> dict:
    """Seconds until the first tokens, and for the rest."""
    llama.llama_memory_clear(llama.llama_get_memory(state["context"]), True)
    began = time.perf_counter()
    last = []
    for sequence, prompt in enumerate(prompts):
        for start in range(0, len(prompt), BATCH):
            part = prompt[start : start + BATCH]
            end = start + len(part) == len(prompt)
            rows = [(token, start + i, sequence, end and i == len(part) - 1) for i, token in enumerate(part)]
            decode(state, rows)
        last.append(likeliest(state, len(prompt) % BATCH - 1 if len(prompt) % BATCH else BATCH - 1))
    first = time.perf_counter()
    for step in range(num_tokens - 1):
        decode(state, [(token, len(prompts[n]) + step, n, True) for n, token in enumerate(last)])
        last = [likeliest(state, n) for n in range(len(last))]
    return {"first": first - began, "rest": time.perf_counter() - first}


def decode(state: dict, rows: list[tuple[int, int, int, bool]]) -> None:
    batch = state["batch"]
    batch.n_tokens = len(rows)
    for i, (token, place, sequence, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
        batch.seq_id[i][0], batch.logits[i] = sequence, wanted
    if llama.llama_decode(state["context"], batch) != 0:
        raise RuntimeError("llama_decode failed")


def likeliest(state: dict, row: int) -> int:
    logits = llama.llama_get_logits_ith(state["context"], row)
    return int(np.ctypeslib.as_array(logits, shape=(state["vocab_size"],)).argmax())


if __name__ == "__main__":
    main()
