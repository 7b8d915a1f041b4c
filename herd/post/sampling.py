"""Answers of a model to many prompts, in parts that survive an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from herd.infer.engine import Engine
from herd.infer.inputs import Input
from herd.infer.remote import RemoteEngine
from herd.log import progress, say
from herd.run import atomic_write
from herd.types import Completion, SamplingParams

CHUNK_ANSWERS = 384
"""Answers drawn together and kept together; a few seconds of work for a small model on two cores."""


def sample_answers(
    checkpoint: Path,
    prompts: Sequence[Input],
    params: SamplingParams,
    folder: Path,
    *,
    label: str = "sample",
    engine: str | None = None,
    whole_only: bool = False,
) -> list[list[str]]:
    """`params.n` answers to each prompt, in order; finished chunks lie in `folder` and are not made again.

    `engine` is the address of an OpenAI-compatible endpoint that answers in the place of the checkpoint; its key is
    taken from the environment variable OPENAI_API_KEY. An answer that ran into `max_tokens` is kept as it stands; with
    `whole_only` it is empty, and how many are is said. Every chunk has its own seed and a fresh engine, so that an
    interrupted run ends with the answers of an undisturbed one: nothing left over in a cache changes a rounding.
    """
    answers: list[list[str]] = []
    chunk_prompts = max(1, CHUNK_ANSWERS // params.n)
    with progress(label, total=len(prompts) * params.n, unit="answers") as bar:
        for number, start in enumerate(range(0, len(prompts), chunk_prompts)):
            part = folder / f"answers-{number:05d}.json"
            batch = list(prompts[start : start + chunk_prompts])
            if not part.exists():
                seeded = replace(params, seed=(params.seed or 0) * 1_000_003 + number)
                found = _engine(checkpoint, engine).generate(batch, seeded)
                atomic_write(part, json.dumps([_texts(answer, whole_only) for answer in found], ensure_ascii=False))
            answers += json.loads(part.read_text(encoding="utf-8"))
            bar.advance(len(batch) * params.n)
    if whole_only and (empty := sum(not text for several in answers for text in several)):
        total = len(prompts) * params.n
        say(f"  {empty:,} of {total:,} answers did not end within {params.max_tokens} tokens, or say nothing")
    return answers


def _engine(checkpoint: Path, url: str | None) -> Engine | RemoteEngine:
    if url is None:
        return Engine(checkpoint)
    return RemoteEngine(url, key=os.environ.get("OPENAI_API_KEY"))


def _texts(answer: Completion | list[Completion], whole_only: bool) -> list[str]:
    several = answer if isinstance(answer, list) else [answer]
    return ["" if whole_only and one.finish_reason == "length" else one.text.strip() for one in several]
