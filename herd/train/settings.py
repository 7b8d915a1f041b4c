"""The settings of a training run, the same names in every stage that trains."""

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
    """How a run trains, whatever it trains."""

    may_change: ClassVar[tuple[str, ...]] = ("recompute", "compile")

    out: Path
    """Run folder to write."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    """Batch size and row length."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """AdamW."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """Learning rate over the run."""
    saving: SavingSettings = field(default_factory=SavingSettings)
    """What is kept while it runs."""
    stability: StabilitySettings = field(default_factory=StabilitySettings)
    """What is done about spikes of the loss or the gradient."""
    skip_steps: list[str] = field(default_factory=list)
    """Steps of the data's schedule to pass over, `120` or `120-139`, counted from 1."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """How the model and the rows are spread over the processes that `torchrun` starts."""
    dtype: Dtype = "auto"
    """Number type of weights and activations (masters are fp32): `stored` as the checkpoint has it, auto the faster one
    as measured here; fp8: bf16 with matmuls in float8 where a probe of their shape on this GPU says that it gains."""
    compile: Compile = "auto"
    """What a C++ or Triton compiler may make faster; auto: attention on a CPU, whole blocks on a GPU."""
    recompute: int = 0
    """Every so-manieth layer forgets its activations and computes them again backwards: 1 all, 2 half, 0 none."""
    seed: int = 0
    """Seed of fresh weights and of the order of the data."""

    def __post_init__(self) -> None:
        if self.recompute < 0:
            raise ValueError("recompute must be 0 or more")
        for text in self.skip_steps:
            step_range(text)


@settings
class TuneSettings(TrainSettings):
    """How a run trains that starts from a checkpoint and goes through rows which are never cut."""

    checkpoint: Path
    """Checkpoint to start from, its tokenizer beside it."""
    epochs: float = 1.0
    """How often all rows are gone through."""
    max_steps: int | None = None
    """At most so many steps, whatever `epochs` says."""
    rows: RowSettings = field(default_factory=RowSettings)
    """How rows are read: columns of other names, files that count more, what becomes of long ones."""
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    """Rows kept aside, whose loss is measured while the run goes."""
    template: str | None = None
    """Chat format (llama3, chatml, tulu, vicuna, or a .jinja file) for a checkpoint that has none; it travels on."""
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(row_tokens=1024))
    """Batch size and row length; whatever is learned as a whole must fit into a row."""
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=1e-5))
    """AdamW."""
    dtype: Dtype = "stored"
    """Number type of weights and activations (masters are fp32): `stored` as the checkpoint has it, auto the faster one
    as measured here; fp8: bf16 with matmuls in float8 where a probe of their shape on this GPU says that it gains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batch.check_whole_rows()
        if self.epochs <= 0 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError("epochs must be positive, max_steps at least 1")
