"""Code Shield on insecure code that people wrote, and on code that is in order.

    python -m benchmarks.shield

CyberSecEval's insecure-code prompts come with the code they were taken from, its language, the CWE and the line that is
insecure: how many of these are found, by language, in the code and on that line. Who wrote the rules had read the list
of patterns that CyberSecEval looks for, and one of its rows, but not the others' code. Then how many files of the
standard library and how many solutions of MBPP and HumanEval are flagged, and what either layer takes. The result goes
to benchmarks/results/shield.json.
"""

from __future__ import annotations

import gzip
import json
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curate_extraction import commit, machine
from herd.evals.statistics import wilson
from herd.safety.shield import Finding, Shield

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "shield.json"
RELATED = {"CWE-94": "CWE-95", "CWE-119": "CWE-120", "CWE-121": "CWE-120", "CWE-327": "CWE-328", "CWE-338": "CWE-330"}
"""CWEs that are parts of one another, brought to one, so that MD5 as 327 and as 328 is the same finding."""


def read(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def share(hits: Iterable[bool]) -> dict[str, float]:
    values = [float(hit) for hit in hits]
    interval = wilson(values)
    return {"share": round(interval.value, 4), "low": round(interval.low, 4), "high": round(interval.high, 4)} | {
        "rows": len(values)
    }


def insecure(shield: Shield, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is found in the code that holds a known line, by language."""
    table: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    fast: list[float] = []
    both: list[float] = []
    for row in rows:
        code = row["origin_code"]
        if row["line_text"].strip() not in code:
            code = f"{code}\n{row['line_text']}"
        number = code[: code.index(row["line_text"].strip())].count("\n") + 1
        timed(shield, code, row["language"], fast, "fast")
        found = timed(shield, code, row["language"], both, "both")
        counted = [one for one in found if one.counts]
        there = [one for one in counted if abs(one.line - number) <= 1]
        for name in ("all", row["language"]):
            table[name]["in the code"].append(bool(counted))
            table[name]["on the line"].append(bool(there))
            table[name]["on the line, same CWE"].append(any(same(one.cwe, row["cwe_identifier"]) for one in there))
            table[name]["on the line, notes too"].append(any(abs(one.line - number) <= 1 for one in found))
            table[name]["blocked"].append(any(one.severity == "block" for one in counted))
    told = {name: {what: share(hits) for what, hits in one.items()} for name, one in sorted(table.items())}
    return told | {"milliseconds": {"fast": percentiles(fast), "both": percentiles(both)}}


def timed(shield: Shield, code: str, language: str, times: list[float], layers: Any) -> list[Finding]:
    began = time.perf_counter()
    found = shield.scan(code, language, layers=layers)
    times.append(1000 * (time.perf_counter() - began))
    return found


def percentiles(times: list[float]) -> dict[str, float]:
    return {f"p{at}": round(float(np.percentile(times, at)), 2) for at in (50, 95)} | {"most": round(max(times), 1)}


def same(one: str, other: str) -> bool:
    return RELATED.get(one, one) == RELATED.get(other, other)


def in_order(shield: Shield, codes: list[str]) -> dict[str, Any]:
    """How much of code that people rely on is flagged."""
    fast: list[float] = []
    counts: Counter[str] = Counter()
    worst: list[str] = []
    for code in codes:
        timed(shield, code, "python", fast, "fast")
        found = [one for one in shield.scan(code, "python") if one.counts]
        counts.update({one.rule for one in found})
        worst.append(min((one.severity for one in found), default="none"))  # block comes before warn
    return {
        "blocked": share(one == "block" for one in worst),
        "blocked or warned": share(one != "none" for one in worst),
        "by rule": dict(counts.most_common()),
        "fast layer, milliseconds": percentiles(fast),
    }


def standard_library() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    files = (file for file in sorted(root.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(file.parts))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def main() -> None:
    shield = Shield()
    rows = [row for name in ("autocomplete", "instruct") for row in read(f"safety-cyberseceval/{name}.jsonl.gz")]
    once = list({(row["origin_code"], row["line_text"]): row for row in rows}.values())
    found = {
        "machine": machine(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.shield",
        "rules": len(shield.rules),
        "cyberseceval": insecure(shield, once),
        "standard library": in_order(shield, standard_library()),
        "humaneval": in_order(
            shield, [row["prompt"] + row["canonical_solution"] for row in read("bench-humaneval/HumanEval.jsonl.gz")]
        ),
        "mbpp": in_order(shield, [row["code"] for row in read("bench-mbpp/mbpp.jsonl.gz")]),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
