"""Measure how often a model goes on verbatim with its training texts, at the lengths of the indexes of n-grams.

`herd memory rates runs/demo pack=runs/demo/pack index=[runs/ngrams-50,runs/ngrams-1000]`; indexes: `herd ngrams n=50`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from herd.config import settings
from herd.data.ngrams import NgramIndex
from herd.errors import ConfigError
from herd.infer.engine import Engine
from herd.log import say
from herd.run import atomic_write, open_run
from herd.safety.memory import Corpus, verbatim
from herd.types import SamplingParams


@settings
class RatesSettings:
    """Which model, and which corpus."""

    bare_words: ClassVar = ("path", "out")

    path: Path
    """Checkpoint, or run folder."""
    out: Path
    """Run folder to write."""
    pack: Path
    """Run folder of `herd pack` that it learned from."""
    index: list[Path]
    """Indexes of its n-grams (`herd ngrams`), one for each length."""
    count: int = 200
    """Passages of each length."""
    seed: int = 0
    """Seed of the passages."""

    def __post_init__(self) -> None:
        if self.count < 1 or not self.index:
            raise ValueError("count must be at least 1, and index must name one")


def run(settings: RatesSettings) -> Path:
    """Write `rates.json`.

    Raises:
        ConfigError: an index is of another tokenizer.
        DataError: no index, no pack, or no document is long enough.
    """
    inputs: dict[str, Any] = {"model": settings.path, "pack": settings.pack, "index": settings.index}
    with open_run(settings.out, stage="memory rates", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        engine, corpus = Engine(settings.path), Corpus(settings.pack)
        found = []
        for folder in settings.index:
            index = NgramIndex(folder)
            if index.tokenizer != engine.tokenizer.fingerprint:
                raise ConfigError(f"{folder}: an index of another tokenizer's tokens than {settings.path} reads")
            if 2 * index.n > engine.max_context:
                say(
                    f"  left out: passages of {index.n} need {2 * index.n} tokens, the context has {engine.max_context}"
                )
                continue

            one = verbatim(partial(greedy, engine), corpus, index, count=settings.count, seed=settings.seed)
            found.append(one)
            span = f"{one['verbatim_low']:.2%} to {one['verbatim_high']:.2%}"
            say(
                f"  {index.n} tokens: {one['verbatim']:.2%} of {one['passages']:,} passages go on verbatim ({span}), "
                f"{one['included']:.2%} with a passage of the corpus"
            )
        if not found:
            raise ConfigError(f"index: none of these lengths fits into the context of {settings.path}")
        atomic_write(run.path / "rates.json", json.dumps(found, indent=1) + "\n")
        run.finish({f"verbatim at {one['n']}": one["verbatim"] for one in found})
    return run.path


def greedy(engine: Engine, prompts: list[list[int]], count: int) -> list[list[int]]:
    """What a model is surest of, `count` tokens after each prompt, stop tokens among them."""
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    requests = [engine.request(prompt, params) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    while not all(request.finished for request in requests):
        engine.step()
    return [list(request.best[0].tokens) for request in requests]
