"""How much each step of the demo takes on, so that the whole story ends in time on whatever machine it runs.

The story plans seconds for each step. Those that train or sample are sized when their turn comes: their share of the
time that is left, times how fast this machine trains or answers. What was chosen is kept in `choices.json`: a
continued run is the same run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from herd.data.conversations import load_conversations
from herd.data.loader import PackedLoader, Phase
from herd.data.preferences import load_pairs
from herd.data.shards import Documents, open_shards
from herd.evals.answers import prompt_of
from herd.formats.vocabulary import open_tokenizer
from herd.infer.engine import Engine
from herd.log import amount, duration, say
from herd.model.init import initialize
from herd.model.llama import empty_model
from herd.model.shape import ModelSettings, new_config
from herd.ops.probe import best_dtype
from herd.post.prompts import read_prompts
from herd.run import atomic_write, read_manifest, read_record
from herd.train.objectives import next_token
from herd.train.trainer import tokens_per_second
from herd.types import SamplingParams

SIZED = ("pretrain", "sft", "reward", "dpo", "demo preferences", "reject", "evaluate")
"""The commands whose steps are sized to fit; the others have a fixed amount of work."""

_ARITHMETIC_SHARE = 0.88  # of a step's time; the rest is the optimizer, saving, logging
SLOW = 3000
"""Tokens per second of the usual model below which a smaller one is trained."""
_SMALLER: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352}
_LEAST_SHARE = 0.25  # least share of its planned seconds that a late step gets: with less it is useless
_PROBED_PROMPTS = 48
_READ_FIRST = {"dpo": 1 / 3}  # of an epoch's time: the reference model reads every pair once
_TEXT_SECONDS_SHARE = 0.4  # of evaluation: bits per byte and needles, which are not reduced


class Pace:
    """Sizes the steps of a story in `folder`; `steps` are their commands by name, in order.

    With `pretrain_tokens` every step follows its recipe, and the three pre-training steps share that many tokens.
    """

    def __init__(
        self,
        folder: Path,
        steps: Mapping[str, str],
        planned: Mapping[str, float],
        seconds: float,
        pretrain_tokens: int | None,
    ):
        self.folder, self.steps, self.planned = folder, steps, planned
        self.seconds, self.pretrain_tokens = seconds, pretrain_tokens
        self.file = folder / "choices.json"
        self.choices: dict[str, Any] = read_record(self.file) if self.file.exists() else {"steps": {}}

    def settings_for(self, name: str, given: Any) -> dict[str, Any]:
        """Overrides of a step's settings for this machine; empty for one with a fixed amount of work."""
        command = self.steps[name]
        if command not in SIZED or name not in self.planned:
            return {}
        if command == "pretrain" and "threads" not in self.choices:
            self._keep(self._machine(given.model))
        torch.set_num_threads(self.choices["threads"])
        if name not in self.choices["steps"]:
            sizes, seconds = self._sized(name, command, given)
            self._keep({"steps": self.choices["steps"] | {name: {"settings": sizes, "seconds": round(seconds, 1)}}})
        chosen: dict[str, Any] = self.choices["steps"][name]["settings"]
        return chosen

    def seconds_for(self, name: str) -> float:
        """The time for a step: its share of what the previous steps have left."""
        names = [one for one in self.steps if one in self.planned]
        coming = names[names.index(name) :]
        sized = sum(self.planned[one] for one in coming if self.steps[one] in SIZED)
        fixed = sum(self.planned[one] for one in coming if self.steps[one] not in SIZED)
        took = {one: read_manifest(self.folder / one)["seconds"] for one in names if self._is_done(one)}
        known = [one for one in took if self.steps[one] not in SIZED]
        lateness = _ratio(sum(took[one] for one in known), sum(self.planned[one] for one in known))
        share = (self.seconds - sum(took.values()) - lateness * fixed) / sized
        if share < _LEAST_SHARE:
            say(f"  this machine is slower than planned for: the whole will take longer than {duration(self.seconds)}")
        return max(share, _LEAST_SHARE) * self.planned[name]

    def _is_done(self, name: str) -> bool:
        return (self.folder / name / "run.json").exists() and read_manifest(self.folder / name)["state"] == "finished"

    def _keep(self, new: Mapping[str, Any]) -> None:
        self.choices |= new
        atomic_write(self.file, json.dumps(self.choices, indent=1))

    # ---- sizes of a step ---------------------------------------------------------------------------------------------

    def _sized(self, name: str, command: str, given: Any) -> tuple[dict[str, Any], float]:
        """Settings that fit the step's time, and the estimated seconds."""
        if self.pretrain_tokens:
            pretraining = [one for one in self.planned if self.steps.get(one) == "pretrain"]
            share = self.planned[name] / sum(self.planned[one] for one in pretraining)
            return ({"tokens": round(share * self.pretrain_tokens)} if command == "pretrain" else {}), 0.0
        before = [self.choices["steps"][one]["seconds"] for one in self.choices["steps"]]
        took = [read_manifest(self.folder / one)["seconds"] for one in self.choices["steps"] if self._is_done(one)]
        seconds = self.seconds_for(name) / _ratio(sum(took), sum(before))  # by what such steps took so far
        if command == "pretrain":
            rate = self._training_rate(given.batch.row_tokens)
            tokens = max(given.batch.tokens, round(seconds * rate))
            shape = {"model": self.choices["model"]} if given.checkpoint is None and self.choices["model"] else {}
            say(f"  {amount(tokens)} tokens at {amount(rate)} a second")
            return {"tokens": tokens, **shape}, tokens / rate
        if command in ("sft", "reward", "dpo"):
            tokens, rate = self._epoch_tokens(command, given), self._training_rate(given.batch.row_tokens)
            fitting = max(seconds * rate / tokens - _READ_FIRST.get(command, 0), given.batch.tokens / tokens)
            epochs = min(given.epochs, float(f"{fitting:.3g}"))
            if epochs < given.epochs:
                say(f"  {epochs:.3g} epochs of {given.epochs:.3g}: what {duration(seconds)} are enough for")
            return {"epochs": epochs}, (epochs + _READ_FIRST.get(command, 0)) * tokens / rate
        return self._sampled(command, given, seconds)

    def _sampled(self, command: str, given: Any, seconds: float) -> tuple[dict[str, Any], float]:
        """As `_sized`, for the steps that sample answers: the number of questions."""
        if "answers_per_second" not in self.choices:
            self._keep({"answers_per_second": round(_answers_per_second(given), 2)})
        rate = self.choices["answers_per_second"]
        if command == "demo preferences":
            wished = given.max_sampled
            questions = min(
                wished, max(given.samples, round((seconds * rate / given.samples - given.max_heldout) / 1.25))
            )
            others = questions // 4 + given.max_heldout  # invented names, held-out ones
            sizes, answers = {"max_sampled": questions}, (questions + others) * given.samples
        elif command == "reject":
            wished = given.max_prompts
            questions = min(wished, max(given.samples, round(seconds * rate / given.samples)))
            sizes, answers = {"max_prompts": questions}, questions * given.samples
        else:
            wished, sets = given.limit or 400, len(given.models) * 2.25  # trained, held-out; a quarter as many invented
            questions = min(wished, max(20, round((1 - _TEXT_SECONDS_SHARE) * seconds * rate / sets)))
            sizes, answers = {"limit": questions}, questions * sets / (1 - _TEXT_SECONDS_SHARE)
        if questions < wished:
            say(f"  {questions} questions of {wished}: as many as fit in {duration(seconds)}")
        return sizes, answers / rate

    def _epoch_tokens(self, command: str, given: Any) -> int:
        tokenizer, row_tokens = open_tokenizer(self.folder / "tokenizer"), given.batch.row_tokens
        if command == "sft":
            sources = load_conversations(given.conversations, tokenizer, row_tokens)
        else:
            sources = {"pairs": load_pairs(given.pairs, tokenizer, row_tokens).documents}
        share = given.text_share if command == "sft" and given.text else 0.0
        return round(_loader(sources, row_tokens).epoch_tokens() / (1 - share))

    # ---- this machine ------------------------------------------------------------------------------------------------

    def _machine(self, shape: ModelSettings) -> dict[str, Any]:
        """The size of the model and the measured training rates; the recipe's size if the tokens are given."""
        machine: dict[str, Any] = {"threads": torch.get_num_threads(), "model": {}}
        if self.pretrain_tokens:
            return machine
        rates = self._measured_rates(shape)
        if rates[256] < SLOW:
            machine["model"] = _SMALLER
            rates = self._measured_rates(replace(shape, **_SMALLER))
        say(f"  this machine trains {amount(rates[256])} tokens/s")
        return machine | {"tokens_per_second": {str(row_tokens): round(rate) for row_tokens, rate in rates.items()}}

    def _measured_rates(self, shape: ModelSettings) -> dict[int, float]:
        """Training tokens per second by row length, measured on the real data, with an allowance for overhead."""
        dtype, sources = best_dtype(), open_shards(self.folder / "pack" / "train")
        rates = {}
        for row_tokens in (256, 1024):
            model = empty_model(new_config(shape, open_tokenizer(self.folder / "tokenizer"), row_tokens), device="cpu")
            initialize(model, seed=0)
            batches = _loader(sources, row_tokens).batches(0)
            model.to(dtype).train()
            measured = [tokens_per_second(model, next_token, batches, repeats=0) for _ in range(6)]
            rates[row_tokens] = _ARITHMETIC_SHARE * median(measured[1:])  # the best is too optimistic on a busy machine
        return rates

    def _training_rate(self, row_tokens: int) -> float:
        rates: dict[str, float] = self.choices["tokens_per_second"]
        return rates[min(rates, key=lambda length: abs(int(length) - row_tokens))]


def _loader(sources: Mapping[str, Documents], row_tokens: int) -> PackedLoader:
    mixture = {name: float(documents.num_tokens.sum()) for name, documents in sources.items()}
    return PackedLoader(sources, [Phase(batch_tokens=4096, row_tokens=row_tokens, mixture=mixture)])


def _answers_per_second(given: Any) -> float:
    """A checkpoint's sampling speed on its own prompts."""
    rows = read_prompts(given.questions / "prompts.jsonl", _PROBED_PROMPTS)
    prompts: list[Any] = [prompt_of(row) for row in rows]
    params = SamplingParams(temperature=given.temperature, max_tokens=given.answer_tokens, n=given.samples, seed=1)
    engine = Engine(given.checkpoint)
    engine.generate(prompts[:2], params)  # warm-up
    began = time.perf_counter()
    engine.generate(prompts[2:] or prompts, params)
    return len(prompts[2:] or prompts) * given.samples / (time.perf_counter() - began)


def _ratio(took: float, planned: float) -> float:
    """The ratio of the time taken to the time planned, within limits."""
    return min(max(took / planned, 0.5), 5.0) if planned > 0 else 1.0
