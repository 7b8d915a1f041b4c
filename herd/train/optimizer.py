"""AdamW over a few flat float32 buffers instead of hundreds of small tensors.

Each group of parameters (with and without weight decay; the embedding if its learning rate differs) is one flat buffer
of the model's dtype, of which the model's parameters become views. There are flat buffers too for the float32 masters,
the float32 gradients summed over micro-batches, and the two moments: a step is a few passes over contiguous memory.

With `state=bf16` nothing of that is float32: weights are their own masters, gradients and moments are bfloat16, and
updates are rounded stochastically, so that changes smaller than a rounding step are made on average. That is eight
bytes per parameter instead of eighteen: full fine-tuning of 8B parameters fits on one GPU of 139 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from herd.config import settings
from herd.errors import ConfigError
from herd.parallel.settings import ParallelSettings
from herd.train.lora import LoraSettings

UPDATE_CHUNK = 2**24
"""Elements of a bfloat16 update that are expanded to float32 at a time."""
_NORM_PART = 2**16  # elements
_ALIGN = 64  # elements: every parameter begins at a cache line, in any dtype


@settings
class OptimizerSettings:
    """AdamW, or Muon for the blocks' matrices."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the blocks' matrices, scaled to AdamW's learning rate; AdamW for embedding, output and norms."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the running mean of gradients."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients."""
    momentum: float = 0.95
    """Muon's decay of the running sum of gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay, multiplied by the learning rate (Llama 3's scaling runs: 0.1); not for norms."""
    clip_norm: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it (0: no clipping)."""
    embedding_multiplier: float = 1.0
    """Factor on the learning rate of embedding and output."""
    state: Literal["fp32", "bf16"] = "fp32"
    """dtype of masters, gradient sums and moments: 16 bytes per parameter beside the weights' 2, or 6."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Learn low-rank adapters instead of the weights themselves."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.embedding_multiplier <= 0:
            raise ValueError("learning_rate and embedding_multiplier must be positive")
        if not all(0 <= one < 1 for one in (self.beta1, self.beta2, self.momentum)):
            raise ValueError("beta1, beta2 and momentum must be in [0, 1)")
        if self.kind == "muon" and (self.state != "fp32" or self.lora.rank):
            raise ValueError("kind=muon needs state=fp32 and all weights trained: leave out state=bf16 and lora")
        if min(self.eps, self.weight_decay, self.clip_norm) < 0:
            raise ValueError("eps, weight_decay and clip_norm must be 0 or more")


STATE_BYTES = {"fp32": 12, "bf16": 6}
"""Per parameter in a saved state: its master and two moments."""


def is_narrow(options: OptimizerSettings) -> bool:
    """Whether the state is smaller than float32 for all weights: adapters, or bfloat16."""
    return bool(options.lora.rank) or options.state != "fp32"


def keeps_copies(options: OptimizerSettings) -> bool:
    """Whether replicas hold whole copies instead of shards: with narrow state, and with Muon."""
    return is_narrow(options) or options.kind == "muon"


def mesh_faults(options: OptimizerSettings, parallel: ParallelSettings, whole_rows: bool = False) -> list[str]:
    """The settings that do not work on a mesh, in sentences; `whole_rows` if the objective needs whole rows.

    With replicas alone everything works.
    """
    if parallel.of_one_copy == 1:
        return []
    faults = []
    if whole_rows and parallel.of_one_copy > parallel.shard:
        faults.append(
            "reward models, DPO and distillation need whole rows, which tensor, context and pipeline split; "
            "use replicas and shard"
        )
    if options.state != "fp32":
        faults.append("optimizer.state=bf16 needs a whole copy on each process (replicas alone); use fp32 on a mesh")
    if options.kind == "muon":
        faults.append("optimizer.kind=muon needs whole matrices, which a mesh splits; use replicas alone, or adamw")
    if options.lora.rank and options.lora.base != "as_is":
        faults.append(
            "optimizer.lora.base=nf4 needs a whole copy on each process (replicas alone); use base=as_is with shards"
        )
    if options.lora.modules_to_save:
        faults.append("optimizer.lora.modules_to_save needs a whole copy on each process (replicas alone)")
    if options.lora.rank and parallel.tensor * parallel.pipeline > 1:
        faults.append("optimizer.lora works with replicas, shard and context, not with tensor or pipeline")
    return faults


class FlatAdamW:
    """AdamW with float32 masters for a model's trainable parameters; `num_steps` counts finished updates.

    With `kind` muon the blocks' matrices, views of their group's buffers, are updated by `torch.optim.Muon` instead,
    whose updates are scaled to the size of AdamW's, so that one learning rate fits both.

    Source of Muon: Jordan et al. 2024; of the scale: Liu et al. 2025, arXiv 2502.16982.
    """

    def __init__(self, model: nn.Module, options: OptimizerSettings):
        self.options, self.narrow = options, options.state == "bf16"
        if self.narrow and any(p.dtype != torch.bfloat16 for p in model.parameters() if p.requires_grad):
            raise ConfigError("optimizer.state=bf16 needs the model in bf16; set dtype=bf16")
        self.groups = [_Group(found, narrow=self.narrow, **kind) for kind, found in _grouped(model, options)]
        self._plain = [group for group in self.groups if not group.muon]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [group.master], "weight_decay": options.weight_decay if group.decays else 0.0}
                for group in self._plain
            ],
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            fused=True,
        )
        self._by_muon = [(group, _Muon(group, options)) for group in self.groups if group.muon]
        self.num_steps = 0
        self._set_moments()

    def collect(self) -> None:
        """Add the parameters' gradients of one micro-batch to the float32 sums and free them."""
        for group in self.groups:
            group.collect()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect each gradient as soon as the backward pass has computed it, so that they never exist all at once."""
        handles = [handle for group in self.groups for handle in group.hooks()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def reduce(self) -> None:
        """Sum the gradients over all processes, if there are several."""
        if dist.is_available() and dist.is_initialized():
            for group in self.groups:
                dist.all_reduce(group.sums())

    def norm(self, count: float) -> float:
        """The global norm of the summed gradients divided by `count`."""
        parts = [part for group in self.groups for part in _norm_parts(group.sums())]
        norms = torch.stack(torch._foreach_norm(parts, dtype=torch.float32))
        return float(torch.linalg.vector_norm(norms).item()) / count

    def step(self, learning_rate: float, count: float, norm: float) -> None:
        """Divide the summed gradients by `count`, clip them by their global `norm`, update, and clear them."""
        clip = self.options.clip_norm
        scale = min(1.0, clip / (norm + 1e-6)) / count if clip else 1.0 / count
        for group, muon in self._by_muon:
            muon.step(group.sums().mul_(scale), learning_rate)
        for number, (group, adamw_group) in enumerate(zip(self._plain, self._adamw.param_groups)):
            adamw_group["lr"] = learning_rate * group.multiplier
            if self.narrow:
                self._narrow_step(group, adamw_group, scale, seed=self.num_steps * 1009 + number)
            else:
                group.master.grad = group.sums().mul_(scale)
        if not self.narrow:
            self._adamw.step()
        for group in self.groups:
            group.publish()
        self.num_steps += 1

    def drop_gradients(self) -> None:
        """Clear the gradients collected so far (of an interrupted or skipped step)."""
        for group in self.groups:
            group.forget()

    def state(self) -> dict[str, Tensor]:
        """Masters, moments and the number of steps, by parameter name, as views."""
        tensors: dict[str, Tensor] = {"optimizer/num_steps": torch.tensor(self.num_steps)}
        for group, muon in self._by_muon:
            for kind, flat in (("master", group.master.detach()), ("momentum", muon.momentum)):
                tensors |= {f"{kind}/{name}": view for name, view in group.views(flat)}
        for group in self._plain:
            moments = self._adamw.state[group.master]
            for kind, flat in (("master", group.master.detach()), *((m, moments[m]) for m in _MOMENTS)):
                tensors |= {f"{kind}/{name}": view for name, view in group.views(flat)}
        return tensors

    def restored(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a loaded state: call it after the views of `state` have been filled in place."""
        self.num_steps = int(tensors["optimizer/num_steps"])
        for group in self._plain:
            self._adamw.state[group.master]["step"].fill_(self.num_steps)
        for group in self.groups:
            group.publish()

    @torch.no_grad()
    def _narrow_step(self, group: _Group, options: dict[str, Any], scale: float, seed: int) -> None:
        """AdamW in float32 on one chunk at a time, written back with stochastic rounding, deterministic by `seed`."""
        moments, step = self._adamw.state[group.master], self.num_steps + 1
        (beta1, beta2), rate = options["betas"], options["lr"]
        generator = torch.Generator(group.master.device).manual_seed(seed)
        kept = (group.master.detach(), moments["exp_avg"], moments["exp_avg_sq"])
        for parts in zip(group.sums().split(UPDATE_CHUNK), *(tensor.split(UPDATE_CHUNK) for tensor in kept)):
            gradient, weight, mean, square = (part.float() for part in parts)
            gradient *= scale
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = (square / (1 - beta2**step)).sqrt_().add_(options["eps"])
            weight.mul_(1 - rate * options["weight_decay"]).addcdiv_(mean, root, value=-rate / (1 - beta1**step))
            for part, wide in zip(parts[1:], (weight, mean, square)):
                part.copy_(stochastically_rounded(wide, generator))

    def _set_moments(self) -> None:
        for group in self._plain:
            moments = {name: torch.zeros_like(group.master) for name in _MOMENTS}
            step = torch.zeros((), dtype=torch.float32, device=group.master.device)
            self._adamw.state[group.master] = {"step": step, **moments}


_MOMENTS = ("exp_avg", "exp_avg_sq")


class _Muon:
    """Muon for the matrices of a group, which stay views of its flat buffers."""

    def __init__(self, group: _Group, options: OptimizerSettings):
        self.group, self.momentum = group, torch.zeros_like(group.master.detach())
        self.matrices = [nn.Parameter(view) for _, view in group.views(group.master.detach())]
        self._muon = torch.optim.Muon(
            self.matrices,
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        for matrix, (_, view) in zip(self.matrices, group.views(self.momentum)):
            self._muon.state[matrix] = {"momentum_buffer": view}

    def step(self, gradients: Tensor, learning_rate: float) -> None:
        """One update from the group's flat gradients."""
        for matrix, (_, view) in zip(self.matrices, self.group.views(gradients)):
            matrix.grad = view
        self._muon.param_groups[0]["lr"] = learning_rate
        self._muon.step()
        for matrix in self.matrices:
            matrix.grad = None


def _norm_parts(x: Tensor) -> Sequence[Tensor]:
    """Parts small enough for an exact norm: on a CPU PyTorch sums sequentially, which is 0.5 % off for 67M elements."""
    return x.split(_NORM_PART) if x.device.type == "cpu" else [x]


def stochastically_rounded(x: Tensor, generator: torch.Generator) -> Tensor:
    """float32 to bfloat16, rounded up or down at random so that the mean is right; changes `x`."""
    noise = torch.randint(0, 2**16, x.shape, generator=generator, dtype=torch.int32, device=x.device)
    return x.view(torch.int32).add_(noise).bitwise_and_(-(2**16)).view(torch.float32).bfloat16()


class _Group:
    """Parameters of one kind in flat buffers."""

    def __init__(
        self,
        parameters: list[tuple[str, nn.Parameter]],
        *,
        decays: bool,
        multiplier: float,
        muon: bool,
        narrow: bool = False,
    ):
        self.parameters, self.decays, self.multiplier, self.narrow = parameters, decays, multiplier, narrow
        self.muon = muon
        self.begins, size = [], 0
        for _, parameter in parameters:
            self.begins.append(size)
            size += -(-parameter.numel() // _ALIGN) * _ALIGN
        first = parameters[0][1]
        self.values = torch.zeros(size, dtype=first.dtype, device=first.device)
        for (_, parameter), (_, view) in zip(parameters, self.views(self.values)):
            view.copy_(parameter.detach())
            parameter.data = view
        own = narrow or first.dtype == torch.float32  # the weights are their own masters
        self.master = nn.Parameter(self.values if own else self.values.float())
        self._sums = torch.zeros(size, dtype=first.dtype if narrow else torch.float32, device=first.device)
        self._sum_views = [view for _, view in self.views(self._sums)]
        self.forget()

    def views(self, flat: Tensor) -> list[tuple[str, Tensor]]:
        """A flat buffer as named tensors of the parameters' shapes."""
        return [
            (name, flat[begin : begin + parameter.numel()].view(parameter.shape))
            for (name, parameter), begin in zip(self.parameters, self.begins)
        ]

    def forget(self) -> None:
        """Clear the sums; narrow gradients are accumulated by autograd directly in the flat buffer."""
        self._summed: set[int] = set()  # numbers of the parameters that have a sum
        if self.narrow:
            self._sums.zero_()
            for (_, parameter), view in zip(self.parameters, self._sum_views):
                parameter.grad = view

    def sums(self) -> Tensor:
        if not self.narrow:
            for number, view in enumerate(self._sum_views):
                if number not in self._summed:
                    view.zero_()
                    self._summed.add(number)
        return self._sums

    def collect(self) -> None:
        for number, (_, parameter) in enumerate(self.parameters):
            self._take(number, parameter)

    def hooks(self) -> list[Any]:
        """Collect each gradient as soon as it exists, until these handles are removed."""
        if self.narrow:
            return []
        return [
            parameter.register_post_accumulate_grad_hook(partial(self._take, number))
            for number, (_, parameter) in enumerate(self.parameters)
        ]

    @torch.no_grad()
    def _take(self, number: int, parameter: Tensor) -> None:
        gradient, view = parameter.grad, self._sum_views[number]
        if self.narrow or gradient is None:
            return
        if number in self._summed:
            view.add_(gradient)
        else:
            view.copy_(gradient)
            self._summed.add(number)
        parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model's weights, rounded to their dtype, and clear the gradients."""
        if self.master.dtype != self.values.dtype:
            self.values.copy_(self.master)
        self.master.grad = None
        self.forget()


def kind_of(name: str, parameter: Tensor, options: OptimizerSettings) -> tuple[bool, float, bool]:
    """Whether a parameter has weight decay, the factor on its learning rate, and whether Muon updates it."""
    outer = name.endswith(("embed_tokens.weight", "lm_head.weight"))
    muon = options.kind == "muon" and parameter.ndim == 2 and not outer
    return parameter.ndim > 1, options.embedding_multiplier if outer else 1.0, muon


def _grouped(
    model: nn.Module, options: OptimizerSettings
) -> Iterable[tuple[dict[str, Any], list[tuple[str, nn.Parameter]]]]:
    kinds: dict[tuple[bool, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds.setdefault(kind_of(name, parameter, options), []).append((name, parameter))
    return [(dict(zip(("decays", "multiplier", "muon"), kind)), found) for kind, found in kinds.items()]
