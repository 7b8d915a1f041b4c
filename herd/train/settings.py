"""The settings of a training run, with the same names in every training stage."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal

from herd.config import settings
from herd.data.rows import RowSettings
from herd.parallel.settings import ParallelSettings
from herd.train.compile import Compile
from herd.train.optimizer import OptimizerSettings
from herd.train.saving import SavingSettings
from herd.train.schedule import BatchSettings, ScheduleSettings
from herd.train.stability import StabilitySettings, step_range
from herd.train.validation import ValidationSettings

Dtype = Literal["stored", "auto", "bf16", "fp32", "fp8"]


@settings
class TrainSettings:
    """Settings that all training stages share."""

    may_change: ClassVar[tuple[str, ...]] = ("recompute", "compile")

    out: Path
    """Run folder to write."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    """Batch size and row length."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """AdamW or Muon."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """Learning rate schedule."""
    saving: SavingSettings = field(default_factory=SavingSettings)
    """What is saved while it runs."""
    stability: StabilitySettings = field(default_factory=StabilitySettings)
    """What is done about spikes of loss or gradient norm."""
    skip_steps: list[str] = field(default_factory=list)
    """Steps of the data schedule to skip, `120` or `120-139`, counted from 1."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """How model and rows are split over the processes that `torchrun` starts."""
    dtype: Dtype = "auto"
    """dtype of weights and activations (masters are fp32). stored: the checkpoint's; auto: the faster one as measured
    here; fp8: bf16, with float8 matmuls for the shapes where a probe on this GPU shows a gain."""
    compile: Compile = "auto"
    """Use of a C++ or Triton compiler; auto: our kernels on a CPU, `torch.compile` on a GPU."""
    recompute: int = 0
    """Activation checkpointing in every n-th layer: 1 all, 2 half of them, 0 none."""
    seed: int = 0
    """Seed of the initial weights and the data order."""

    def __post_init__(self) -> None:
        if self.recompute < 0:
            raise ValueError("recompute must be 0 or more")
        for text in self.skip_steps:
            step_range(text)


@settings
class TuneSettings(TrainSettings):
    """Settings of stages that start from a checkpoint and train on rows that are never split."""

    checkpoint: Path
    """Checkpoint to start from, with its tokenizer."""
    epochs: float = 1.0
    """Number of passes over all rows."""
    max_steps: int | None = None
    """Most steps, whatever `epochs` says."""
    rows: RowSettings = field(default_factory=RowSettings)
    """How rows are read: column names, weights of files, and what is done with rows that are too long."""
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    """Held-out rows, whose loss is measured during training."""
    template: str | None = None
    """Chat format (llama3, chatml, tulu, vicuna, or a .jinja file) if the checkpoint has none; saved with the model."""
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(row_tokens=1024))
    """Batch size and row length; each example must fit into a row."""
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=1e-5))
    """AdamW or Muon."""
    dtype: Dtype = "stored"
    """dtype of weights and activations (masters are fp32). stored: the checkpoint's; auto: the faster one as measured
    here; fp8: bf16, with float8 matmuls for the shapes where a probe on this GPU shows a gain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batch.check_whole_rows()
        if self.epochs <= 0 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError("epochs must be positive, max_steps at least 1")
