"""The trigram against a twin with dictionaries, and xz."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from herd.evals import baselines

V, BOS = 12, 11


class SlowTrigram:
    """Interpolated Kneser-Ney as the textbook writes it, one dictionary per count."""

    def __init__(self, documents):
        triples = Counter()
        for document in documents:
            padded = [BOS, BOS, *document]
            triples.update(zip(padded, padded[1:], padded[2:]))
        pairs, ones = Counter(), Counter()
        for _, second, third in triples:
            pairs[second, third] += 1
        for _, third in pairs:
            ones[third] += 1
        self.levels = [
            ({((), (third,)): count for third, count in ones.items()}),
            ({((second,), (third,)): count for (second, third), count in pairs.items()}),
            ({((first, second), (third,)): count for (first, second, third), count in triples.items()}),
        ]
        self.discounts = []
        for level in self.levels:
            once, twice = (sum(count == times for count in level.values()) for times in (1, 2))
            self.discounts.append(once / (once + 2 * twice) if once and twice else 0.5)

    def probability(self, first, second, third):
        p = 1 / V
        for level, discount, history in zip(self.levels, self.discounts, ((), (second,), (first, second))):
            total = sum(count for (h, _), count in level.items() if h == history)
            if not total:
                continue
            followers = sum(h == history for h, _ in level)
            count = level.get((history, (third,)), 0)
            p = max(count - discount, 0) / total + discount * followers / total * p
        return p


@pytest.fixture(scope="module")
def documents():
    generator = random.Random(0)
    followers = defaultdict(lambda: generator.choices(range(10), k=3))
    made = []
    for _ in range(30):
        document = [generator.randrange(10)]
        for _ in range(generator.randrange(1, 25)):
            document.append(generator.choice(followers[document[-1]]))
        made.append(document)
    return made


def test_the_vectorised_trigram_equals_its_twin_with_dictionaries(documents):
    fast, slow = baselines.Trigram(documents, V, BOS), SlowTrigram(documents)
    for document in [*documents[:5], [0, 1, 2, 3], [9], [10, 10, 10]]:
        padded = [BOS, BOS, *document]
        expected = [math.log2(slow.probability(*triple)) for triple in zip(padded, padded[1:], padded[2:])]
        np.testing.assert_allclose(fast.log2_probabilities(document), expected, rtol=1e-10)


def test_the_trigrams_probabilities_sum_to_one_after_any_history(documents):
    trigram = baselines.Trigram(documents, V, BOS)
    for first, second in [(BOS, BOS), (BOS, documents[0][0]), (1, 2), (10, 10), (3, 10)]:
        history = (np.full(V, first, np.uint64), np.full(V, second, np.uint64))
        assert trigram.probabilities(*history, np.arange(V, dtype=np.uint64)).sum() == pytest.approx(1)


def test_the_trigrams_bits_per_byte_are_its_code_length_over_the_bytes(documents):
    trigram = baselines.Trigram(documents[5:], V, BOS)
    bits = -sum(trigram.log2_probabilities(document).sum() for document in documents[:5])
    assert trigram.bits_per_byte(documents[:5], 100) == pytest.approx(bits / 100)


def test_a_trigram_holds_the_largest_vocabulary_without_overflow():
    size = 128_256
    trigram = baselines.Trigram([[size - 1, size - 2, size - 1, size - 2, size - 1]], size, size - 3)
    again, never = trigram.log2_probabilities([size - 1, size - 2]), trigram.log2_probabilities([5, 6])
    assert again.sum() > -4 > never.sum()
    assert np.isfinite(never).all()


def test_a_trigram_without_training_text_is_uniform():
    trigram = baselines.Trigram([], 16, 15)
    np.testing.assert_allclose(trigram.log2_probabilities([1, 2, 3]), -4)
    assert trigram.log2_probabilities([]).shape == (0,)


def test_xz_profits_from_text_it_has_seen_and_not_from_noise():
    generator = random.Random(1)
    text = " ".join(generator.choice(["alpha", "beta", "gamma", "delta"]) for _ in range(4000)).encode()
    noise = generator.randbytes(20_000)
    alone = baselines.xz_bits_per_byte([text])
    assert 0.2 < alone < 3
    given = baselines.xz_bits_per_byte_given([text], {"seen": [text], "noise": [noise], "nothing": []})
    assert given["seen"] < 0.1 * alone
    assert given["noise"] == pytest.approx(8, abs=0.2)
    assert math.isnan(given["nothing"])
    assert math.isnan(baselines.xz_bits_per_byte([]))
