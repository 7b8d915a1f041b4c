"""Batches made by the model in training: prompts in turn, groups of answers, rewards, advantages, packed rows.

Each step's answers are written to `rollouts/step-00001.jsonl` with what was thought of them; the batches themselves are
kept in `state/` (`herd.train.sources.Made`), so that a killed run learns from what it had drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from herd.data.permutation import permute
from herd.data.rows import write_rows
from herd.errors import DataError
from herd.log import progress, say
from herd.model.llama import LlamaForCausalLM
from herd.rollout.advantages import Algorithm, advantages, equal
from herd.rollout.rewards import RIGHT, Judge, Reward
from herd.rollout.rows import Normalise, batches_of
from herd.rollout.sample import Limits, Sample, draw_groups, encode_prompt
from herd.rollout.watch import Watch, count, example
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Batch

FIGURES = ("reward", "right", "sound", "equal_groups", "answer_tokens", "cut", "turns")
"""What is told of each step's answers: means of all that were drawn, learned from or not."""
Reference = Callable[[Batch], torch.Tensor]
"""Log-probabilities of a batch's labels under the model that the policy is held to: (B, T)."""


@dataclass(frozen=True)
class Plan:
    """What is drawn in a step and how it is judged; the settings of `herd rl` have the same names."""

    prompts: int
    samples: int
    updates: int
    limits: Limits
    micro_tokens: int
    algorithm: Algorithm
    scale: bool
    normalise: Normalise
    shorter: float
    gate: bool
    cut_is_wrong: bool
    stop_if_gamed: bool
    seed: int


class Rollouts:
    """`make` for `herd.train.sources.Made`: the batches of `plan.updates` steps from one drawing."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: Tokenizer,
        rows: Sequence[Mapping[str, Any]],
        plan: Plan,
        judge: Judge,
        second: Reward,
        folder: Path,
        reference: Reference | None = None,
    ):
        self.model, self.tokenizer, self.rows, self.plan = model, tokenizer, rows, plan
        self.judge, self.second, self.folder, self.reference = judge, second, folder, reference
        self.watch: Watch | None = None
        self.told = False

    def __call__(self, step: int) -> list[list[Batch]]:
        """The batches of this step and the `updates - 1` after it."""
        plan, number = self.plan, step // self.plan.updates
        if self.watch is None:
            self.watch = Watch.of(self.folder, number)
        rows = self._prompts(number)
        self.model.eval()
        with progress(f"rollouts of step {step + 1}", total=plan.prompts * plan.samples, unit="answers") as bar:
            groups = draw_groups(
                self.model,
                self.tokenizer,
                rows,
                plan.samples,
                plan.limits,
                seed=plan.seed * 1_000_003 + number,
                reply=self.judge.reply,
            )
            bar.advance(plan.prompts * plan.samples)
        self.model.train()
        return self._learned(number, rows, groups)

    def _prompts(self, number: int) -> list[Mapping[str, Any]]:
        """The prompts of a drawing: all in a shuffled order, then all in another."""
        places = np.arange(number * self.plan.prompts, (number + 1) * self.plan.prompts)
        epochs, size = places // len(self.rows), len(self.rows)
        found = [
            permute(np.array([place % size]), size, self.plan.seed * 10_007 + int(epoch))[0]
            for place, epoch in zip(places, epochs)
        ]
        return [self.rows[place] for place in found]

    def _learned(
        self, number: int, rows: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[Sample]]
    ) -> list[list[Batch]]:
        plan = self.plan
        flat = [sample for group in groups for sample in group]
        of = [row for row, group in zip(rows, groups, strict=True) for _ in group]
        rewards = np.array(self.judge.reward(of, flat))
        if plan.cut_is_wrong:
            rewards = np.where([sample.cut for sample in flat], 0.0, rewards)
        sound = np.array(self.second(of, flat)) >= 0.5
        shape = (len(groups), plan.samples)
        lengths = np.array([sample.num_learned for sample in flat])
        worth = advantages(
            rewards.reshape(shape),
            lengths.reshape(shape),
            algorithm=plan.algorithm,
            scale=plan.scale,
            shorter=plan.shorter,
            gate=plan.gate,
        ).ravel()
        silent = equal(rewards.reshape(shape))
        written = _written(of, flat, rewards, sound, worth)
        write_rows(self.folder / f"step-{number + 1:05d}.jsonl", written)
        self._look(number, written)
        kept = self._kept(worth)
        figures = _figures(flat, rewards, sound, silent)
        return self._batches([flat[place] for place in kept], worth[kept], figures)

    def _kept(self, worth: np.ndarray) -> np.ndarray:
        """The samples to learn from: those of groups that teach something; all, where a KL term holds them too."""
        groups = np.abs(worth.reshape(-1, self.plan.samples)).max(1) > 0
        if self.reference is not None:
            groups[:] = True
        if not groups.any():
            if not self.told:
                say("\n  all answers to each prompt are equally right: nothing can be learned from such a step")
            self.told, groups[0] = True, True
        found: np.ndarray = np.flatnonzero(np.repeat(groups, self.plan.samples))
        return found

    def _batches(self, samples: Sequence[Sample], worth: np.ndarray, figures: torch.Tensor) -> list[list[Batch]]:
        plan, steps = self.plan, []
        for update in range(plan.updates):
            batches = batches_of(
                samples[update :: plan.updates],
                worth[update :: plan.updates].tolist(),
                row_tokens=plan.limits.row_tokens,
                micro_tokens=plan.micro_tokens,
                pad=self.tokenizer.pad_id,
                normalise=plan.normalise,
                answer_tokens=plan.limits.answer_tokens,
                fresh=update == 0,
            )
            for place, batch in enumerate(batches):
                told = place == 0 and update == 0
                batch.columns["figures"] = figures if told else torch.zeros_like(figures)
                if self.reference is not None:
                    batch.columns["reference"] = self.reference(batch)
            steps.append(batches)
        return steps

    def _look(self, number: int, written: Sequence[dict]) -> None:
        assert self.watch is not None
        if not (fault := self.watch.add(*count(written))):
            return
        text = f"step {number * self.plan.updates + 1}: {fault}. One of them: {example(written)}"
        if self.plan.stop_if_gamed:
            raise DataError(
                f"{text}. Mend the reward, or go on with stop_if_gamed=false; the answers are in {self.folder}"
            )
        if not self.told:
            say(f"\n  {text}")
        self.told = True


def fitting(rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, limits: Limits) -> list[Mapping[str, Any]]:
    """The rows whose prompt leaves room for an answer in a row of tokens; how many do not is said.

    Raises:
        DataError: none does.
    """
    room = limits.row_tokens - limits.answer_tokens
    kept = [row for row in rows if len(encode_prompt(tokenizer, row)) <= room]
    if len(kept) < len(rows):
        say(f"  {len(rows) - len(kept):,} prompts are longer than {room} tokens and are left out (batch.row_tokens)")
    if not kept:
        raise DataError(f"all {len(rows):,} prompts are longer than {room} tokens; raise batch.row_tokens")
    return kept


def _written(
    of: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    rewards: np.ndarray,
    sound: np.ndarray,
    worth: np.ndarray,
) -> list[dict[str, Any]]:
    """The samples as a reader wants to see them."""
    return [
        {
            "prompt": row.get("prompt") or row.get("messages"),
            "answer": sample.text,
            "reward": round(float(reward), 5),
            "right": bool(reward >= RIGHT),
            "sound": bool(is_sound),
            "advantage": round(float(advantage), 5),
            "tokens": sample.num_learned,
            "cut": sample.cut,
        }
        | ({"messages": sample.messages} if sample.turns > 1 else {})
        for row, sample, reward, is_sound, advantage in zip(of, samples, rewards, sound, worth, strict=True)
    ]


def _figures(samples: Sequence[Sample], rewards: np.ndarray, sound: np.ndarray, silent: np.ndarray) -> torch.Tensor:
    """Sum and count of each of FIGURES: (1, 2 * len(FIGURES))."""
    found: dict[str, Any] = {
        "reward": rewards,
        "right": rewards >= RIGHT,
        "sound": sound,
        "equal_groups": silent,
        "answer_tokens": [sample.num_learned for sample in samples],
        "cut": [sample.cut for sample in samples],
        "turns": [sample.turns for sample in samples],
    }
    flat = [figure for name in FIGURES for figure in (float(np.sum(found[name])), float(len(found[name])))]
    return torch.tensor([flat], dtype=torch.float64)
