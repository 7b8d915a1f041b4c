"""Tasks over a run of `herd pack`: bits per byte of its held-out documents, and needles planted in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from herd.data.shards import Documents, open_heldout, open_shards
from herd.errors import CheckpointError, ConfigError
from herd.evals import baselines, needle, perplexity
from herd.evals.subject import Model, address_of
from herd.evals.task import Task
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.log import progress, say
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Score

Keep = Callable[[str, Callable[[], Any]], Any]
"""(name of a part, how to make it) -> the part: made, or read back where an interrupted run had made it."""


def judge_text(task: Task, models: Mapping[str, Model], keep: Keep) -> list[Score]:
    """Bits per byte of every model and of compressors, source by source; none where nothing was held out."""
    heldout = _heldout(task, models)
    chosen = {source: perplexity.sample_documents(found, task.max_bytes) for source, found in heldout.items()}
    scores = []
    known = keep("baselines", partial(_baseline_bits, task, models, heldout, chosen)) if heldout else {}
    for source, documents in heldout.items():
        size = int(documents.num_bytes[chosen[source]].sum())
        say(f"  held-out {source}: {len(chosen[source])} of {len(documents)} documents, {size:,} bytes")
        score = partial(Score, task=f"{task.name} {source}", metric="bits_per_byte", n=len(chosen[source]))
        with progress(f"{task.name} {source}, bits per byte", total=len(models), unit="models") as bar:
            for name, path in models.items():
                found = keep(f"{name} {source}", partial(_bits, task, path, documents, chosen[source]))
                scores.append(score(model=name, **found))
                bar.advance()
        scores += [score(model=name, value=value) for name, value in known[source].items()]
    return scores


def judge_needles(task: Task, models: Mapping[str, Model], keep: Keep) -> tuple[list[Score], dict[str, Any]]:
    """Scores of every model and the grids for `needle.json`; none where nothing was held out."""
    heldout = _heldout(task, models)
    if not heldout:
        return [], {}
    largest = max(heldout.values(), key=lambda documents: int(documents.num_tokens.sum()))
    haystack = np.concatenate([largest.tokens(index)[1:-1] for index in range(len(largest))])
    grids: dict[str, Any] = {}
    scores = []
    for name, path in models.items():
        with progress(f"{task.name}, {name}", total=1, unit="grids") as bar:
            grid = keep(name, partial(_grid, task, name, path, haystack))
            bar.advance()
        if not grid:
            continue
        grids[name] = grid | {"accuracy": grid["copied"]}
        count = grid["trials"] * len(grid["depths"]) * len(grid["lengths"])
        for metric in ("copied", "chosen"):
            value = float(np.mean(grid[metric]))
            error = math.sqrt(value * (1 - value) / count)
            scores.append(Score(task=task.name, metric=metric, model=name, value=value, stderr=error, n=count))
        cells = ", ".join(
            f"{length}: {share:.0%}" for length, share in zip(grid["lengths"], np.mean(grid["copied"], axis=0))
        )
        say(f"  needle, {name}: word copied in {scores[-2].value:.0%} of {count} prompts (by length in tokens {cells})")
    note = (
        "A line KEY_742 = 'word' is planted in held-out text; the prompt ends with KEY_742 = '. Share of prompts after "
        f"which the word is the likeliest token of all. Among {needle.NUM_CHOICES} words that could have been planted: "
        + ", ".join(f"{name} {np.mean(grid['chosen']):.0%}" for name, grid in grids.items())
        + f" (chance {1 / needle.NUM_CHOICES:.0%})."
    )
    return scores, {"models": grids, "note": note}


def _heldout(task: Task, models: Mapping[str, Model]) -> dict[str, Documents]:
    remote = next((name for name, path in models.items() if address_of(path)), None)
    if remote:
        raise ConfigError(f"{task.name}: `ask: {task.ask}` reads a model's weights; {remote} is an endpoint")
    heldout = open_heldout(task.data)
    if not heldout:
        say(f"  {task.name}: nothing was held out (too few documents), left out")
    return heldout


def _language_model(checkpoint: Checkpoint) -> LlamaForCausalLM:
    model = checkpoint.load()
    if not isinstance(model, LlamaForCausalLM):
        raise CheckpointError(f"{checkpoint.place} holds a reward model, which has no likelihood of text")
    return model


def _bits(task: Task, path: Model, documents: Documents, chosen: Sequence[int]) -> dict[str, float]:
    model = _language_model(open_checkpoint(path))
    length = perplexity.code_length(
        model,
        [documents.tokens(index) for index in chosen],
        documents.num_bytes[chosen],
        context_tokens=task.context_tokens or model.config.max_position_embeddings,
    )
    error = length.stderr if math.isfinite(length.stderr) else 0.0
    value = length.bits_per_byte
    return {"value": value, "stderr": error, "low": value - 1.96 * error, "high": value + 1.96 * error}


def _baseline_bits(
    task: Task,
    models: Mapping[str, Model],
    heldout: Mapping[str, Documents],
    chosen: Mapping[str, Sequence[int]],
) -> dict[str, dict[str, float]]:
    """By source, the trigram and `xz` on the documents the models are judged on.

    The trigram has counted all training tokens of all sources; `xz` is shown alone and with all training text in view.
    """
    tokenizer = open_checkpoint(next(iter(models.values()))).tokenizer
    training = open_shards(task.data / "train").values()
    train = [documents.tokens(index)[1:] for documents in training for index in range(len(documents))]
    trigram = baselines.Trigram(train, tokenizer.vocab_size, tokenizer.bos_id)
    tests = {  # without begin-of-text, which is given
        source: [documents.tokens(index)[1:] for index in chosen[source]] for source, documents in heldout.items()
    }
    texts = {source: [_text(tokenizer, tokens) for tokens in test] for source, test in tests.items()}
    given = baselines.xz_bits_per_byte_given([_text(tokenizer, tokens) for tokens in train], texts)
    return {
        source: {
            "trigram": trigram.bits_per_byte(tests[source], int(documents.num_bytes[chosen[source]].sum())),
            "xz": baselines.xz_bits_per_byte(texts[source]),
            "xz given the training text": given[source],
        }
        for source, documents in heldout.items()
    }


def _text(tokenizer: Tokenizer, tokens: np.ndarray) -> bytes:
    """The bytes of a document, whose last token is end-of-text."""
    return tokenizer.decode_bytes(tokens[:-1])


def _grid(task: Task, name: str, path: Model, haystack: np.ndarray) -> dict | None:
    checkpoint = open_checkpoint(path)
    model = _language_model(checkpoint)
    context = model.config.max_position_embeddings
    lengths = [length for length in task.lengths or needle.grid_lengths(context) if length <= context]
    if beyond := [f"{length:,}" for length in task.lengths or () if length > context]:
        say(f"  needle, {name}: left out, beyond its context of {context:,} tokens: {', '.join(beyond)}")
    lengths = [length for length in lengths if length <= len(haystack)]
    if not lengths:
        say(f"  needle: {len(haystack)} tokens of held-out text are too few, left out")
        return None
    ask = needle.model_next_logits(model)
    return needle.needle_grid(ask, checkpoint.tokenizer, haystack, lengths=lengths, trials=task.trials).to_json()
