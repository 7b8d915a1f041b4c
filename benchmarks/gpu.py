"""All that a GPU must show, in one command of ten minutes: the GPU tests, training, a short real run, the engine.

    python -m benchmarks.gpu [--device cpu --tiny]

Each part is a command of its own under its own limit; one that fails does not stop the others, and the exit status
tells. Results are those of the parts (benchmarks/results/train-gpu.json, infer-gpu.json). `--device cpu --tiny`
rehearses everything without a GPU; its results go to a temporary folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def parts(out: Path, *, rehearsal: bool, run: Path) -> dict[str, tuple[list[str], int]]:
    """Each part's command, without the interpreter, and its limit in seconds."""
    where = ["--device", "cpu", "--tiny"] if rehearsal else []
    train = ["benchmarks/train_gpu.py", *where, "--out", str(out / "train-gpu.json")]
    infer = [
        "benchmarks/infer_gpu.py",
        *where,
        *(["--alone", "--tasks", "decode"] if rehearsal else []),
        "--out",
        str(out / "infer-gpu.json"),
    ]
    go_on = ["--run", str(run), "--run-steps", "4" if rehearsal else "400", "--seconds", "90"]
    return {
        "GPU tests": (["-m", "pytest", "-m", "gpu", "-rs"], 150),
        "training": ([*train, "--steps", "8"], 150),
        "a run": ([*train, *go_on], 120),
        "engine": ([*infer, "--seconds", "150"], 180),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU")
    options = parser.parse_args()
    rehearsal = options.device == "cpu"
    if rehearsal != options.tiny:
        parser.error("a rehearsal is --device cpu --tiny")
    failed = []
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) if rehearsal else RESULTS
        for name, (words, limit) in parts(out, rehearsal=rehearsal, run=Path(place) / "run").items():
            print(f"== {name}: python {' '.join(words)}", flush=True)
            began = time.monotonic()
            try:
                status = subprocess.run([sys.executable, *words], cwd=RESULTS.parent.parent, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                status = 124
            if status not in (0, 5) or (status == 5 and name != "GPU tests"):  # 5: no test was chosen
                failed.append(f"{name} ({'over its limit' if status == 124 else f'status {status}'})")
            print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
