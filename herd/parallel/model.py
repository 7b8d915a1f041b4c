"""A rank's part of a model: some layers, some heads, a shard of their weights; built from `herd.model.llama`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from herd.model.config import ModelConfig
from herd.model.llama import AttentionContext, Llama, LlamaForCausalLM, Objective, empty_model
from herd.ops.attention import packed_attention
from herd.parallel.chunk import LocalShard, local_part
from herd.parallel.context import ContextAttention, cut_batch
from herd.parallel.layout import layers_of_stages, part_config
from herd.parallel.mesh import Mesh
from herd.parallel.pipeline import make_schedule, make_stage
from herd.parallel.settings import ParallelSettings
from herd.parallel.tensor import split_dimension, split_model
from herd.types import IGNORE, Batch, Loss

R = TypeVar("R")


class Stage(nn.Module):
    """A pipeline stage: layers, with the embedding if it is the first; with norm, head and objective if the last."""

    def __init__(self, llama: Llama, first: bool, last: bool):
        super().__init__()
        self.llama, self.first, self.last = llama, first, last
        self.objective: Callable[[Tensor, Any, Batch], Any] | None = None
        self.losses: list[Loss] = []

    def forward(
        self, x: Tensor, *, tokens: Tensor, positions: Tensor, document_ids: Tensor, labels: Tensor, **columns: Tensor
    ) -> Tensor:
        """Tokens or hidden states in, hidden states or the summed loss out; losses are also added to `losses`."""
        body = self.llama.model
        hidden = body(body.embed(x) if self.first else x, positions, AttentionContext(document_ids))
        if not self.last:
            return hidden
        batch = Batch(
            tokens=tokens, labels=labels, positions=positions, document_ids=document_ids, columns=_plain(columns)
        )
        assert self.objective is not None
        loss = self.objective(hidden, _head(self.llama), batch)
        if not isinstance(loss, Loss):
            return loss
        self.losses.append(Loss(loss.sum.detach(), loss.count, loss.metrics))
        return loss.sum


@dataclass(frozen=True)
class Shard:
    """A parameter on this rank: its position in the whole tensor, and how many ranks have the same."""

    name: str  # in the whole model
    parameter: nn.Parameter
    whole: torch.Size
    offset: torch.Size
    shape: torch.Size  # of the block on this rank
    copies: int  # ranks with the same block
    split: bool  # over tensor-parallel processes; otherwise each of them has a part of the gradient

    def chunk(self, tensor: Tensor | None = None) -> LocalShard:
        """The parameter, or another tensor of its shape (a gradient, a moment), as a block of the whole."""
        return LocalShard(local_part(self.parameter if tensor is None else tensor).detach(), self.offset, self.whole)

    def fill(self, whole: Tensor) -> None:
        """Copy this rank's block from the whole tensor."""
        block = whole[tuple(slice(begin, begin + size) for begin, size in zip(self.offset, self.shape))]
        with torch.no_grad():
            local_part(self.parameter).copy_(block)


class ParallelModel(nn.Module):
    """This rank's stages of the model `config` on a mesh, without weights at first (see `fill`).

    Trained parameters are float32 shards, gathered in `dtype` for computation. Gradients are summed, never averaged, in
    float32 over micro-batches and processes. `adapt` is called with each part before it is sharded; parameters that it
    freezes are stored in `dtype`. Frozen weights are not in the training state: `base` yields the whole model's weights
    by name, as for `fill`, for assembling the model again.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: ParallelSettings,
        mesh: Mesh,
        dtype: torch.dtype = torch.float32,
        *,
        adapt: Callable[[Llama], None] = lambda llama: None,
        base: Callable[[], Iterable[tuple[str, Tensor]]] = lambda: (),
    ):
        super().__init__()
        self.config, self.settings, self.mesh, self.dtype = config, settings, mesh, dtype
        self.adapt, self.base = adapt, base
        held = layers_of_stages(config, settings)
        own = range(mesh.place["pipeline"], settings.num_stages, settings.pipeline)
        self.indices = list(own)
        self.stages = nn.ModuleList(self._stage(held[index], index) for index in own)
        self._schedules: dict[tuple[int, ...], Any] = {}

    @property
    def _own(self) -> list[Stage]:
        return cast("list[Stage]", list(self.stages))

    def materialize(self) -> ParallelModel:
        """Allocate the weights on the mesh's device."""
        return self.to_empty(device=self.mesh.device)

    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy this rank's share from the whole model's weights, which are given by name."""
        shards = {shard.name: shard for shard in self.shards()}
        for name, tensor in weights:
            if name in shards:
                shards[name].fill(tensor)

    def shards(self) -> Iterator[Shard]:
        """This rank's parameters."""
        for stage in self._own:
            for name, parameter in stage.llama.named_parameters():
                yield self._shard(name, parameter)

    def whole(self) -> Llama:
        """The whole model in `dtype`, without weights (device `meta`)."""
        llama = empty_model(self.config).to(self.dtype)
        self.adapt(llama)
        return llama

    @torch.no_grad()
    def gather(self, into: Llama | None = None) -> Llama:
        """The whole model with its current weights on every rank's CPU, in `dtype`; all ranks call it together.

        With `into` they are copied in place, so that an engine around it can be kept (`Engine.weights_changed`). Shards
        are summed with zeros, each block from exactly one rank, so that the values are exact.
        """
        whole = self.whole().to_empty(device="cpu") if into is None else into
        own = {shard.name: shard for shard in self.shards()}
        answers = self.mesh.place["replicas"] == 0
        for name, parameter in whole.named_parameters():
            full = torch.zeros(parameter.shape, device=self.mesh.device)
            shard = own.get(name)
            if shard is not None and answers and (shard.split or self.mesh.place["tensor"] == 0):
                block = tuple(slice(begin, begin + size) for begin, size in zip(shard.offset, shard.shape))
                full[block] = local_part(shard.parameter).to(full)
            dist.all_reduce(full)
            parameter.copy_(full)
        if isinstance(whole, LlamaForCausalLM):
            whole.tie_weights()
        return whole.eval()

    @property
    def parts(self) -> list[Llama]:
        """The models of this rank's stages, with some layers each."""
        return [stage.llama for stage in self._own]

    def losses(self, objective: Objective, batches: Sequence[Batch]) -> list[Loss]:
        """Forward and backward over this rank's micro-batches of a step; gradients are summed over all processes.

        All ranks call it together, with the same number of micro-batches (`PackedLoader.batches`). Each rank returns
        its share of the losses, so that over all ranks every token counts once.
        """
        batches = self._evened(batches)
        if self.mesh.context is not None:
            batches = [cut_batch(batch, self.mesh.place["context"], self.mesh.size("context")) for batch in batches]
        batches = [batch.to(self.mesh.device) for batch in batches]
        for stage in self._own:
            stage.objective, stage.losses = objective, []
        if self.mesh.pipeline is None:
            self._run(self._own[0], batches)
        else:
            self._run_pipeline(batches)
        self._sum_over_sequence()
        last = self._own[-1]
        return last.losses if last.last and self.mesh.place["tensor"] == 0 else []

    @torch.no_grad()
    def run(self, function: Callable[[Tensor, Any, Batch], R], batch: Batch) -> R:
        """Call a function with hidden states, head and batch, forward only; for sharded and copied models.

        All ranks call it together, each with its own batch.
        """
        [stage] = self._own
        stage.objective = function
        batch = batch.to(self.mesh.device)
        result: R = stage(batch.tokens, **_arguments(batch))
        for module in stage.modules():
            if isinstance(module, FSDPModule):  # the weights will change
                module.reshard()
        return result

    # ---- construction ------------------------------------------------------------------------------------------------

    def _stage(self, layers: range, index: int) -> Stage:
        first, last = index == 0, index == self.settings.num_stages - 1
        attend = packed_attention if self.mesh.context is None else ContextAttention(self.mesh.context)
        narrow = replace(part_config(self.config, self.settings.tensor), num_hidden_layers=max(len(layers), 1))
        llama = empty_model(narrow, attend)
        llama.config = llama.model.config = self.config
        _keep(llama, layers, first, last)
        if self.mesh.tensor is not None:
            assert isinstance(llama, LlamaForCausalLM)  # `check` refuses the others
            split_model(llama, self.config, self.mesh.tensor)
            if first and last:
                llama.tie_weights()
        self.adapt(llama)
        for parameter in llama.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self.dtype)
        stage = Stage(llama, first, last)
        self._fully_shard(stage)
        return stage

    def _fully_shard(self, stage: Stage) -> None:
        options: dict[str, Any] = {
            "mesh": self.mesh.weights,
            "reshard_after_forward": self.settings.reshards,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            ),
        }
        for block in stage.llama.model.blocks:
            fully_shard(block, **options)
        fully_shard(stage, **options)
        for module in stage.modules():
            if isinstance(module, FSDPModule):  # not recursive; gloo supports neither average nor pre-multiplied sum
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def _shard(self, name: str, parameter: nn.Parameter) -> Shard:
        dim, parts, index = split_dimension(name), self.settings.tensor, self.mesh.place["tensor"]
        split = dim is not None and parts > 1
        narrow, mesh = torch.Size(parameter.shape), self.mesh.weights
        shape, offset = compute_local_shape_and_global_offset(narrow, mesh, cast("DTensor", parameter).placements)
        whole, begin = list(narrow), list(offset)
        if split and dim is not None:
            begin[dim] += index * whole[dim]
            whole[dim] *= parts
        copies = self.mesh.size("replicas") * (1 if split else parts)
        return Shard(name, parameter, torch.Size(whole), torch.Size(begin), torch.Size(shape), copies, split)

    # ---- execution ---------------------------------------------------------------------------------------------------

    def _run(self, stage: Stage, batches: Sequence[Batch]) -> None:
        sharded = self.settings.reshards and self.settings.shard * self.settings.context > 1
        assert isinstance(stage, FSDPModule)
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            stage.set_requires_gradient_sync(last or sharded)  # resharded weights have sharded gradients
            stage.set_requires_all_reduce(last)
            stage.set_is_last_backward(last or sharded)
            stage.set_reshard_after_backward(last or self.settings.reshards)
            stage(batch.tokens, **_arguments(batch)).backward()

    def _run_pipeline(self, batches: Sequence[Batch]) -> None:
        (rows, tokens), num_micro = batches[0].tokens.shape, len(batches)
        key = rows, tokens, num_micro
        if key not in self._schedules:
            self._schedules[key] = self._schedule(*key)
        together = {name: torch.cat([_arguments(batch)[name] for batch in batches]) for name in _arguments(batches[0])}
        first = [together["tokens"]] if self._own[0].first else []
        self._schedules[key].step(*first, target=together["labels"], return_outputs=False, **together)

    def _schedule(self, rows: int, tokens: int, num_micro: int) -> Any:
        assert self.mesh.pipeline is not None
        hidden = torch.empty(
            rows, tokens // self.settings.tensor, self.config.hidden_size, dtype=self.dtype, device="meta"
        ).requires_grad_()
        ids = torch.empty(rows, tokens, dtype=torch.int64, device="meta")
        loss = torch.empty((), dtype=torch.float32, device="meta").requires_grad_()
        stages = [
            make_stage(
                stage,
                index,
                self.settings.num_stages,
                self.mesh.pipeline,
                self.mesh.device,
                (ids if stage.first else hidden, loss if stage.last else hidden),
            )
            for stage, index in zip(self._own, self.indices)
        ]
        return make_schedule(stages, num_micro, self.settings.contiguous)

    def _evened(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches of a pipeline, padded to the same number of rows: its messages have a fixed size."""
        if self.mesh.pipeline is None:
            return list(batches)
        rows = torch.tensor(max(len(batch.tokens) for batch in batches), device=self.mesh.device)
        dist.all_reduce(rows, dist.ReduceOp.MAX)
        missing = len(batches) * int(rows) - sum(len(batch.tokens) for batch in batches)
        return _recut([*batches, _padding(missing, batches[0].tokens.shape[1])], len(batches))

    def _sum_over_sequence(self) -> None:
        """Sum the gradients of norms over tensor-parallel processes, each of which has a part of the sequence."""
        if self.mesh.tensor is None:
            return
        for shard in self.shards():
            if not shard.split and shard.parameter.grad is not None:
                dist.all_reduce(local_part(shard.parameter.grad), group=self.mesh.tensor)


def _keep(llama: Llama, layers: range, first: bool, last: bool) -> None:
    """Keep only one stage's modules, with layers under their numbers in the whole model."""
    kept = nn.ModuleList()
    for number, block in zip(layers, llama.model.layers):
        kept.add_module(str(number), block)
    llama.model.layers = kept
    if not first:
        llama.model.embed_tokens = None  # type: ignore[assignment]
    if not last:
        llama.model.norm = nn.Identity()  # type: ignore[assignment]
        llama.lm_head = None  # type: ignore[assignment]


def _head(llama: Llama) -> nn.Module:
    return llama.lm_head if isinstance(llama, LlamaForCausalLM) else llama.score


_COLUMN = "column_"


def _arguments(batch: Batch) -> dict[str, Tensor]:
    named = {name: getattr(batch, name) for name in ("tokens", "positions", "document_ids", "labels")}
    return named | {_COLUMN + name: column for name, column in batch.columns.items()}


def _plain(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_COLUMN): column for name, column in columns.items()}


def _padding(rows: int, row_tokens: int) -> Batch:
    zeros = torch.zeros(rows, row_tokens, dtype=torch.int64)
    ids = torch.full((rows, row_tokens), -1, dtype=torch.int32)
    columns = {"source": torch.zeros(rows, dtype=torch.int64)}
    return Batch(tokens=zeros, labels=zeros + IGNORE, positions=zeros, document_ids=ids, columns=columns)


def _recut(batches: Sequence[Batch], count: int) -> list[Batch]:
    """The same rows in `count` batches of equal size, with each batch's rows ordered by source."""
    named = [_arguments(batch) for batch in batches]
    whole = {name: torch.cat([arguments[name] for arguments in named]) for name in named[0]}
    source = whole[_COLUMN + "source"]
    whole[_COLUMN + "source"] = source.cummax(0).values  # padding has no source
    parts = [dict(zip(whole, pieces)) for pieces in zip(*(tensor.chunk(count) for tensor in whole.values()))]
    return [_batch(part) for part in parts]


def _batch(arguments: dict[str, Tensor]) -> Batch:
    columns = {name: column for name, column in arguments.items() if name.startswith(_COLUMN)}
    return Batch(columns=_plain(columns), **{name: x for name, x in arguments.items() if name not in columns})
