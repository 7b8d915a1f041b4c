"""Converting an 8B-shaped checkpoint: time, and the most anonymous memory it takes.

    python benchmarks/convert.py FOLDER [--layers 32]

Makes a folder of Llama 3.1 8B's shape with random weights inside FOLDER (16 GB), converts it to Q8_0 GGUF and to eight
of Meta's shards, each in a process of its own whose RssAnon is read five times a second, then deletes everything again.
Needs 33 GB of disk. Mapped files are not counted: the system takes those pages back whenever it needs them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from herd.environment import environment
from herd.formats.safetensors import plan_files, write_index, write_safetensors
from herd.formats.stored import expected_shapes, spans
from herd.model.config import ModelConfig, RopeScaling, num_parameters

RESULT = Path(__file__).parent / "results" / "convert.json"
CONVERSIONS = {"gguf q8_0": ["x.gguf", "precision=q8_0"], "meta, 8 shards": ["x-meta", "format=meta", "shards=8"]}


def config_of(num_layers: int) -> ModelConfig:
    """Llama 3.1 8B, or fewer of its layers."""
    return ModelConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rope_scaling=RopeScaling(),
        bos_token_id=128_000,
        eos_token_id=128_001,
    )


def make(folder: Path, config: ModelConfig) -> None:
    """A folder of random weights, written a piece at a time."""
    folder.mkdir(parents=True)
    shapes = expected_shapes(config)
    drawn = torch.randn(20_000_000, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    files = plan_files(shapes, torch.bfloat16, 5_000_000_000)

    def pieces(name: str):
        shape = shapes[name]
        for number, (begin, end) in enumerate(spans(shape, config.head_dim)):
            if len(shape) == 1:
                yield torch.ones(end - begin, dtype=torch.bfloat16)
            else:  # another part of what was drawn for each tensor and piece
                begin_at = hash((name, number)) % (len(drawn) - (end - begin) * shape[1] + 1)
                yield drawn[begin_at : begin_at + (end - begin) * shape[1]]

    for file, names in files.items():
        for _ in write_safetensors(
            folder / file,
            {name: shapes[name] for name in names},
            torch.bfloat16,
            {name: pieces(name) for name in names},
        ):
            pass
    if len(files) > 1:
        write_index(folder, files, 2 * num_parameters(config))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def measured(words: list[str]) -> dict[str, float | str]:
    """Run `herd` with these words; its time and its largest RssAnon in bytes."""
    began, peak = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-m", "herd", *words], stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"herd {' '.join(words)} failed")
    return {
        "seconds": round(time.monotonic() - began, 1),
        "peak_anonymous_bytes": peak,
        "result": json.loads(process.stdout.read()),
    }


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    config = config_of(options.layers)
    source = options.folder / "source"
    figures: dict[str, dict] = {}
    try:
        make(source, config)
        for name, (target, *choices) in CONVERSIONS.items():
            out = options.folder / target
            figures[name] = measured(["convert", str(source), str(out), *choices, "--json"])
            figures[name]["result"].pop("path")
            print(name, figures[name], file=sys.stderr)
            shutil.rmtree(out) if out.is_dir() else out.unlink()
            write(config, options.layers, figures)
    finally:
        shutil.rmtree(source, ignore_errors=True)


def write(config: ModelConfig, num_layers: int, figures: dict[str, dict]) -> None:
    """The figures so far, with hardware, commit and command."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    here = environment() | {"command": f"python benchmarks/convert.py FOLDER --layers {num_layers}"}
    result = {"commit": commit, "parameters": num_parameters(config), "threads": torch.get_num_threads()}
    RESULT.write_text(json.dumps(result | {"figures": figures, "environment": here}, indent=1) + "\n")


if __name__ == "__main__":
    main()
