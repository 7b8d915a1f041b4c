"""Trains the scorer of extraction on labelled pages, and scores it on sets that had no part in the training.

    python benchmarks/extraction_scorer.py ../shared/data                  # remakes the table
    python benchmarks/extraction_scorer.py ../shared/data --leave-out      # each set by what the others taught
    python benchmarks/extraction_scorer.py ../shared/data --own mine.jsonl --out mine.npz

One row a page: `html` and `text` (what is wanted), or `with` and `without` (segments), or `data-keep` on the wanted.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from curate_extraction import SETS, commit, compare, machine, rows_of
from extraction_labels import UNKNOWN, label, written_pages

from herd.curate.extract.blocks import Blocks, words_of_name, words_of_text
from herd.curate.extract.features import Features, NameValues, lengths
from herd.curate.extract.html import extract
from herd.curate.extract.scorer import TABLE, Net, Scorer

LEARNED = SETS[:-1]  # html-mathml has formulas, no pages
PAGE_WEIGHTS = {"html-magic-forum": 1.5, "written": 0.6, "html-trafilatura": 1.0}
HIDDEN, NETS, EPOCHS, BATCH = 32, 2, 14, 1024
FOLDS = 2  # in which the first net's scores are made that the second learns from
WORD_PAGES = 4  # a word of class names is learned from as many pages
SMOOTHING = 3.0
NAME_DROPOUT = 0.25  # share of the pages that are learned from without their class names as well

Page = tuple[Blocks, np.ndarray, str]
"""Blocks, labels, and the set that they come from."""


def read_sets(data: Path, own: Path | None = None) -> list[Page]:
    """The labelled pages of all sets, those written here, and one's own."""
    rows = [(row, name) for name in LEARNED for row in rows_of(data, name)]
    rows += [(row, "written") for row in written_pages()]
    if own:
        rows += [(json.loads(line), "own") for line in own.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(*label(row), name) for row, name in rows]


# ---- class names -----------------------------------------------------------------------------------------------------


def word_shares(blocks: Blocks, labels: np.ndarray) -> dict[str, float]:
    """For each word of a page's class names, and of its short blocks, the share of content in what is called so."""
    size = lengths(blocks.texts) * (labels != UNKNOWN)
    sums = np.zeros((2, len(size) + 1))
    np.cumsum([size, size * (labels == 1)], axis=1, out=sums[:, 1:])
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for number, name in enumerate(blocks.names):
        first, end = blocks.firsts[number], blocks.ends[number]
        known, content = sums[:, end] - sums[:, first]
        if name and known and known < 0.8 * sums[0, -1]:
            for word in words_of_name(name):
                found[word][0] += known
                found[word][1] += content
    for text, value in zip(blocks.texts, labels.tolist(), strict=True):
        for word in words_of_text(text) if value != UNKNOWN else []:
            found[word][0] += 1
            found[word][1] += value
    return {word: content / known for word, (known, content) in found.items()}


class Words:
    """What the words of class names say, learned from pages; of a page that was learned from, without that page."""

    def __init__(self, shares: Iterable[dict[str, float]]):
        self.content: dict[str, float] = defaultdict(float)
        self.pages: dict[str, int] = defaultdict(int)
        for page in shares:
            for word, share in page.items():
                self.content[word] += share
                self.pages[word] += 1

    def values(self, without: dict[str, float] | None = None) -> dict[str, float]:
        """The log odds of each word, those of one page taken out."""
        if not without:
            return {
                word: value for word in self.pages if (value := self._odds(word, self.pages[word], self.content[word]))
            }
        changed = {w: self._odds(w, self.pages[w] - 1, self.content[w] - share) for w, share in without.items()}
        return self._all | changed

    @cached_property
    def _all(self) -> dict[str, float]:
        return self.values()

    @staticmethod
    def _odds(word: str, pages: int, content: float) -> float:
        if pages < WORD_PAGES:
            return 0.0
        odds = math.log((content + 0.4 * SMOOTHING) / (pages - content + 0.6 * SMOOTHING)) - math.log(0.4 / 0.6)
        return round(odds, 2) if abs(odds) > 0.15 else 0.0


# ---- training --------------------------------------------------------------------------------------------------------


def weights(blocks: Blocks, labels: np.ndarray, name: str) -> np.ndarray:
    """How much each block counts: its share of the page's content, as it does in the page's F1."""
    size = lengths(blocks.texts) + 8
    content = max(size[labels == 1].sum(), 0.15 * size[labels != UNKNOWN].sum(), 200.0)
    weight = np.minimum(size / content, 1.0) * (labels != UNKNOWN)
    return PAGE_WEIGHTS.get(name, 1.0) * weight / max(1.0, weight.sum() / 2)


def fit(figures: np.ndarray, labels: np.ndarray, weight: np.ndarray, seed: int, nets: int) -> dict[str, np.ndarray]:
    """Several small nets side by side as one table. Of blocks that weigh little a sample is taken, and weighs more."""
    taken = np.minimum(1.0, weight / weight.mean() + 0.1)
    chosen = np.random.default_rng(seed).random(len(taken)) < taken
    figures, labels, weight = figures[chosen], labels[chosen], (weight / taken)[chosen]
    mean, deviation = figures.mean(0), figures.std(0)
    scale = 1 / np.where(deviation > 1e-4, deviation, 1)
    shown = torch.from_numpy(np.clip((figures - mean) * scale, -5, 5).astype(np.float32))
    wanted = torch.from_numpy(labels.astype(np.float32))
    weighted = torch.from_numpy((weight / weight.mean()).astype(np.float32))
    parts = []
    for number in range(nets):
        torch.manual_seed(seed * 100 + number)
        net = torch.nn.Sequential(
            torch.nn.Linear(figures.shape[1], HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(HIDDEN, 1),
        )
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        steps = EPOCHS * (len(shown) // BATCH + 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
        for _ in range(EPOCHS):
            order = torch.randperm(len(shown))
            for start in range(0, len(order), BATCH):
                batch = order[start : start + BATCH]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    net(shown[batch])[:, 0], wanted[batch], weighted[batch]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        parts.append([p.detach().numpy() for p in net.parameters()])
    inner, bias = np.concatenate([p[0] for p in parts]).T, np.concatenate([p[1] for p in parts])
    outer = np.concatenate([p[2][0] for p in parts]) / nets
    table = {"mean": mean, "scale": scale, "inner": inner, "inner_bias": bias, "outer": outer}
    return table | {"outer_bias": np.float32(np.mean([p[3] for p in parts]))}


def train(pages: list[Page], seed: int = 0) -> dict[str, np.ndarray]:
    """The table of a scorer."""
    shares = [word_shares(blocks, labels) for blocks, labels, _ in pages]
    words = Words(shares)
    draw = np.random.default_rng(seed)
    seen, wanted, weight, fold = [], [], [], []
    for (blocks, labels, name), own in zip(pages, shares, strict=True):
        known = labels != UNKNOWN
        if not known.any():
            continue
        nameless = draw.random() < NAME_DROPOUT
        for values in [words.values(own), {}] if nameless else [words.values(own)]:
            seen.append(Features(blocks, NameValues(values)))
            wanted.append(labels)
            weight.append(weights(blocks, labels, name) / (2 if nameless else 1))
            fold.append(len(wanted) % FOLDS)
    first_scores: list[np.ndarray | None] = [None] * len(seen)
    for part in range(FOLDS):
        net = Net(
            {f"x.{k}": v for k, v in _fit_on(seen, wanted, weight, [f != part for f in fold], None, seed, 1).items()},
            "x",
        )
        for number, features in enumerate(seen):
            if fold[number] == part:
                first_scores[number] = net(features.first)
    every = [True] * len(seen)
    table = {f"first.{k}": v for k, v in _fit_on(seen, wanted, weight, every, None, seed, NETS).items()}
    table |= {f"second.{k}": v for k, v in _fit_on(seen, wanted, weight, every, first_scores, seed, NETS).items()}
    values = words.values()
    table |= {"words": np.array(list(values)), "values": np.array(list(values.values()))}
    return {
        k: v.astype(np.float16) if v.dtype.kind == "f" and "scale" not in k and "mean" not in k else v
        for k, v in table.items()
    }


def _fit_on(
    seen: list[Features], wanted: list, weight: list, use: list[bool], scores: list | None, seed: int, nets: int
) -> dict:
    chosen = [i for i, used in enumerate(use) if used]
    known = [wanted[i] != UNKNOWN for i in chosen]
    figures = [
        (seen[i].first if scores is None else seen[i].second(scores[i]))[k] for i, k in zip(chosen, known, strict=True)
    ]
    labels = np.concatenate([wanted[i][k] for i, k in zip(chosen, known, strict=True)])
    return fit(
        np.concatenate(figures),
        labels,
        np.concatenate([weight[i][k] for i, k in zip(chosen, known, strict=True)]),
        seed,
        nets,
    )


# ---- leaving out a set -----------------------------------------------------------------------------------------------


def left_out(data: Path, pages: list[Page], names: Iterable[str] = LEARNED) -> dict[str, dict]:
    """For each set what a scorer gives on it that was trained on all others: its score and a 95 % interval."""
    found = {}
    for name in names:
        scorer = Scorer(train([page for page in pages if page[2] != name]))
        texts = [extract(row["html"], scorer=scorer).text for row in rows_of(data, name)]
        scores = compare(name, rows_of(data, name), {"herd": {name: {"texts": texts, "seconds": 1.0}}})["herd"]
        found[name] = {"score": scores["score"], "interval": scores["interval"]}
        print(
            f"{name:<26} {scores['score']:.4f}  {scores['interval'][0]:.3f} to {scores['interval'][1]:.3f}", flush=True
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of annotated pages")
    parser.add_argument("--own", type=Path, help="labelled pages of one's own, JSON lines")
    parser.add_argument(
        "--only-own", action="store_true", help="learn from one's own pages and those written here alone"
    )
    parser.add_argument("--out", type=Path, default=TABLE, help="where the table goes")
    parser.add_argument("--leave-out", action="store_true", help="score each set by what was learned from the others")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pages = read_sets(options.data, options.own)
    if options.only_own:
        pages = [page for page in pages if page[2] in ("own", "written")]
    if options.leave_out:
        result = {"machine": machine(), "commit": commit(), "sets": left_out(options.data, pages)}
        Path(__file__).with_name("results").joinpath("extraction_left_out.json").write_text(
            json.dumps(result, indent=1) + "\n"
        )
        return
    np.savez_compressed(options.out, **train(pages))
    print(f"{options.out}: learned from {len(pages)} pages, {sum(len(labels) for _, labels, _ in pages):,} blocks")


if __name__ == "__main__":
    main()
