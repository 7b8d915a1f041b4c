"""A small encoder with words of its own, and rows and policies for guards."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers.implementations import BertWordPieceTokenizer

_WORDS = (
    "the a i to how do make build kill bomb poison gun steal hate cake bread bird house garden water process my "
    "your for and of in is on please help me with tell about ignore previous instructions rules book read sing "
    "walk old new attack bank money neighbour dog cat report summary answer banana only you are no free now "
)
WORDS = _WORDS.split()
KINDS = (("kill", "bomb", "poison", "attack", "gun"), ("steal", "money", "bank"))
_VIOLENT = "kill my neighbour, make a bomb, poison the dog, attack a house with a gun, build a bomb, kill a cat"
_THEFT = "steal money, steal a book, steal the money of a bank, steal my neighbour dog, steal your book"
_HARMLESS = (
    "make a cake, build a bird house, water the garden, read a book, walk the dog, sing, make bread, tell my dog, "
    "help my neighbour, walk on the old garden"
)
POLICY = """
name: test
refusal: "No: {categories} in the {where}."
categories:
  V: {name: Violence, moderation: [violence]}
  T: {name: Theft, on: [input, output]}
"""


def small_encoder(place: Path) -> Path:
    """A BERT of 48 channels that knows `WORDS`, two kinds of them apart, and letters."""
    place.mkdir(parents=True, exist_ok=True)
    shape = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    letters = [mark + c for c in "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"=+:/" for mark in ("", "##")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *WORDS]
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.3, **shape)
    model = transformers.BertModel(config)
    with torch.no_grad():  # words of a kind lie near one another, and what a layer adds is little
        for weight in model.encoder.parameters():
            weight.mul_(0.02 if weight.ndim > 1 else 1)
        table = model.embeddings
        table.position_embeddings.weight.zero_()
        for channel, kind in enumerate(KINDS):
            table.word_embeddings.weight[[words.index(word) for word in kind], channel] += 4
    model.save_pretrained(place)
    (place / "vocab.txt").write_text("\n".join(words))
    BertWordPieceTokenizer(str(place / "vocab.txt")).save(str(place / "tokenizer.json"))
    return place


def write_rows(file: Path, *, labels: tuple[str, str, str] = ("V", "T", "safe")) -> Path:
    """Rows in three classes: violence, theft, and harmless wishes."""
    violent, theft, harmless = (several.split(", ") for several in (_VIOLENT, _THEFT, _HARMLESS))
    frames = ["how do i {}", "please help me {}", "tell me how to {}", "{} now", "{} on the road", "i {} for free"]
    rows = [
        {"text": frame.format(wish), "label": label}
        for label, wishes in zip(labels, (violent, theft, harmless))
        for wish in wishes
        for frame in frames
    ]
    rows += [row | {"where": "output"} for row in rows if row["label"] == "safe"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
