"""On-policy distillation: the student writes, and at each place of what it wrote learns what its teacher finds likely.

Unlike with texts of others the student is corrected where it really goes, mistakes included.

Source: Agarwal et al. 2024 (generalized knowledge distillation, forward divergence on the student's own answers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from herd.data.permutation import permute
from herd.model.llama import LlamaForCausalLM
from herd.rollout.rows import batches_of
from herd.rollout.sample import Limits, draw_groups
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.objectives import likeliest
from herd.types import IGNORE, Batch


@dataclass(frozen=True)
class OnPolicy:
    """`make` for `herd.train.sources.Made`: a step's answers of the student, with the teacher's likeliest tokens."""

    student: LlamaForCausalLM
    teacher: LlamaForCausalLM
    tokenizer: Tokenizer
    rows: Sequence[Mapping[str, Any]]
    limits: Limits
    prompts: int  # a step
    top: int
    micro_tokens: int
    seed: int

    def __call__(self, step: int) -> list[Batch]:
        """The batches of a step, with the columns that `herd.train.objectives.distill` reads."""
        size = len(self.rows)
        places = range(step * self.prompts, (step + 1) * self.prompts)
        keys = [self.seed * 10_007 + place // size for place in places]
        chosen = [int(permute(np.array([place % size]), size, key)[0]) for place, key in zip(places, keys)]
        self.student.eval()
        rows = [self.rows[place] for place in chosen]
        seed = self.seed * 1_000_003 + step
        groups = draw_groups(self.student, self.tokenizer, rows, 1, self.limits, seed=seed)
        self.student.train()
        batches = batches_of(
            [sample for group in groups for sample in group],
            [0.0] * len(groups),
            row_tokens=self.limits.row_tokens,
            micro_tokens=self.micro_tokens,
            pad=self.tokenizer.pad_id,
            normalise="token",
            answer_tokens=self.limits.answer_tokens,
            fresh=True,
        )
        return [self._taught(batch) for batch in batches]

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Batch:
        device = next(self.teacher.parameters()).device
        ids, log_probs = self.teacher.run(partial(likeliest, k=self.top), batch.to(device))
        learned = batch.labels != IGNORE
        shape = (*batch.labels.shape, self.top)
        columns = {"teacher_ids": torch.zeros(shape, dtype=torch.int32), "teacher_log_probs": torch.zeros(shape)}
        columns["teacher_ids"][learned] = ids.int().cpu()
        columns["teacher_log_probs"][learned] = log_probs.float().cpu()
        batch.columns.clear()
        batch.columns.update(columns)
        return batch
