"""Training and encoding beside rustbpe, `tokenizers` and tiktoken: the same texts, each measurement a fresh process.

    python benchmarks/tokenizer.py [--texts FOLDER ...] [--megabytes 38] [--repeats 3] [--train 8192 32000]
                                   [--only NAME ...] [--no-encode] [--corpus FILE]

The texts are this Python's standard library, and whatever `.jsonl.gz` files with a `text` field `--texts` names (half
and half). Where more is asked for than there is, the texts come again, each time with about an eighth of their longer
words changed, so that the number of distinct pre-tokens grows on. Seconds are the median of the repeats, which go round
all programs; memory is the largest peak of the process and, at the same moment, of those it has started.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import count
from pathlib import Path

from herd.formats.vocabulary import open_tokenizer
from herd.tokenizer import Tokenizer
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.specials import SPLIT_PATTERN

RESULTS = Path(__file__).parent / "results" / "tokenizer.json"


# ---- what is measured ------------------------------------------------------------------------------------------------


def train_herd(corpus: Path, vocab_size: int) -> dict[bytes, int]:
    return Tokenizer.train(read(corpus), vocab_size + 256).ranks


def train_rustbpe(corpus: Path, vocab_size: int) -> dict[bytes, int]:
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(read(corpus), vocab_size, pattern=SPLIT_PATTERN)
    return {bytes(token): rank for token, rank in tokenizer.get_mergeable_ranks()}


def train_tokenizers(corpus: Path, vocab_size: int) -> None:
    tokenizer = hugging_face()
    from tokenizers import pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(read(corpus), trainer)


def hugging_face():
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    return tokenizer


def encode_herd(texts: list[str], folder: Path) -> Callable[[], object]:
    tokenizer = open_tokenizer(folder)
    tokenizer.encode_batch(texts)  # starts its processes
    return lambda: tokenizer.encode_batch(texts)


def encode_herd_arrays(texts: list[str], folder: Path) -> Callable[[], object]:
    tokenizer = open_tokenizer(folder)
    tokenizer.encode_arrays(texts)  # starts its processes
    return lambda: tokenizer.encode_arrays(texts)


def encode_herd_one_core(texts: list[str], folder: Path) -> Callable[[], object]:
    tokenizer = open_tokenizer(folder)
    return lambda: [tokenizer.encode(text) for text in texts]


def encode_tiktoken_one_thread(texts: list[str], folder: Path) -> Callable[[], object]:
    encoding = tiktoken_encoding(folder)
    return lambda: [encoding.encode_ordinary(text) for text in texts]


def encode_tiktoken_batch(texts: list[str], folder: Path) -> Callable[[], object]:
    encoding = tiktoken_encoding(folder)
    return lambda: encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count())


def tiktoken_encoding(folder: Path):
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(folder / "tokenizer.model"))
    return tiktoken.Encoding("benchmark", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})


def encode_tokenizers_batch(texts: list[str], folder: Path) -> Callable[[], object]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


TRAINERS = {"herd": train_herd, "rustbpe": train_rustbpe, "tokenizers": train_tokenizers}
ENCODERS = {
    "herd, all cores": encode_herd,
    "herd, all cores, arrays": encode_herd_arrays,
    "herd, one core": encode_herd_one_core,
    "tiktoken, one thread": encode_tiktoken_one_thread,
    "tiktoken, its batch": encode_tiktoken_batch,
    "tokenizers, its batch": encode_tokenizers_batch,
}


# ---- how it is measured ----------------------------------------------------------------------------------------------


def read(corpus: Path) -> Iterator[str]:
    with open(corpus, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def measure(kind: str, name: str, corpus: Path, argument: str) -> dict:
    """One measurement, in this process."""
    peak = PeakMemory()
    if kind == "train":
        began, cpu = time.perf_counter(), cpu_seconds()
        ranks = TRAINERS[name](corpus, int(argument))
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        tokens = None if ranks is None else hash_of(ranks)
    else:
        texts = list(read(corpus))
        encode = ENCODERS[name](texts, Path(argument))
        began, cpu = time.perf_counter(), cpu_seconds()
        ids = encode()
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        tokens = sum(map(len, ids))
    return {"seconds": seconds, "cpu_seconds": cpu, "megabytes": peak.megabytes(), "result": tokens}


class PeakMemory:
    """The most resident memory that this process and its children have had at one moment, looked at often."""

    def __init__(self) -> None:
        self._most = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, sum(map(resident_bytes, ["self", *children()])))
            time.sleep(0.02)

    def megabytes(self) -> float:
        """Where a library holds Python's lock and nothing could be looked at, the process's own peak."""
        return max(self._most, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e6


def cpu_seconds() -> float:
    """Processor time of this process and of those it has started: what contention on the machine leaves alone."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for pid in children():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def children() -> list[str]:
    return [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


def resident_bytes(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0  # it has just ended


def hash_of(ranks: dict[bytes, int]) -> str:
    import hashlib

    return hashlib.sha256(repr(sorted(ranks.items())).encode()).hexdigest()[:16]


def median_of(repeats: int, kind: str, names: list[str], *arguments: str) -> dict[str, dict]:
    """The run of median time of each program, in fresh processes that take turns."""
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            command = [sys.executable, __file__, "--measure", kind, name, *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            failed = {"seconds": float("inf"), "error": done.stderr.strip().splitlines()[-1:]}
            runs[name].append(json.loads(done.stdout) if done.returncode == 0 else failed)
    return {name: sorted(of_one, key=lambda run: run["seconds"])[len(of_one) // 2] for name, of_one in runs.items()}


def write_corpus(path: Path, folders: list[Path], num_bytes: int) -> int:
    """Texts up to a size: half this Python's library, half from the given folders (all library without any)."""
    library = sorted(Path(os.__file__).parent.rglob("*.py"))
    sources = [[file for file in library if "site-packages" not in file.parts]]
    files = sorted(file for folder in folders for file in folder.glob("*.jsonl.gz"))
    sources += [files] if files else []
    written = 0
    with open(path, "w", encoding="utf-8") as out:
        for number, source in enumerate(sources, 1):
            for text in endlessly(source):
                if written >= num_bytes * number / len(sources):
                    break
                out.write(json.dumps(text) + "\n")
                written += len(text.encode())
    return written


def endlessly(files: list[Path]) -> Iterator[str]:
    """The texts of the files, again and again; from the second time on with other words."""
    for turn in count():
        for file in files:
            for text in texts_of(file) if file.suffix == ".gz" else [file.read_text("utf-8", "replace")]:
                yield vary(text, turn) if turn else text


def vary(text: str, turn: int) -> str:
    """About one in eight of the words of seven letters and more ends differently, the same word the same in a turn."""
    ending = "".join(chr(97 + turn // 26**place % 26) for place in range(2))
    return re.sub(r"[^\W\d_]{7,}", lambda m: m[0] + ending * (zlib.crc32(m[0].encode(), turn) % 8 == 0), text)


def texts_of(file: Path) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--megabytes", type=float, default=38)
    parser.add_argument("--corpus", type=Path, help="keep the texts in this file, and use it if it is there")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train", type=int, nargs="*", default=[8192, 32000])
    parser.add_argument("--only", nargs="*", help="which programs train; default: all")
    parser.add_argument("--no-encode", dest="encode", action="store_false")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, name, corpus, argument = options.measure
        print(json.dumps(measure(kind, name, Path(corpus), argument)))
        return
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


def run(folder: Path, options: argparse.Namespace) -> dict:
    corpus = options.corpus or folder / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(corpus, options.texts, int(options.megabytes * 1e6))
    num_bytes = sum(len(text.encode()) for text in read(corpus))
    print(f"{num_bytes / 1e6:.1f} MB of text")
    rows = []
    trainers = [name for name in TRAINERS if not options.only or name in options.only]
    for vocab_size in options.train:
        for name, row in median_of(options.repeats, "train", trainers, str(corpus), str(vocab_size)).items():
            rows.append({"what": f"train {vocab_size}", "with": name, **row})
            show(rows[-1], num_bytes)
    if options.encode:
        save_tokenizer(Tokenizer.train(read(corpus), 32256), folder / "tokenizer")
        for name, row in median_of(
            options.repeats, "encode", list(ENCODERS), str(corpus), str(folder / "tokenizer")
        ).items():
            rows.append({"what": "encode", "with": name, **row})
            show(rows[-1], num_bytes)
    packages = {name: metadata.version(name) for name in ("rustbpe", "tokenizers", "tiktoken", "regex", "numpy")}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "packages": packages,
        "command": "python benchmarks/tokenizer.py " + " ".join(shown(word) for word in sys.argv[1:]),
        "text_bytes": num_bytes,
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }


def shown(word: str) -> str:
    """An argument without the place where this machine keeps its data."""
    return Path(word).name if "/" in word else word


def show(row: dict, num_bytes: int) -> None:
    if "error" in row:
        print(f"{row['what']:<12} {row['with']:<24} {row['error']}")
        return
    rate = num_bytes / 1e6 / row["seconds"]
    print(
        f"{row['what']:<12} {row['with']:<24} {row['seconds']:6.2f} s {rate:6.1f} MB/s"
        f" {row['cpu_seconds']:6.2f} s CPU {row['megabytes']:6.0f} MB"
    )


if __name__ == "__main__":
    main()
