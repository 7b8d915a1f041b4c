"""README's table: the committed results of the main stages beside the best peer of each, made from their files.

    python -m benchmarks.summary [--write]

Prints the table; `--write` puts it into README.md between its two marks. A test holds README to it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- python -m benchmarks.summary -->", "<!-- end -->"


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    return found


def rows() -> Iterator[tuple[str, float, float, str, str, bool]]:
    """What is measured, Herd's figure, the best peer's, its name, the result's file, and whether less is better."""
    extraction = result("curate_extraction")["sets"]["html-readability"]
    peers = {name: figures["score"] for name, figures in extraction.items() if name != "herd"}
    best = max(peers, key=lambda name: peers[name])
    yield (
        "extraction, F1 on 48 pages of Readability's tests",
        extraction["herd"]["score"],
        peers[best],
        best,
        "curate_extraction",
        False,
    )
    speeds = {name: figures["pages per second"] for name, figures in extraction.items()}
    yield (
        "the same, pages a second on one core",
        speeds["herd"],
        speeds["trafilatura"],
        "trafilatura",
        "curate_extraction",
        False,
    )
    documents = result("curate_pipeline")["documents_per_second"]
    yield "curation, pages a second", documents["herd"], documents["datatrove"], "datatrove", "curate_pipeline", False
    tokenizer = {(row["what"], row["with"]): row["seconds"] for row in result("tokenizer")["rows"]}
    trained = [tokenizer["train 32000", name] for name in ("herd", "rustbpe")]
    yield "a vocabulary of 32,000 from 38 MB, seconds", *trained, "rustbpe", "tokenizer", True
    training = {row["name"]: row["tokens_per_second"] for row in result("train-60m-compiled")["results"]}
    herd = training.pop("herd:auto")
    best = max(training, key=lambda name: training[name])
    yield (
        "training 60M parameters, tokens a second",
        herd,
        training[best],
        best.split(":")[0] + ", compiled",
        "train-60m-compiled",
        False,
    )
    decoding = result("infer-1b")["runs"]["decode"]["tokens_per_second"]
    for ours, theirs in (("bf16", "BF16"), ("int4", "Q4_0")):
        figures = decoding[f"Herd {ours}"], decoding[f"llama.cpp {theirs}"]
        yield f"one answer of a 1B model in {ours}, tokens a second", *figures, "llama.cpp", "infer-1b", False
    served = {name: figures["requests_per_second"] for name, figures in result("serve")["figures"]["many"].items()}
    yield (
        "16 clients at once, requests a second",
        served["herd serve"],
        served["llama.cpp server"],
        "llama.cpp",
        "serve",
        False,
    )


def table() -> str:
    """In Markdown; how many times as good is a ratio of the two figures."""
    lines = ["| two CPU cores | Herd | best peer | | |", "|---|---:|---:|---|---:|"]
    for what, ours, theirs, peer, file, is_less_better in rows():
        times = f"{theirs / ours if is_less_better else ours / theirs:.2f} times"
        shown = [f"{figure:.3f}" if figure < 1 else f"{figure:.4g}" for figure in (ours, theirs)]
        lines.append(f"| [{what}](benchmarks/results/{file}.json) | {shown[0]} | {shown[1]} | {peer} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        before, rest = readme.read_text("utf-8").split(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", "utf-8")
    print(table())


if __name__ == "__main__":
    main()
