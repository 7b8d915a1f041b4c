"""Where a run's model lies: whole on one device, whole on each of several processes, or spread over a mesh.

One process has the model whole, on its GPU if there is one. Several share it as `parallel:` says; with adapters the
frozen base lies in shards of the model's own number type. Copies alone (`replicas`) learn adapters and with bfloat16
state as one process does, each the whole model, and sum their gradients.
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
from herd.formats.stored import StoredWeights
from herd.model.config import SEQUENCE_CLASSIFICATION, ModelConfig, num_parameters
from herd.model.init import fresh_weights, initialize
from herd.model.llama import Llama, empty_model
from herd.model.reward import as_reward_model, fresh_score
from herd.ops.probe import quiet_matmul_rate
from herd.parallel.launch import agreed, num_processes, this_process
from herd.parallel.layout import Layout, check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.train.compile import Compile, choose_float8, compile_model, recompute_layers
from herd.train.lora import adapt, adapter_parameters, add_adapters, fresh_adapters
from herd.train.optimizer import STATE_BYTES, OptimizerSettings, keeps_copies, mesh_faults

Weights = Callable[[], Iterable[tuple[str, Tensor]]]
"""Gives the weights that training begins with, by name, one at a time, whenever it is called."""

_STATE_COPIES = 3  # of the state on disk at once: the last good one, the one being written, and a checkpoint


@dataclass(frozen=True)
class Placement:
    """How a run lies over its processes: made by `place`."""

    config: ModelConfig
    parallel: ParallelSettings
    optimizer: OptimizerSettings
    layout: Layout
    device: torch.device

    @property
    def copied(self) -> bool:
        """Whether each process has the whole model."""
        return self.layout.world == 1 or (keeps_copies(self.optimizer) and self.parallel.of_one_copy == 1)

    @property
    def rows(self) -> dict[str, int]:
        """Which share of the rows this process sees, in a loader's words."""
        return {"rank": self.layout.data_index(this_process()), "world": self.layout.num_data}

    @property
    def disk_bytes(self) -> float:
        """What states and the final checkpoint take on disk."""
        whole = num_parameters(self.config)
        learned = adapter_parameters(self.config, self.optimizer.lora) if self.optimizer.lora.rank else whole
        checkpoint = 4 * whole if self.optimizer.lora.rank else 0
        return _STATE_COPIES * STATE_BYTES[self.optimizer.state] * learned + checkpoint

    def peak_flops(self, model: Llama | ParallelModel) -> float:
        """The arithmetic rate of all processes together, as the first one measures its own."""
        dtype = model.dtype if isinstance(model, ParallelModel) else next(model.parameters()).dtype
        return agreed(lambda: quiet_matmul_rate(dtype, self.device.type)) * self.layout.world

    def model(self, whole: Callable[[], Llama], weights: Weights, dtype: torch.dtype) -> Llama | ParallelModel:
        """The model of this process: `whole` made and moved, or its part of it filled from `weights`, read by name.

        Of a model on a mesh no process holds more than its part and a tensor at a time.
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
        """A new model of the shape, drawn with `seed`, or the weights of `start` under it (its RoPE and context)."""
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
        """A checkpoint's model, in the number type it is stored in where no other is asked for.

        A reward model gets a fresh score head, drawn with `score_seed`.
        """
        wish = dtype or (torch.bfloat16 if self.optimizer.state == "bf16" else None)

        def whole() -> Llama:
            model = checkpoint.load(dtype=wish)
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
    """How a model of this shape lies over the processes there are; `whole_rows` where an objective needs whole rows.

    Raises:
        ConfigError: model, settings and number of processes do not go together; every fault is named.
    """
    if faults := mesh_faults(optimizer, parallel, whole_rows):
        raise ConfigError("parallel: " + "\n  ".join(faults))
    if optimizer.lora.rank > config.hidden_size:
        raise ConfigError(
            f"optimizer.lora.rank {optimizer.lora.rank:,} is more than the model's width ({config.hidden_size:,}), of "
            "which adapters are to be a small part: 8 to 64 are usual"
        )
    layout = check(config, parallel, num_processes(), row_tokens)
    return Placement(config, parallel, optimizer, layout, device)


def read_all(stored: StoredWeights) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's weights by name, one at a time, as they are stored; in float32 what is packed."""
    for name, tensor in stored.tensors.items():
        dtype = getattr(torch, tensor.dtype, torch.float32)
        yield name, stored.read(name, dtype if dtype.itemsize > 1 else torch.float32)


def prepare(model: Llama | ParallelModel, compiled: Compile, recompute: int, float8_micro_tokens: int = 0) -> str:
    """Compile the blocks, let some of them recompute, and use float8 where it was asked for; says what is compiled."""
    parts = model.parts if isinstance(model, ParallelModel) else [model]
    for part in parts:
        if float8_micro_tokens:
            choose_float8(part, float8_micro_tokens)
        recompute_layers(part, recompute)
    return [compile_model(part, compiled) for part in parts][-1]
