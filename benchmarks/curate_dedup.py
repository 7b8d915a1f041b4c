"""Near-duplicates at scale: precision, recall, documents per second and peak memory, beside datatrove.

    python benchmarks/curate_dedup.py

A synthetic corpus with planted clusters of 2 to 1,000 documents whose similarity to the cluster's first document is
known exactly (Jaccard 0.5 to 1.0 over word 5-grams). Herd runs at two sizes to compare its peak memory; datatrove
(in an environment of its own, made once under runs/benchmarks) runs at the small size on the same texts. Rates are
documents per second of CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
import venv
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEER = ["datatrove[io,processing]==0.10.0", "spacy==3.8.18", "orjson"]
WORDS, NGRAM = 120, 5
SHINGLES = WORDS - NGRAM + 1
PART = 10_000
SIZES = (2, 2, 2, 3, 3, 5, 10, 30, 100, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--peers", type=Path, default=ROOT / "runs/benchmarks", help="where environments are made")
    parser.add_argument("--worker", nargs=3, metavar=("SYSTEM", "DOCUMENTS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        system, documents, folder = options.worker
        {"herd": run_herd, "datatrove": run_datatrove}[system](int(documents), Path(folder))
        return
    work = options.peers / "curate_dedup"
    runs = {f"herd {size}": run("herd", sys.executable, size, work) for size in options.sizes}
    small = options.sizes[0]
    runs[f"datatrove {small}"] = run("datatrove", environment(options.peers / "datatrove"), small, work)
    result = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), "peer": PEER}
    result |= {"words": WORDS, "ngram_words": NGRAM, "bands": 14, "rows": 8, "similarity": 0.7, "runs": runs}
    (ROOT / "benchmarks/results/curate_dedup.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(runs, indent=1))


# ---- the corpus ------------------------------------------------------------------------------------------------------


def corpus(num_documents: int):
    """Batches of (texts, cluster (n,), changed shingles (n,)); the first document of a cluster comes first."""
    draw = np.random.default_rng(7)
    vocabulary = np.array(["".join(draw.choice(list("abcdefghijklmnoprstu"), 6)) for _ in range(50_000)])
    cluster, changed, number = [], [], 0
    done = 0
    while done < num_documents:
        rows = []
        while len(rows) < PART and done + len(rows) < num_documents:
            size = int(draw.choice(SIZES)) if draw.random() < 0.1 else 1
            base = draw.integers(0, len(vocabulary), WORDS)
            for member in range(min(size, num_documents - done - len(rows))):
                words = base
                change = 0
                if member:
                    change = int(draw.integers(0, SHINGLES // 3 + 1))  # Jaccard (S - c) / (S + c): 0.5 to 1
                    change = 0 if change < NGRAM else change
                    words = base.copy()
                    if change:  # a stretch inside, so that exactly `change` n-grams differ
                        length = change - NGRAM + 1
                        start = int(draw.integers(NGRAM - 1, WORDS - length - NGRAM + 2))
                        words[start : start + length] = draw.integers(0, len(vocabulary), length)
                rows.append(words)
                cluster.append(number)
                changed.append(change)
            number += 1
        count = len(rows)
        texts = [" ".join(row) for row in vocabulary[np.stack(rows)]]
        yield texts, np.array(cluster), np.array(changed)
        cluster, changed = [], []
        done += count


def score(dropped: np.ndarray, cluster: np.ndarray, changed: np.ndarray, kept_cluster: np.ndarray) -> dict:
    """Precision over all that was dropped; recall by exact similarity to the cluster's first document."""
    first = np.r_[True, cluster[1:] != cluster[:-1]]
    jaccard = (SHINGLES - changed) / (SHINGLES + changed)
    recall = {}
    for low, high in ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0), (1.0, 1.1)):
        mine = ~first & (jaccard >= low) & (jaccard < high)
        recall[f"{low:.1f} to {min(high, 1.0):.1f}"] = [int(mine.sum()), round(float(dropped[mine].mean()), 4)]
    right = cluster[dropped] == kept_cluster[dropped]
    over = ~first & (jaccard >= 0.7)
    return {
        "dropped": int(dropped.sum()),
        "precision": round(float(right.mean()), 5),
        "recall_from_0.7": round(float(dropped[over].mean()), 4),
        "documents_and_recall_by_jaccard": recall,
    }


# ---- running ---------------------------------------------------------------------------------------------------------


def run(system: str, python: str, documents: int, work: Path) -> dict:
    """One run as a process of its own."""
    folder = work / f"{system}-{documents}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(
        [python, __file__, "--worker", system, str(documents), str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    result = folder / "result.json"
    if done.returncode or not result.exists():
        if system == "herd":
            raise RuntimeError(done.stderr)
        return {"error": done.stderr.strip().split("\n")[-1]}
    found = json.loads(result.read_text())
    shutil.rmtree(folder)
    return found


def run_herd(documents: int, folder: Path) -> None:
    """Signatures part by part, then the step over the whole corpus."""
    sys.path.insert(0, str(ROOT))
    import pyarrow as pa

    from herd.config import to_dict
    from herd.curate.dedup.duplicates import DocumentDedup
    from herd.curate.dedup.steps import Corpus, drop_near_duplicates
    from herd.curate.extract.part import keys_of
    from herd.curate.parts import save_array, save_table

    options = DocumentDedup(keep="first")
    for name in ("text", "keys"):
        (folder / name).mkdir()
    names, rows, clusters, changes, seconds = [], [], [], [], 0.0
    for number, (texts, cluster, changed) in enumerate(corpus(documents)):
        table = pa.table({"text": pa.array(texts, pa.large_string())})
        urls = pa.array([f"c{c}" for c in cluster])
        blank, kind = pa.nulls(len(texts), pa.string()), pa.array(["text"] * len(texts))
        table = table.append_column("url", urls).append_column("drop", blank).append_column("kind", kind)
        began = time.process_time()
        save_table(table, folder / f"text/{number:05d}.parquet")
        job = {"documents": to_dict(options), "lines": False}
        for what, array in keys_of(table, np.zeros(len(texts), np.int64), job).items():
            save_array(array, folder / f"keys/{number:05d}.{what}.npy")
        seconds += time.process_time() - began
        names.append(f"{number:05d}")
        rows.append(len(texts))
        clusters.append(cluster)
        changes.append(changed)
    cluster, changed = np.concatenate(clusters), np.concatenate(changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    memory = 64_000_000
    drop_near_duplicates(Corpus(folder, names, rows, memory), options)
    globally = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dropped, kept = np.zeros(documents, bool), np.full(documents, -1)
    for part, first in enumerate(np.cumsum([0, *rows])[:-1]):
        copies = np.load(folder / f"keys/{names[part]}.copy.npy")
        dropped[first + copies["doc"]] = True
        kept[first + copies["doc"]] = [int(url[1:]) for url in copies["url"].tolist()]
    figures = {
        "documents": documents,
        "signature_documents_per_cpu_second": round(documents / seconds),
        "clustering_documents_per_cpu_second": round(documents / globally),
        "documents_per_cpu_second": round(documents / (seconds + globally)),
        "partition_memory_bytes": memory,
        "peak_bytes_before_clustering": before * 1024,
        "peak_bytes": peak * 1024,
    }
    (folder / "result.json").write_text(json.dumps(figures | score(dropped, cluster, changed, kept)))


def run_datatrove(documents: int, folder: Path) -> None:
    """datatrove's four stages of MinHash deduplication, one worker, on the same texts."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    (folder / "input").mkdir()
    clusters, changes, number = [], [], 0
    with open(folder / "input/texts.jsonl", "w", encoding="utf-8") as file:
        for texts, cluster, changed in corpus(documents):
            for text in texts:
                file.write(json.dumps({"text": text, "id": str(number)}) + "\n")
                number += 1
            clusters.append(cluster)
            changes.append(changed)
    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=NGRAM)
    reader = JsonlReader(str(folder / "input"))
    sig, buckets, remove = (str(folder / name) for name in ("sig", "buckets", "remove"))
    signature = MinhashDedupSignature(output_folder=sig, config=config)
    keep = JsonlWriter(str(folder / "kept"), compression=None)
    drop = MinhashDedupFilter(
        input_folder=remove, exclusion_writer=JsonlWriter(str(folder / "dropped"), compression=None)
    )
    stages = [
        ([reader, signature], 1),
        ([MinhashDedupBuckets(input_folder=sig, output_folder=buckets, config=config)], 14),
        ([MinhashDedupCluster(input_folder=buckets, output_folder=remove, config=config)], 1),
        ([reader, drop, keep], 1),
    ]
    began = cpu_seconds()
    for steps, tasks in stages:
        LocalPipelineExecutor(steps, tasks=tasks, workers=1, skip_completed=False).run()
    seconds = cpu_seconds() - began
    dropped = np.zeros(documents, bool)
    for file in (folder / "dropped").rglob("*.jsonl"):
        for line in file.read_text().splitlines():
            dropped[int(json.loads(line)["id"])] = True
    cluster, changed = np.concatenate(clusters), np.concatenate(changes)
    counts = Counter(cluster.tolist())
    kept = np.array([c if counts[c] > 1 else -1 for c in cluster.tolist()])  # it does not say what is the original
    figures = {"documents": documents, "documents_per_cpu_second": round(documents / seconds)}
    figures["peak_bytes"] = 1024 * max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    (folder / "result.json").write_text(json.dumps(figures | score(dropped, cluster, changed, kept)))


def cpu_seconds() -> float:
    """CPU time of this process and its children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def environment(place: Path) -> str:
    """The Python of datatrove's own environment."""
    python = place / "bin/python"
    if not python.exists():
        venv.create(place, with_pip=True)
        for packages in (["--upgrade", "pip"], PEER):
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, capture_output=True)
    return str(python)


def machine() -> dict:
    """What the figures were measured on."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {"processor": model.partition(":")[2].strip(), "python": platform.python_version()}


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
