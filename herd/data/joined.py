"""Preference pairs with all responses of a prompt concatenated in one document, as in the paper, for comparison.

The prompt is computed once and a response sees those before it, in an order that is drawn for each pair; scores are
read where each response ends. `herd.data.preferences.Pairs` keeps responses apart, which is how they are judged later.

Source: The Llama 3 Herd of Models, section 4.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from herd.data.loader import Placed
from herd.data.preferences import Pairs
from herd.data.shards import Documents, in_memory


@dataclass(frozen=True, eq=False)
class JoinedPairs:
    """One document for each pair. `ends` are the positions of each response's last token, best response first."""

    documents: Documents
    ends: list[list[int]]

    def __len__(self) -> int:
        return len(self.ends)

    def reward_columns(self, placed: list[Placed], shape: tuple[int, int]) -> dict[str, Tensor]:
        """`better`, `worse` (M, 2) and `document` (M,), as `Pairs.reward_columns`."""
        rows = []
        for item in placed:
            ends = [(item.row, item.offset + end) for end in self.ends[item.document]]
            pairs = [(ends[i], ends[j]) for i in range(len(ends)) for j in range(i + 1, len(ends))]
            rows += [(better, worse, item.document) for better, worse in pairs]
        places = {"better": [one[0] for one in rows], "worse": [one[1] for one in rows]}
        columns = {name: torch.tensor(place, dtype=torch.int64).view(-1, 2) for name, place in places.items()}
        return columns | {"document": torch.tensor([one[2] for one in rows], dtype=torch.int64)}


def joined(pairs: Pairs, seed: int = 0) -> JoinedPairs:
    """The same pairs, each as one document: the prompt, then its responses in random order."""
    draw, bundle = np.random.default_rng(seed), pairs.documents.bundle
    assert bundle is not None
    tokens: list[list[int]] = []
    ends: list[list[int]] = []
    for _, group in groupby(range(len(pairs.documents)), key=lambda index: int(bundle[index])):
        members = list(group)
        prompt = min(_prompt_tokens(pairs, index) for index in members)
        row, found = pairs.documents.tokens(members[0])[:prompt].tolist(), [0] * len(members)
        for place in draw.permutation(len(members)).tolist():
            row += pairs.documents.tokens(members[place])[prompt:-1].tolist()
            found[place] = len(row) - 1
        tokens.append([*row, int(pairs.documents.tokens(members[0])[-1])])  # one more, so that the last end is an input
        ends.append(found)
    masks = [np.ones(len(row), dtype=bool) for row in tokens]
    numbers = list(range(len(tokens)))
    documents = in_memory("pairs", tokens, trained=masks, bundle=numbers, tokenizer=pairs.documents.tokenizer)
    return JoinedPairs(documents, ends)


def _prompt_tokens(pairs: Pairs, index: int) -> int:
    trained = pairs.documents.is_trained(index)
    assert trained is not None  # a pair has its prompt masked
    return int(trained.argmax())
