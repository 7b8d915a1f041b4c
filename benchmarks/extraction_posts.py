"""Trains what tells threads and their posts (`herd/curate/extract/posts.npz`), and scores it on pages it has not seen.

    python benchmarks/extraction_posts.py ../shared/data                      # remakes the table
    python benchmarks/extraction_posts.py ../shared/data --folds 4            # each page by what the other folds taught
    python benchmarks/extraction_posts.py ../shared/data --own mine.jsonl --out mine.npz

A row of one's own is a page: `html` and `text` (what is wanted), or `with` and `without` (segments), or `data-keep` on
the wanted elements; `thread: true` where it is a thread. Nothing of the pages but weights goes into the table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from curate_extraction import SETS, commit, compare, machine, rows_of
from extraction_labels import UNKNOWN, label, written_pages
from selectolax.lexbor import LexborHTMLParser

from herd.curate.extract.blocks import Blocks, words_of_name, words_of_text
from herd.curate.extract.content import measure
from herd.curate.extract.features import figures, lengths
from herd.curate.extract.html import extract
from herd.curate.extract.posts import TABLE, Table, gate_counts

LEARNED = SETS[:-1]  # html-mathml has formulas, no pages
FORUM = "html-magic-forum"
FORUM_WEIGHT = 1.5
TAKEN = 0.2  # the chance of being a thread from which a page is learned from
HIDDEN, NETS, EPOCHS, BATCH = 32, 2, 14, 1024
WORD_PAGES = 4  # a word of names is learned from as many pages
SMOOTHING = 3.0
NAME_DROPOUT = 0.25  # share of the pages that are learned from a second time, without their names
RIDGE = 0.3


class Page(NamedTuple):
    """A labelled page: its blocks, what they are (1 content, 0 furniture, -1 unknown), its names, its set."""

    blocks: Blocks
    labels: np.ndarray
    counts: np.ndarray
    source: str
    is_thread: bool


def read_sets(data: Path, own: Path | None = None) -> list[Page]:
    """The labelled pages of all sets, those written here, and one's own."""
    rows = [(row, name, name == FORUM) for name in LEARNED for row in rows_of(data, name)]
    rows += [(row, "written", True) for row in written_pages()]
    if own:
        lines = filter(str.strip, own.read_text(encoding="utf-8").splitlines())
        rows += [(row, "own", bool(row.get("thread"))) for row in map(json.loads, lines)]
    return [Page(*label(row), _counts(row["html"]), name, thread) for row, name, thread in rows]


def _counts(html: str) -> np.ndarray:
    return gate_counts([element.hint for element in measure(LexborHTMLParser(html)) if element.hint], html)


# ---- the gate --------------------------------------------------------------------------------------------------------


def fit_gate(pages: list[Page]) -> dict[str, np.ndarray]:
    """A logistic regression over the counts of names, both kinds weighed alike; written pages have few names."""
    pages = [page for page in pages if page.source != "written"]
    counts = torch.tensor(np.array([page.counts for page in pages]))
    wanted = torch.tensor([float(page.is_thread) for page in pages], dtype=torch.float64)
    weight = torch.where(wanted > 0, 0.5 / wanted.mean(), 0.5 / (1 - wanted.mean()))
    slope, bias = torch.zeros(counts.shape[1], dtype=torch.float64, requires_grad=True), torch.zeros(1).double()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS([slope, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        outputs = counts @ slope + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(outputs, wanted, weight, reduction="sum")
        value = RIDGE * value + slope.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return {"gate": slope.detach().numpy(), "gate_bias": bias.detach().numpy()[0]}


# ---- names -----------------------------------------------------------------------------------------------------------


def word_shares(page: Page) -> dict[str, float]:
    """For each word of a page's names, and of its short blocks, the share of content in what is called so."""
    blocks, labels = page.blocks, page.labels
    size = lengths(blocks.texts) * (labels != UNKNOWN)
    sums = np.zeros((2, len(size) + 1))
    np.cumsum([size, size * (labels == 1)], axis=1, out=sums[:, 1:])
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for number, name in enumerate(blocks.names):
        known, content = sums[:, blocks.ends[number]] - sums[:, blocks.firsts[number]]
        if name and known and known < 0.8 * sums[0, -1]:
            for word in words_of_name(name):
                totals[word][0] += known
                totals[word][1] += content
    for text, value in zip(blocks.texts, labels.tolist(), strict=True):
        for word in words_of_text(text) if value != UNKNOWN else []:
            totals[word][0] += 1
            totals[word][1] += value
    return {word: content / known for word, (known, content) in totals.items()}


class Words:
    """The log odds of words, learned from pages; for a page that was learned from, without that page's own part."""

    def __init__(self, shares: Iterable[dict[str, float]]):
        self.content: dict[str, float] = defaultdict(float)
        self.pages: dict[str, int] = defaultdict(int)
        for page in shares:
            for word, share in page.items():
                self.content[word] += share
                self.pages[word] += 1
        self.values = {word: odds for word, n in self.pages.items() if (odds := self._odds(n, self.content[word]))}

    def without(self, own: dict[str, float]) -> dict[str, float]:
        return self.values | {w: self._odds(self.pages[w] - 1, self.content[w] - share) for w, share in own.items()}

    @staticmethod
    def _odds(pages: int, content: float) -> float:
        if pages < WORD_PAGES:
            return 0.0
        odds = math.log((content + 0.4 * SMOOTHING) / (pages - content + 0.6 * SMOOTHING)) - math.log(0.4 / 0.6)
        return round(odds, 2) if abs(odds) > 0.15 else 0.0


# ---- the net ---------------------------------------------------------------------------------------------------------


def weights(page: Page) -> np.ndarray:
    """How much each block counts: its share of the page's content, as in the page's F1."""
    size = lengths(page.blocks.texts) + 8
    known = page.labels != UNKNOWN
    content = max(size[page.labels == 1].sum(), 0.15 * size[known].sum(), 200.0)
    weight = np.minimum(size / content, 1.0) * known
    return (FORUM_WEIGHT if page.source == FORUM else 1.0) * weight / max(1.0, weight.sum() / 2)


def fit(shown: np.ndarray, labels: np.ndarray, weight: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Nets that were trained alike, side by side as one table. Of light blocks a sample is taken, and weighs more."""
    taken = np.minimum(1.0, weight / weight.mean() + 0.1)
    chosen = np.random.default_rng(seed).random(len(taken)) < taken
    shown, labels, weight = shown[chosen], labels[chosen], (weight / taken)[chosen]
    mean, deviation = shown.mean(0), shown.std(0)
    scale = 1 / np.where(deviation > 1e-4, deviation, 1)
    inputs = torch.from_numpy(np.clip((shown - mean) * scale, -5, 5).astype(np.float32))
    wanted, weighted = (torch.from_numpy(one.astype(np.float32)) for one in (labels, weight / weight.mean()))
    parts = []
    for number in range(NETS):
        torch.manual_seed(seed * 100 + number)
        layers = torch.nn.Linear(shown.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Dropout(0.1)
        net = torch.nn.Sequential(*layers, torch.nn.Linear(HIDDEN, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=EPOCHS * (len(inputs) // BATCH + 1))
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(inputs)).split(BATCH):
                outputs = net(inputs[rows])[:, 0]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, wanted[rows], weighted[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        parts.append([p.detach().numpy() for p in net.parameters()])
    inner, bias = np.concatenate([p[0] for p in parts]).T, np.concatenate([p[1] for p in parts])
    outer, outer_bias = np.concatenate([p[2][0] for p in parts]) / NETS, np.mean([p[3] for p in parts])
    return {"mean": mean, "scale": scale, "inner": inner, "inner_bias": bias, "outer": outer, "outer_bias": outer_bias}


def train(pages: list[Page], seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a table: the gate from all pages, the rest from those that could pass it."""
    table = fit_gate(pages)
    chance = [1 / (1 + math.exp(-float(page.counts @ table["gate"] + table["gate_bias"]))) for page in pages]
    pages = [page for page, one in zip(pages, chance, strict=True) if one > TAKEN and (page.labels != UNKNOWN).any()]
    shares = [word_shares(page) for page in pages]
    words, draw = Words(shares), np.random.default_rng(seed)
    shown, labels, weight = [], [], []
    for page, own in zip(pages, shares, strict=True):
        nameless, known = draw.random() < NAME_DROPOUT, page.labels != UNKNOWN
        for values in [words.without(own), {}] if nameless else [words.without(own)]:
            shown.append(figures(page.blocks, values)[known])
            labels.append(page.labels[known])
            weight.append(weights(page)[known] / (2 if nameless else 1))
    table |= fit(np.concatenate(shown), np.concatenate(labels), np.concatenate(weight), seed)
    table = {name: np.asarray(array, dtype=np.float32) for name, array in table.items()}
    return table | {"words": np.array(list(words.values)), "values": np.array(list(words.values.values()), np.float16)}


# ---- scores ----------------------------------------------------------------------------------------------------------


def in_folds(data: Path, pages: list[Page], count: int) -> dict[str, dict]:
    """For each set the score of its pages, each read with a table that other pages taught, and its 95 % interval."""
    place: dict[str, int] = defaultdict(int)
    fold = []
    for page in pages:
        fold.append(place[page.source] % count if page.source in LEARNED else -1)
        place[page.source] += 1
    tables = [Table(train([p for p, f in zip(pages, fold, strict=True) if f != one])) for one in range(count)]
    scores = {}
    for name in LEARNED:
        rows = rows_of(data, name)
        texts = [extract(row["html"], threads=tables[number % count]).text for number, row in enumerate(rows)]
        usual = [extract(row["html"], threads=False).text for row in rows]
        both = {"herd": {name: {"texts": texts, "seconds": 1.0}}, "rules": {name: {"texts": usual, "seconds": 1.0}}}
        result = compare(name, rows, both)
        scores[name] = {
            "score": result["herd"]["score"],
            "interval": result["herd"]["interval"],
            "by rules alone": result["rules"]["score"],
            "pages read as threads": sum(one != other for one, other in zip(texts, usual, strict=True)),
        }
        print(name, scores[name], flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of annotated pages")
    parser.add_argument("--own", type=Path, help="labelled pages of one's own, JSON lines")
    parser.add_argument("--out", type=Path, default=TABLE, help="where the table goes")
    parser.add_argument("--folds", type=int, help="score every page with what the other folds taught")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pages = read_sets(options.data, options.own)
    if options.folds:
        scores = in_folds(options.data, pages, options.folds)
        command = f"python benchmarks/extraction_posts.py ../shared/data --folds {options.folds}"
        result = {"machine": machine(), "commit": commit(), "command": command, "sets": scores}
        path = Path(__file__).with_name("results") / "extraction_posts.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        return
    np.savez_compressed(options.out, **train(pages))
    print(f"{options.out}: learned from {len(pages)} pages")


if __name__ == "__main__":
    main()
