"""The filters' speed and judgement: what each costs on one core, and the small classifier beside fastText.

    python benchmarks/curate_filters.py ../shared/data

Texts are those of the annotated web pages (prose) and of the running Python's library (code). The classifier and
fastText (its own wheel, in an environment of its own) learn the same labels from the same files, one after the other:
from which of the sets that P3 is made of a prompt comes; a fifth, chosen by a hash of the text, is held out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import sysconfig
import time
import venv
import zlib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.curate_extraction import commit, machine  # noqa: E402
from herd.curate.extract.html import html_to_text  # noqa: E402
from herd.curate.filters.decontaminate import Benchmarks, Contamination  # noqa: E402
from herd.curate.filters.heuristics import WEB_FILTERS, reasons  # noqa: E402
from herd.curate.filters.language import language, paragraph_languages  # noqa: E402
from herd.curate.filters.outliers import Outliers, WordCounts  # noqa: E402
from herd.curate.filters.text import Text, technical_kind  # noqa: E402
from herd.curate.judge.classifier import Training, train  # noqa: E402
from herd.curate.judge.documents import Rules  # noqa: E402
from herd.curate.judge.quality import quality  # noqa: E402
from herd.curate.ngrams import word_numbers  # noqa: E402
from herd.curate.privacy.personal import find_pii  # noqa: E402

FASTTEXT = "fasttext-numpy2==0.10.4"
TEXTS_PER_SOURCE = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of shared data")
    data = parser.parse_args().data
    result = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}
    prose, code = prose_of(data), code_of()
    result["texts"] = {
        name: {"documents": len(t), "MB": megabytes(t)} for name, t in (("prose", prose), ("code", code))
    }
    result["speed"] = {**speeds("prose", prose, data), **speeds("code", code, data, only=("personal data",))}
    result["dropped"] = dropped(prose)
    result["classifier"] = classifiers(data)
    (ROOT / "benchmarks/results/curate_filters.json").write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "benchmarks/results/curate_filters.md").write_text(table(result))
    print(table(result))


def prose_of(data: Path) -> list[str]:
    pages = []
    for name in ("html-article-extraction", "html-trafilatura"):
        with gzip.open(data / name / "pages.jsonl.gz", "rt", encoding="utf-8") as file:
            pages += [json.loads(line)["html"] for line in file]
    return [text for text in map(html_to_text, pages) if text.strip()]


def code_of() -> list[str]:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def megabytes(texts: list[str]) -> float:
    return round(sum(len(text.encode()) for text in texts) / 1e6, 2)


# ---- speed -----------------------------------------------------------------------------------------------------------


def speeds(kind: str, texts: list[str], data: Path, only: tuple[str, ...] = ()) -> dict:
    words = WordCounts()
    for text in texts:
        words.add(text)
    outliers = Outliers.fit({"en": words})
    benchmarks = Benchmarks(Contamination(benchmarks=[data / "bench-mmlu", data / "bench-gsm8k", data / "bench-aqua"]))
    work: dict[str, Callable[[str], object]] = {
        "personal data": find_pii,
        "e-mail and IP alone": lambda text: find_pii(text, ("email", "ip")),
        "language, document": language,
        "language, paragraphs": paragraph_languages,
        "Gopher, C4, FineWeb": lambda text: list(reasons(Text(text), WEB_FILTERS)),
        "kind of page": technical_kind,
        "KL divergence": lambda text: outliers.distance(text, "en"),
        "decontamination": benchmarks.find,
        "quality measures": quality,
        "words as numbers": word_numbers,
    }
    return {f"{name} ({kind})": speed(f, texts) for name, f in work.items() if not only or name in only}


def speed(function: Callable[[str], object], texts: list[str], repeats: int = 3) -> dict:
    function(texts[0])
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        for text in texts:
            function(text)
        seconds.append(time.process_time() - began)
    median = sorted(seconds)[repeats // 2]
    return {"documents per second": round(len(texts) / median), "MB per second": round(megabytes(texts) / median, 1)}


def dropped(texts: list[str]) -> dict[str, float]:
    """Share of real pages' texts that each filter alone would drop."""
    counts: dict[str, int] = {}
    for text in texts:
        for name, _ in reasons(Text(text, language(text)[0]), WEB_FILTERS, Rules().heuristics.limits):
            counts[name] = counts.get(name, 0) + 1
    return {name: round(count / len(texts), 4) for name, count in sorted(counts.items(), key=lambda item: -item[1])}


# ---- the classifier beside fastText ----------------------------------------------------------------------------------


def classifiers(data: Path) -> dict:
    rows = labelled(data)
    is_held = [zlib.crc32(text.encode()) % 5 == 0 for text, _ in rows]
    fit = [row for row, held in zip(rows, is_held, strict=True) if not held]
    held = [row for row, held in zip(rows, is_held, strict=True) if held]
    began = time.process_time()
    model, _ = train([text for text, _ in fit], [label for _, label in fit], Training())
    train_seconds = time.process_time() - began
    began = time.process_time()
    found = [model.label(text)[0] for text, _ in held]
    ours = {
        "accuracy": round(sum(a == label for a, (_, label) in zip(found, held, strict=True)) / len(held), 4),
        "training seconds": round(train_seconds, 1),
        "documents per second": round(len(held) / (time.process_time() - began)),
        "model MB": round(model.weights.size * 2 / 1e6, 1),
    }
    return {"texts": len(rows), "held out": len(held), "herd": ours, "fastText": fasttext(fit, held)}


def labelled(data: Path) -> list[tuple[str, str]]:
    """Prompts of P3 with the set each is made from, shuffled: 20 words from the middle, so that no template tells."""
    with gzip.open(next((data / "post-p3").glob("*.jsonl.gz")), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    taken: dict[str, int] = {}
    kept = []
    for row in rows:
        taken[row["source"]] = taken.get(row["source"], 0) + 1
        if taken[row["source"]] <= TEXTS_PER_SOURCE:
            words = row["prompt"].split()
            middle = max(0, len(words) // 2 - 10)
            kept.append((" ".join(words[middle : middle + 20]), row["source"]))
    random.Random(0).shuffle(kept)
    return kept


FASTTEXT_WORK = """
import json, os, sys, time
import fasttext
fit, held = sys.argv[1:3]
began = time.process_time()
options = dict(wordNgrams=2, epoch=25, lr=0.5, bucket=262144, dim=100, thread=1, verbose=0)
model = fasttext.train_supervised(fit, **options)
seconds = time.process_time() - began
rows = [line.rstrip("\\n").partition(" ")[::2] for line in open(held, encoding="utf-8")]
began = time.process_time()
right = sum(model.predict(text)[0][0] == label for label, text in rows)
rate = len(rows) / (time.process_time() - began)
model.save_model(fit + ".bin")
print(json.dumps({"accuracy": round(right / len(rows), 4), "training seconds": round(seconds, 1),
                  "documents per second": round(rate), "model MB": round(os.path.getsize(fit + ".bin") / 1e6, 1)}))
"""


def fasttext(fit: list[tuple[str, str]], held: list[tuple[str, str]]) -> dict:
    folder = ROOT / "runs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("fit.txt", fit), ("held.txt", held)):
        lines = (f"__label__{label.replace(' ', '_')} {' '.join(text.lower().split())}\n" for text, label in rows)
        (folder / name).write_text("".join(lines), encoding="utf-8")
    try:
        place = folder / "fasttext"
        if not (place / "bin/python").exists():
            venv.create(place, with_pip=True)
            command = [place / "bin/python", "-m", "pip", "install", "-q", FASTTEXT]
            subprocess.run(command, check=True, capture_output=True, text=True)
        command = [place / "bin/python", "-c", FASTTEXT_WORK, folder / "fit.txt", folder / "held.txt"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.strip().split("\n")[-1])
    except subprocess.CalledProcessError as error:
        return {"error": (error.stderr or "").strip().split("\n")[-1]}


# ---- the report ------------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    sizes = ", ".join(f"{name}: {t['documents']} documents, {t['MB']} MB" for name, t in result["texts"].items())
    lines = [
        f"Filters, {result['date']}, commit {result['commit']}, {result['machine']}, one core. {sizes}.",
        "",
        "| step | documents/s | MB/s |",
        "|---|---:|---:|",
    ]
    for name, row in result["speed"].items():
        lines.append(f"| {name} | {row['documents per second']:,} | {row['MB per second']} |")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["dropped"].items())
    lines += ["", f"Share of the real pages that each rule alone would drop: {shares}.", ""]
    both = result["classifier"]
    lines += [
        f"Classifier: {both['texts']:,} prompts of P3 by the set they are made from, {both['held out']:,} held out.",
        "",
        "| system | accuracy | training s | documents/s | model MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in ("herd", "fastText"):
        row = both[name]
        figures = [row.get("error", row.get("accuracy"))]
        figures += [row.get(key, "") for key in ("training seconds", "documents per second", "model MB")]
        lines.append(f"| {name} | " + " | ".join(map(str, figures)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
