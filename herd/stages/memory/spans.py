"""Show which stretches of a text stand word for word in the training documents, and in which."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Any, ClassVar

from herd.config import settings
from herd.errors import ConfigError
from herd.formats.vocabulary import open_tokenizer
from herd.log import say
from herd.safety.memory import Corpus, matches


@settings
class SpansSettings:
    """Which text, and which corpus."""

    bare_words: ClassVar = ("path", "text")

    path: Path
    """Run folder of `herd pack`."""
    text: str
    """The text; `-` reads it from standard input."""
    tokenizer: Path
    """The tokenizer that the shards were packed with: its run folder, or a checkpoint."""
    n: int = 8
    """Tokens of the shortest stretch."""
    documents: list[Path] | None = None
    """The documents that were packed; default: as the pack's run folder names them."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError("n must be at least 2")


def run(settings: SpansSettings) -> None:
    """Print each stretch with its document.

    Raises:
        ConfigError: the tokenizer is another.
        DataError: no pack, or its documents are gone.
    """
    corpus, tokenizer = Corpus(settings.path, settings.documents or ()), open_tokenizer(settings.tokenizer)
    if any(one.tokenizer != tokenizer.fingerprint for one in corpus.sources.values()):
        raise ConfigError(f"tokenizer: {settings.path} was packed with another than {settings.tokenizer}")
    text = sys.stdin.read() if settings.text == "-" else settings.text
    tokens = tokenizer.encode(text)
    found = matches(tokens, corpus, settings.n)
    wanted = {(one.shard, one.number) for one in found}
    rows = {(held.shard, held.number): held.row for held in corpus.rows() if (held.shard, held.number) in wanted}
    told: list[dict[str, Any]] = [
        {"text": tokenizer.decode(tokens[one.start : one.end]), "tokens": one.end - one.start}
        | {"shard": one.shard, "document": one.number, **rows.get((one.shard, one.number), {})}
        for one in found
    ]
    if settings.json:
        print(json_format.dumps(told, indent=1, ensure_ascii=False))
        return
    for one in told:
        whose = one.get("url") or one.get("id") or "document"
        print(f"{one['tokens']} tokens, {whose} ({one['shard']}, {one['document']}):")
        print(f"    {one['text']!r}")
    share = sum(one["tokens"] for one in told) / max(len(tokens), 1)
    say(f"{len(told):,} stretches of {settings.n} tokens and more, {share:.0%} of the text")
