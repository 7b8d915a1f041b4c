"""Where a run's model is placed: whole on one device, whole on each of several processes, or split over a mesh.

One process has the whole model, on its GPU if there is one. Several split it as `parallel:` says; with adapters the
frozen base is sharded in the model's dtype. With `replicas` alone and adapters, bfloat16 state or Muon, each process
has the whole model, and gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from herd.errors import ConfigError
from herd.formats.checkpoint import Checkpoint
from herd.formats.folder import close_files
from herd.formats.stored import StoredWeights
from herd.model.config import SEQUENCE_CLASSIFICATION, ModelConfig, num_parameters
from herd.model.init import fresh_weights, initialize
from herd.model.llama import Llama, empty_model
from herd.model.reward import as_reward_model, fresh_score
from herd.ops.probe import quiet_matmul_rate
from herd.parallel.launch import agreed, num_processes, this_process
from herd.parallel.layout import RankLayout, check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.train.compile import Compile, choose_float8, compile_model, recompute_layers
from herd.train.lora import adapt, adapter_parameters, add_adapters, fresh_adapters
from herd.train.optimizer import STATE_BYTES, OptimizerSettings, keeps_copies, mesh_faults

Weights = Callable[[], Iterable[tuple[str, Tensor]]]
"""Yields the initial weights by name, one at a time; can be called repeatedly."""

_STATE_COPIES = 3  # of the state on disk at once: the last good one, the one being written, and a checkpoint


@dataclass(frozen=True)
class Placement:
    """How a run's model is placed on its processes: made by `place`."""

    config: ModelConfig
    parallel: ParallelSettings
    optimizer: OptimizerSettings
    layout: RankLayout
    device: torch.device

    @property
    def copied(self) -> bool:
        """Whether each process has the whole model."""
        return self.layout.world == 1 or (keeps_copies(self.optimizer) and self.parallel.of_one_copy == 1)

    @property
    def rows(self) -> dict[str, int]:
        """This process's share of the rows, as arguments of a loader."""
        return {"rank": self.layout.data_index(this_process()), "world": self.layout.num_data}

    @property
    def disk_bytes(self) -> float:
        """Disk space for training states and the final checkpoint."""
        whole = num_parameters(self.config)
        learned = adapter_parameters(self.config, self.optimizer.lora) if self.optimizer.lora.rank else whole
        checkpoint = 4 * whole if self.optimizer.lora.rank else 0
        return _STATE_COPIES * STATE_BYTES[self.optimizer.state] * learned + checkpoint

    def peak_flops(self, model: Llama | ParallelModel) -> float:
        """The matmul rate of all processes together, extrapolated from the first one's measurement."""
        dtype = model.dtype if isinstance(model, ParallelModel) else next(model.parameters()).dtype
        return agreed(lambda: quiet_matmul_rate(dtype, self.device.type)) * self.layout.world

    def model(self, whole: Callable[[], Llama], weights: Weights, dtype: torch.dtype) -> Llama | ParallelModel:
        """This process's model: the result of `whole`, moved to its device, or its part, filled from `weights`.

        On a mesh no process holds more than its part and one tensor at a time.
        """
        lora = self.optimizer.lora
        if self.copied:
            model = whole()
            if lora.rank:
                add_adapters(model, lora, device=self.device)
            return model.to(self.device)
        given = (self.config, self.parallel, Mesh(self.layout, self.device), dtype)
        part = (
            ParallelModel(*given, adapt=partial(adapt, options=lora), base=weights)
            if lora.rank
            else ParallelModel(*given)
        )
        part.materialize().fill(chain(weights(), fresh_adapters(part.whole())))
        return part

    def begin(
        self, start: Checkpoint | None, dtype: torch.dtype | None, *, seed: int, embedding_range: float | None
    ) -> Llama | ParallelModel:
        """A new model initialized with `seed`, or the weights of `start` with this configuration's RoPE and context."""
        dtype = dtype or (start.weights.dtype if start else torch.float32)
        fresh = partial(fresh_weights, seed=seed, embedding_range=embedding_range)

        def whole() -> Llama:
            if start is None:
                model = empty_model(self.config, device="cpu")
                initialize(model, seed, embedding_range=embedding_range)
                return model.to(dtype)
            model = start.load(dtype=dtype)
            model.config = model.model.config = self.config
            return model

        return self.model(whole, lambda: read_all(start.weights) if start else fresh(empty_model(self.config)), dtype)

    def load(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype | None = None, score_seed: int = 0
    ) -> Llama | ParallelModel:
        """A checkpoint's model, by default in its stored dtype.

        A reward model gets a fresh score head, initialized with `score_seed`.
        """
        wish = dtype or (torch.bfloat16 if self.optimizer.state == "bf16" else None)

        def whole() -> Llama:
            model = checkpoint.load(dtype=wish)
            close_files()
            return as_reward_model(model, score_seed) if scores else model

        scores = self.config.architecture == SEQUENCE_CLASSIFICATION
        score = [("score.weight", fresh_score(self.config, score_seed))] if scores else []
        stored = checkpoint.weights
        return self.model(whole, lambda: chain(read_all(stored), score), wish or stored.dtype)


def place(
    config: ModelConfig,
    parallel: ParallelSettings,
    optimizer: OptimizerSettings,
    device: torch.device,
    *,
    row_tokens: int,
    whole_rows: bool = False,
) -> Placement:
    """The placement of a model of this shape on the running processes; `whole_rows` if the objective needs them.

    Raises:
        ConfigError: model, settings and number of processes do not fit together; every problem is named.
    """
    if faults := mesh_faults(optimizer, parallel, whole_rows):
        raise ConfigError("parallel: " + "\n  ".join(faults))
    if optimizer.lora.rank > config.hidden_size:
        raise ConfigError(
            f"optimizer.lora.rank {optimizer.lora.rank:,} is more than hidden_size ({config.hidden_size:,}), but "
            "adapters should be small: 8 to 64 are usual"
        )
    layout = check(config, parallel, num_processes(), row_tokens)
    return Placement(config, parallel, optimizer, layout, device)


def read_all(stored: StoredWeights) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's weights by name, one at a time, in their stored dtype; quantized ones as float32."""
    for name, tensor in stored.tensors.items():
        dtype = getattr(torch, tensor.dtype, torch.float32)
        yield name, stored.read(name, dtype if dtype.itemsize > 1 else torch.float32)


def prepare(model: Llama | ParallelModel, compiled: Compile, recompute: int, float8_micro_tokens: int = 0) -> str:
    """Set up compilation, activation checkpointing and float8 as requested; returns what is compiled, for a message."""
    parts = model.parts if isinstance(model, ParallelModel) else [model]
    for part in parts:
        if float8_micro_tokens:
            choose_float8(part, float8_micro_tokens)
        recompute_layers(part, recompute)
    return [compile_model(part, compiled) for part in parts][-1]
