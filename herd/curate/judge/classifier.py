"""A small classifier of texts: a linear model over hashed words and pairs of words, trained and applied with NumPy.

It is what fastText's supervised mode is (Joulin et al. 2016, "Bag of Tricks"), without the narrow hidden layer: with
few classes that layer only saves memory. One output gives a score of 0 to 1 (a logistic model, whose targets may lie
between, such as grades); several give classes (softmax). It takes seconds to train, a megabyte to keep, and judges
thousands of documents a second on one core. The probability it tells is fitted to texts that had no part in training.

Source: the Llama 3 paper, section 3.1.1 (fastText for "would Wikipedia reference this", and small models distilled from
labels that a large one gave).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from herd.config import settings
from herd.curate.ngrams import ngram_numbers, word_numbers
from herd.errors import DataError
from herd.run import atomic_write

FORMAT = 1
SCORE = "score"
"""The one label of a classifier that gives a score."""
_MAX_WORDS = 1000  # of a text's beginning; as many again from its middle
_BATCH = 64


@settings
class Training:
    """How a small classifier is trained."""

    epochs: int = 8
    """Passes over the texts."""
    learning_rate: float = 0.3
    """Step of AdaGrad."""
    bits: int = 18
    """Buckets that words and pairs are hashed to, as a power of two: 18 makes a file of half a megabyte a class."""
    heldout: float = 0.2
    """Share (0 to 1) of the texts that is held out: half to fit the probabilities, half to measure."""
    seed: int = 0
    """Seed of the split and the order."""

    def __post_init__(self):
        if self.epochs < 1 or self.learning_rate <= 0 or not 8 <= self.bits <= 24 or not 0 < self.heldout < 1:
            raise ValueError(
                "epochs must be at least 1, learning_rate above 0, bits between 8 and 24, heldout between 0 and 1"
            )


@dataclass
class Classifier:
    """A trained classifier. `labels` is `["score"]`, or the names of the classes."""

    labels: list[str]
    weights: np.ndarray  # (buckets, classes) float32
    bias: np.ndarray  # (classes,) float32
    scale: np.ndarray  # (2,) float32: slope and offset that turn outputs into probabilities that hold

    @property
    def is_score(self) -> bool:
        """Whether it gives a score instead of classes."""
        return self.labels == [SCORE]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """What the classifier makes of some texts, (texts, classes) float32; a text without words is judged by none."""
        bits = len(self.weights).bit_length() - 1
        outputs = np.stack([self._output(features_of(text, bits)) for text in texts]) if texts else np.empty((0, 1))
        return _probabilities(outputs.astype(np.float32) * self.scale[0] + self.scale[1] * self.is_score, self.is_score)

    def score(self, text: str) -> float:
        """The score of one text, 0 to 1."""
        return float(self.probabilities([text])[0, 0])

    def label(self, text: str) -> tuple[str, float]:
        """The likeliest class of a text and its probability."""
        row = self.probabilities([text])[0]
        best = int(row.argmax())
        return self.labels[best], float(row[best])

    def _output(self, features: np.ndarray) -> np.ndarray:
        if not len(features):
            return self.bias
        return self.weights[features].sum(axis=0) / np.sqrt(len(features)) + self.bias

    def save(self, path: Path, **about: Any) -> None:
        """Write one `.npz` file, whole or not at all; `about` says what it was made from."""
        import io

        data = io.BytesIO()
        header = json.dumps({"format": FORMAT, "labels": self.labels, **about})
        weights = self.weights.astype(np.float16)
        np.savez_compressed(data, header=np.array(header), weights=weights, bias=self.bias, scale=self.scale)
        atomic_write(path, data.getvalue())

    @classmethod
    def load(cls, path: Path) -> Classifier | FastTextClassifier:
        """Read a classifier: its file, the run folder of `herd quality`, or a model of fastText (`.bin`, `.ftz`).

        Raises:
            DataError: there is none, or it is of another format.
        """
        if path.suffix in (".bin", ".ftz"):
            return FastTextClassifier(path)
        file = path / "classifier.npz" if path.is_dir() else path
        try:
            with np.load(file) as arrays:
                header = json.loads(str(arrays["header"]))
                if header["format"] != FORMAT:
                    raise DataError(f"{file}: classifier of format {header['format']}, this Herd reads {FORMAT}")
                weights = arrays["weights"].astype(np.float32)
                return cls(header["labels"], weights, arrays["bias"], arrays["scale"])
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"{file}: no classifier that `herd quality` wrote: {error}") from None


class FastTextClassifier:
    """A model that fastText trained elsewhere; one of two labels, one of them good by its name, counts as a score.

    Raises:
        DataError: the file is no such model.
    """

    GOOD = ("hq", "high", "positive", "pos", "good", "yes", "keep", "1", "wiki", "quality")
    """Names of the good label of a model with two."""

    def __init__(self, path: Path):
        from fasttext.FastText import _FastText  # what language identification brings along; it only predicts

        try:
            if not path.is_file():
                raise ValueError("no such file")
            self._model = _FastText(model_path=str(path))
            self.labels = sorted(
                label.removeprefix("__label__") for label in self._model.predict("a", k=-1, threshold=-1.0)[0]
            )
        except (ValueError, RuntimeError, MemoryError) as error:
            raise DataError(f"{path}: no model of fastText: {error}") from None
        good = [label for label in self.labels if label.lower() in self.GOOD]
        self.good = good[0] if len(self.labels) == 2 and len(good) == 1 else None

    @property
    def is_score(self) -> bool:
        """Whether it gives a score instead of classes."""
        return self.good is not None

    def score(self, text: str) -> float:
        """The probability of the good label, 0 to 1."""
        labels, probabilities = self._predict(text, -1)
        return next((p for label, p in zip(labels, probabilities, strict=True) if label == self.good), 0.0)

    def label(self, text: str) -> tuple[str, float]:
        """The likeliest class of a text and its probability."""
        labels, probabilities = self._predict(text, 1)
        return (labels[0], probabilities[0]) if labels else (self.labels[0], 0.0)

    def _predict(self, text: str, number: int) -> tuple[list[str], list[float]]:
        labels, probabilities = self._model.predict(" ".join(text[:20_000].split()), k=number, threshold=-1.0)
        return [label.removeprefix("__label__") for label in labels], [min(1.0, float(p)) for p in probabilities]


def features_of(text: str, bits: int) -> np.ndarray:
    """The buckets of the words and pairs of words of a text, each once, (features,) int64."""
    words = word_numbers(text[: 20 * _MAX_WORDS])[:_MAX_WORDS]
    if len(text) > 40 * _MAX_WORDS:
        middle = len(text) // 2
        words = np.concatenate([words, word_numbers(text[middle : middle + 20 * _MAX_WORDS])[:_MAX_WORDS]])
    both = np.concatenate([words, ngram_numbers(words, 2)])
    return np.unique((both >> np.uint64(64 - bits)).astype(np.int64))


def train(
    texts: Sequence[str], targets: Sequence[float] | Sequence[str], options: Training
) -> tuple[Classifier, dict[str, Any]]:
    """Train on texts with scores (0 to 1) or class names; returns the classifier and how it does on held-out texts.

    Raises:
        DataError: too few texts, or only one class or score among them.
    """
    is_score = not isinstance(targets[0], str) if len(targets) else True
    labels = [SCORE] if is_score else sorted(set(map(str, targets)))
    if len(texts) < 20 or len(set(targets)) < 2:
        raise DataError(
            f"{len(texts)} texts with {len(set(targets))} different labels: "
            "a classifier needs at least 20 texts, and two labels"
        )
    wanted = _wanted(targets, labels)
    features = [features_of(text, options.bits) for text in texts]
    fitting, measuring, training = split(len(texts), options)
    model = _descend([features[i] for i in training], wanted[training], labels, options)
    outputs = np.zeros((len(texts), len(labels)), dtype=np.float32)
    for i in (*fitting, *measuring):
        outputs[i] = model._output(features[i])
    model.scale, report = measured(outputs, targets, options)
    return model, report


def split(count: int, options: Training) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of so many texts fit the probabilities, which measure, which train: the same for every classifier."""
    order = np.random.default_rng(options.seed).permutation(count)
    num_held = max(4, int(options.heldout * count))
    fitting, measuring, training = np.split(order, [num_held // 2, num_held])
    return fitting, measuring, training


def measured(
    outputs: np.ndarray, targets: Sequence[float] | Sequence[str], options: Training
) -> tuple[np.ndarray, dict[str, Any]]:
    """Slope and offset that make the outputs of held-out texts probabilities, and how good these are.

    `outputs` (texts, classes in alphabetic order), or (texts, 1) for a score; those of the training texts are not read.
    """
    is_score = not isinstance(targets[0], str)
    labels = [SCORE] if is_score else sorted(set(map(str, targets)))
    wanted = _wanted(targets, labels)
    fitting, measuring, training = split(len(targets), options)
    scale = _fit_scale(outputs[fitting], wanted[fitting], is_score)
    held = _probabilities(outputs[measuring] * scale[0] + scale[1] * is_score, is_score)
    report = (
        score_report(held[:, 0], wanted[measuring, 0]) if is_score else class_report(held, wanted[measuring], labels)
    )
    return scale, {"train": len(training), "held_out": len(measuring), **report}


def _wanted(targets: Sequence[Any], labels: list[str]) -> np.ndarray:
    """What the outputs should be, (texts, classes) float32."""
    if labels == [SCORE]:
        return np.clip(np.asarray(targets, dtype=np.float32), 0, 1)[:, None]
    number = {label: i for i, label in enumerate(labels)}
    return np.eye(len(labels), dtype=np.float32)[[number[str(target)] for target in targets]]


def _descend(features: list[np.ndarray], wanted: np.ndarray, labels: list[str], options: Training) -> Classifier:
    """Minimize cross entropy with AdaGrad over batches of texts."""
    weights, bias = np.zeros((1 << options.bits, len(labels)), np.float32), np.zeros(len(labels), np.float32)
    model = Classifier(labels, weights, bias, np.array([1, 0], np.float32))
    history = np.full_like(model.weights, 1e-8)
    bias_history = np.full_like(model.bias, 1e-8)
    draw = np.random.default_rng(options.seed + 1)
    usable = np.flatnonzero([len(f) > 0 for f in features])
    steps, step = options.epochs * -(-len(usable) // _BATCH), 0
    for _ in range(options.epochs):
        shuffled = draw.permutation(usable)
        for start in range(0, len(shuffled), _BATCH):
            batch = shuffled[start : start + _BATCH]
            rate = options.learning_rate * (1 - step / steps)
            _step(model, history, bias_history, [features[i] for i in batch], wanted[batch], rate)
            step += 1
    return model


def _step(
    model: Classifier,
    history: np.ndarray,
    bias_history: np.ndarray,
    features: list[np.ndarray],
    wanted: np.ndarray,
    rate: float,
) -> None:
    lengths = np.array([len(f) for f in features])
    flat = np.concatenate(features)
    value = np.repeat(1 / np.sqrt(lengths), lengths).astype(np.float32)
    starts = np.cumsum(lengths) - lengths
    outputs = np.add.reduceat(model.weights[flat] * value[:, None], starts, axis=0) + model.bias
    error = (_probabilities(outputs, model.is_score) - wanted) / len(features)
    buckets, place = np.unique(flat, return_inverse=True)
    spread = np.repeat(error, lengths, axis=0) * value[:, None]
    columns = [np.bincount(place, weights=spread[:, k], minlength=len(buckets)) for k in range(spread.shape[1])]
    gradient = np.stack(columns, axis=1).astype(np.float32)
    history[buckets] += gradient**2
    model.weights[buckets] -= rate * gradient / np.sqrt(history[buckets])
    bias_gradient = error.sum(axis=0)
    bias_history += bias_gradient**2
    model.bias -= rate * bias_gradient / np.sqrt(bias_history)


def _probabilities(outputs: np.ndarray, is_score: bool) -> np.ndarray:
    outputs = np.clip(outputs, -30, 30)
    if is_score:
        return 1 / (1 + np.exp(-outputs))
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _fit_scale(outputs: np.ndarray, wanted: np.ndarray, is_score: bool) -> np.ndarray:
    """Slope and offset (Platt 1999; for classes a slope alone, a temperature) that make the probabilities hold."""
    best, best_loss = (1.0, 0.0), np.inf
    offsets = np.linspace(-2, 2, 41) if is_score else [0.0]
    for slope in np.geomspace(0.1, 4, 40):
        for offset in offsets:
            held = np.clip(_probabilities(outputs * slope + offset, is_score), 1e-6, 1 - 1e-6)
            loss = -(wanted * np.log(held)).sum() - ((1 - wanted) * np.log(1 - held)).sum() * is_score
            loss += 0.5 * (np.log(slope) ** 2 + offset**2)  # few texts do not move it far
            if loss < best_loss:
                best, best_loss = (slope, offset), loss
    return np.array(best, dtype=np.float32)


# ---- how good it is --------------------------------------------------------------------------------------------------


def score_report(predicted: np.ndarray, wanted: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Rank correlation, area under the curve (wanted at least one half), mean error, and calibration by bins."""
    order = np.argsort(predicted, kind="stable")
    groups = [group for group in np.array_split(order, bins) if len(group)]
    calibration = [
        {
            "predicted": round(float(predicted[g].mean()), 4),
            "wanted": round(float(wanted[g].mean()), 4),
            "texts": len(g),
        }
        for g in groups
    ]
    gap = sum(row["texts"] * abs(row["predicted"] - row["wanted"]) for row in calibration) / max(1, len(predicted))
    return {
        "auc": round(area_under_curve(predicted, wanted >= 0.5), 4),
        "rank_correlation": round(_rank_correlation(predicted, wanted), 4),
        "mean_error": round(float(np.abs(predicted - wanted).mean()), 4),
        "calibration_gap": round(gap, 4),
        "calibration": calibration,
    }


def class_report(predicted: np.ndarray, wanted: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Accuracy, F1 of each class, and how sure it is against how often it is right."""
    found, truth = predicted.argmax(axis=1), wanted.argmax(axis=1)
    f1 = {}
    for number, label in enumerate(labels):
        hits = int(((found == number) & (truth == number)).sum())
        total = int((found == number).sum() + (truth == number).sum())
        f1[label] = round(2 * hits / total, 4) if total else None
    report = score_report(predicted.max(axis=1), (found == truth).astype(np.float32))
    known = [value for value in f1.values() if value is not None]
    return {
        "accuracy": round(float((found == truth).mean()), 4),
        "macro_f1": round(sum(known) / max(1, len(known)), 4),
        "f1": f1,
        "calibration_gap": report["calibration_gap"],
        "calibration": report["calibration"],
    }


def area_under_curve(predicted: np.ndarray, is_positive: np.ndarray) -> float:
    """The chance that a positive scores above a negative (ties count half); one half where one side is missing."""
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if not positives or not negatives:
        return 0.5
    ranks = _ranks(predicted)
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing the mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[place]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


AnyClassifier = Classifier | FastTextClassifier
"""What `Classifier.load` gives."""
