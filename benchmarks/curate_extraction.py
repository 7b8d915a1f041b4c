"""Extraction beside trafilatura and resiliparse: F1 on annotated pages, exact code and formulas, pages per second.

    python benchmarks/curate_extraction.py ../shared/data

Each peer gets an environment of its own (made once under runs/benchmarks), every system runs as a process of one core
on identical input files, one after the other. Speed is CPU time inside the extraction calls. Intervals are 95 %
bootstrap over pages. `--folds` also repeats the choice of every tuned constant in five folds: chosen on four, scored
on the fifth.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import platform
import random
import re
import subprocess
import sys
import time
import venv
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"trafilatura": "trafilatura==2.3.1", "resiliparse": "resiliparse==2.0.1"}
PEERS |= {"readability-lxml": "readability-lxml==0.9", "newspaper4k": "newspaper4k==0.9.6"}
PEERS |= {"magic-html": "magic-html @ git+https://github.com/opendatalab/magic-html@47d4a7fed120"}
SYSTEMS = {"herd": None, "trafilatura": "trafilatura", "trafilatura fast": "trafilatura"}
SYSTEMS |= {"trafilatura without comments": "trafilatura"} | {name: name for name in PEERS if name != "trafilatura"}
SYSTEMS |= {"magic-html forum": "magic-html"}  # it has to be told the kind of page
SETS = ("html-article-extraction", "html-andy-articles", "html-magic-article", "html-magic-forum", "html-trafilatura")
SETS += ("html-readability", "html-sphinx-math-code", "html-webmainbench", "html-mathml")
FILES = {"html-mathml": "mathml_tex.jsonl.gz"}
RESAMPLES = 2000
GRID = {
    "_GOOD_CHARACTERS": (40, 80),
    "_LONG_CHARACTERS": (100, 200),
    "_MAX_LINK_SHARE": (0.3, 0.6),
    "_DOMINANT": (0.5, 0.7),
    "_TWINS": (0.05, 0.2),
    "_PROTECTED": (0.5, 0.8),
    "_PROTECTED_WEAK": (0.06, 0.2),
    "_LEAD_CHARACTERS": (100, 250),
    "_LEAD_LEVELS": (2, 6),
    "_LINK_BLOCK": (0.6, 0.9),
    "_LINK_LIST": (0.6, 0.9),
    "_EDGE_CHARACTERS": (30, 90),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of annotated pages")
    parser.add_argument("--folds", action="store_true", help="repeat the choice of constants in five folds")
    parser.add_argument("--worker", nargs=3, metavar=("SYSTEM", "INPUT", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    work_folder = ROOT / "runs" / "benchmarks"
    work_folder.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), "peers": PEERS, "sets": {}}
    outputs = {system: run_system(system, options.data, work_folder) for system in SYSTEMS}
    for name in SETS:
        result["sets"][name] = compare(name, rows_of(options.data, name), outputs)
    if options.folds:
        result["five folds"] = choose_in_folds(options.data)
    (ROOT / "benchmarks/results/curate_extraction.json").write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "benchmarks/results/curate_extraction.md").write_text(table(result))
    print(table(result))


# ---- running the systems ---------------------------------------------------------------------------------------------


def run_system(system: str, data: Path, folder: Path) -> dict:
    """The texts of one system by set, and its seconds; a peer that cannot be run gives its error."""
    try:
        python = environment(SYSTEMS[system], folder)
        output = folder / f"{system.replace(' ', '_')}.json"
        command = [python, __file__, str(data), "--worker", system, str(data), str(output)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
        return json.loads(output.read_text())
    except subprocess.CalledProcessError as error:
        if system == "herd":
            raise
        return {"error": (error.stderr or "").strip().split("\n")[-1]}


def environment(peer: str | None, folder: Path) -> str:
    """The Python of a peer's own environment; Herd runs in this one."""
    if peer is None:
        return sys.executable
    place = folder / peer
    if not (place / "bin/python").exists():
        venv.create(place, with_pip=True)
    for packages in (["--upgrade", "pip"], [PEERS[peer]]):
        command = [place / "bin/python", "-m", "pip", "install", "-q", *packages]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return str(place / "bin/python")


def work(system: str, data: str, output: str) -> None:
    """Runs in the environment of one system: extract every page of every set."""
    extract = extractor(system)
    result = {}
    for name in SETS:
        rows = rows_of(Path(data), name)
        with contextlib.suppress(Exception):
            extract(rows[0]["html"])  # what is loaded at the first call is not counted
        began = time.process_time()
        texts, failed = [], 0
        for row in rows:
            try:
                texts.append(extract(row["html"]) or "")
            except Exception:  # a peer's refusal of a page is an empty text; Herd refuses none
                if system == "herd":
                    raise
                texts.append("")
                failed += 1
        result[name] = {"seconds": time.process_time() - began, "texts": texts, "failed": failed}
    Path(output).write_text(json.dumps(result))


def extractor(system: str):
    if system == "herd":
        sys.path.insert(0, str(ROOT))
        from herd.curate.extract.html import html_to_text

        return html_to_text
    if system == "resiliparse":
        from resiliparse.extract.html2text import extract_plain_text

        return lambda html: extract_plain_text(html, main_content=True, list_bullets=False, alt_texts=False)
    if system == "readability-lxml":
        from readability import Document

        return lambda html: words_of(Document(html).summary())
    if system == "newspaper4k":
        import newspaper

        return lambda html: newspaper.article("http://a.example/", input_html=html, language="en").text
    if system.startswith("magic-html"):
        from magic_html import GeneralExtractor

        kind = "forum" if system.endswith("forum") else "article"
        return lambda html: words_of(GeneralExtractor().extract(html, base_url="", html_type=kind)["html"])
    import trafilatura

    comments = not system.endswith("comments")
    return lambda html: trafilatura.extract(html, fast=system.endswith("fast"), include_comments=comments)


def words_of(html: str) -> str:
    """The text of a peer's HTML, a block a line, `pre` as it is."""
    import lxml.html

    root = lxml.html.fromstring(html or "<p></p>")
    for element in root.iter("p", "div", "li", "tr", "br", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "td"):
        element.tail = f"\n{element.tail or ''}"
    return root.text_content()


def rows_of(data: Path, name: str) -> list[dict]:
    with gzip.open(data / name / FILES.get(name, "pages.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row | {"html": formula_page(row["mathml"])} for row in rows] if name == "html-mathml" else rows


def formula_page(mathml: str) -> str:
    """A small article with a formula in it, as documentation shows one."""
    formula = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>", "", mathml, flags=re.S)
    said = "The relation that follows was derived in the last chapter, and everything after it rests on its two sides."
    return (
        f"<html><body><article><h1>On it</h1><p>{said}</p><p>{formula}</p><p>{said} {said}</p></article></body></html>"
    )


# ---- scores ----------------------------------------------------------------------------------------------------------


def compare(name: str, rows: list[dict], outputs: dict[str, dict]) -> dict:
    """Scores of every system on one set, with intervals, and of Herd's lead over each."""
    measures = {"html-trafilatura": segments, "html-sphinx-math-code": code_and_maths}
    measures |= {"html-webmainbench": code_of_markdown, "html-mathml": formulas}
    measure = measures.get(name, shingles)
    total = mean_f1 if measure is shingles else pooled_f1
    if name == "html-readability":
        rows = [row | {"text": plain(row["expected_html"])} for row in rows]
    counts = {
        system: [measure(row, text) for row, text in zip(rows, output[name]["texts"], strict=True)]
        for system, output in outputs.items()
        if "error" not in output
    }
    draw = random.Random(0)
    samples = [[draw.randrange(len(rows)) for _ in rows] for _ in range(RESAMPLES)]
    drawn = {system: [total([pages[i] for i in sample]) for sample in samples] for system, pages in counts.items()}
    scores = {}
    for system, output in outputs.items():
        if "error" in output:
            scores[system] = {"error": output["error"]}
            continue
        lead = [ours - theirs for ours, theirs in zip(drawn["herd"], drawn[system], strict=True)]
        scores[system] = {
            "score": round(total(counts[system]), 4),
            "interval": interval(drawn[system]),
            "herd leads by": interval(lead),
            "pages per second": round(len(rows) / output[name]["seconds"], 1),
        }
    return scores


def interval(values: list[float]) -> list[float]:
    values = sorted(values)
    return [round(values[int(share * (len(values) - 1))], 4) for share in (0.025, 0.975)]


def shingles(row: dict, text: str, n: int = 4) -> tuple[float, float]:
    """Precision and recall of one page over n-grams of words (the measure of the article extraction benchmark)."""
    wanted, found = (
        Counter(zip(*(words[i:] for i in range(min(n, len(words)))), strict=False))
        for words in (re.findall(r"\w+", row["text"]), re.findall(r"\w+", text))
    )
    hits = (wanted & found).total()
    return hits / found.total() if found else float(not wanted), hits / wanted.total() if wanted else 1.0


def mean_f1(pages: list[tuple[float, float]]) -> float:
    precision, recall = (sum(page[i] for page in pages) / len(pages) for i in (0, 1))
    return 2 * precision * recall / (precision + recall)


def segments(row: dict, text: str) -> tuple[int, int, int]:
    """Segments that were rightly kept, wrongly kept, and lost (trafilatura's own measure)."""
    kept = sum(segment in text for segment in row["with"])
    return kept, sum(segment in text for segment in row["without"]), len(row["with"]) - kept


def code_and_maths(row: dict, text: str) -> tuple[int, int, int]:
    """Code blocks (their lines and indentation exact) and formulas (white space aside) that survived, 0, and lost."""
    code = ["\n".join(line.rstrip() for line in block.strip("\n").split("\n")) for block in row["code_blocks"]]
    maths = [re.sub(r"^\\[(\[]|\\[)\]]$|\s+", "", formula.strip()) for formula in row["math_tex"]]
    squeezed = re.sub(r"\s+", "", text)
    kept = sum(block in text for block in code) + sum(formula in squeezed for formula in maths)
    return kept, 0, len(code) + len(maths) - kept


def code_of_markdown(row: dict, text: str) -> tuple[int, int, int]:
    """Fenced code blocks of the reference that survived with their lines and indentation, 0, and lost."""
    code = re.findall(r"^```[^\n]*\n(.*?)^```", row["groundtruth_markdown"], re.S | re.M)
    code = ["\n".join(line.rstrip() for line in block.strip("\n").split("\n")) for block in code]
    kept = sum(block in text for block in code)
    return kept, 0, len(code) - kept


def formulas(row: dict, text: str) -> tuple[int, int, int]:
    """Whether a formula of a page is the reference's TeX, 0, and whether it is not; sizing and spacing have no say."""
    kept = int(bare(row["tex"]) in bare(text))
    return kept, 0, 1 - kept


def bare(tex: str) -> str:
    """TeX without what does not change its meaning: white space, braces, sizes, spacing, phantoms, names of arrays."""
    tex = re.sub(r"\\begin\{array\}\{[^}]*\}", r"\\begin{matrix}", tex).replace(r"\end{array}", r"\end{matrix}")
    for _ in range(3):
        tex = re.sub(r"\\(?:overset|underset|stackrel)\{\s*(?:\\h?v?phantom\{[^{}]*\})?\s*\}", "", tex)
        tex = re.sub(r"[_^]?\{?\\[hv]?phantom\{[^{}]*\}\}?", "", tex)
    tex = re.sub(r"\\(?:left|right)\s*\.|\\(?:left|right|limits|displaystyle|q?quad|mspace\{[^}]*\}|[;,!: ])", "", tex)
    return re.sub(
        r"[\s{}~$]|\\(?:mathrm|operatorname|mathop|text)(?![a-zA-Z])|\\lbrack|\\rbrack",
        "",
        tex.replace(r"\lbrack", "[").replace(r"\rbrack", "]"),
    )


def pooled_f1(pages: list[tuple[int, int, int]]) -> float:
    kept, wrong, lost = (sum(page[i] for page in pages) for i in range(3))
    return 2 * kept / (2 * kept + wrong + lost) if kept + wrong + lost else 1.0  # a draw of pages without any


def plain(html: str) -> str:
    """The words of an expected result, by the parser's own text function: no system's renderer has a say."""
    from selectolax.lexbor import LexborHTMLParser

    return LexborHTMLParser(html).body.text(separator=" ")


# ---- the choice of constants, in folds -------------------------------------------------------------------------------


def choose_in_folds(data: Path) -> dict:
    """Score on pages that had no part in choosing: in each of five folds the best of all single changes is taken."""
    sys.path.insert(0, str(ROOT))
    from herd.curate.extract import content
    from herd.curate.extract.html import html_to_text

    sets = {name: rows_of(data, name) for name in SETS[:2]}
    measures = {SETS[0]: (shingles, mean_f1), SETS[1]: (segments, pooled_f1)}
    choices = [("as they are", None, None)] + [(f"{k}={v}", k, v) for k, values in GRID.items() for v in values]
    counts: dict[str, dict[str, list]] = {}
    for label, constant, value in choices:
        usual = getattr(content, constant) if constant else None
        if constant:
            setattr(content, constant, value)
        counts[label] = {
            n: [measures[n][0](row, html_to_text(row["html"])) for row in rows] for n, rows in sets.items()
        }
        if constant:
            setattr(content, constant, usual)
    held_out: dict[str, list] = {name: [] for name in sets}
    chosen = []
    for fold in range(5):

        def score(label: str, fold: int = fold) -> float:
            parts = ([c for i, c in enumerate(counts[label][n]) if i % 5 != fold] for n in sets)
            return sum(measures[n][1](part) for n, part in zip(sets, parts, strict=True))

        best = max(counts, key=score)
        chosen.append(best)
        for name in sets:
            held_out[name] += [c for i, c in enumerate(counts[best][name]) if i % 5 == fold]
    return {"chosen": chosen} | {name: round(measures[name][1](held_out[name]), 4) for name in sets}


# ---- the report ------------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    lines = [
        f"Extraction, {result['date']}, commit {result['commit']}, {result['machine']}, one core.",
        "F1 of 4-grams of words; html-trafilatura: of segments; html-sphinx-math-code: of code and formulas kept;",
        "html-webmainbench: of its code blocks; html-mathml: of formulas, as TeX, kept.",
        "",
        "| set | system | score | 95 % | Herd leads by | pages/s |",
        "|---|---|---:|---|---|---:|",
    ]
    for name, scores in result["sets"].items():
        for system, score in scores.items():
            if "error" in score:
                lines.append(f"| {name} | {system} | could not be run: {score['error']} | | | |")
                continue
            low, high = score["interval"]
            lead = "" if system == "herd" else "{:+.3f} to {:+.3f}".format(*score["herd leads by"])
            lines.append(
                f"| {name} | {system} | {score['score']:.4f} | {low:.3f} to {high:.3f} | {lead} | "
                f"{score['pages per second']:.0f} |"
            )
    if folds := result.get("five folds"):
        figures = ", ".join(f"{name} {value:.4f}" for name, value in folds.items() if name != "chosen")
        lines += ["", f"Constants chosen in five folds, scored on the fifth that had no part: {figures}."]
    return "\n".join(lines) + "\n"


def machine() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
