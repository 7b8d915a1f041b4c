"""AdamW over a few flat float32 buffers instead of hundreds of small tensors.

Each group of parameters (with and without weight decay, the embedding apart when its learning rate is) lies in one flat
buffer of the model's dtype, of which the model's parameters become views. Beside it lie a float32 master copy, the
float32 gradients summed over micro-batches, and the two moments: a step is a handful of passes over contiguous memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from herd.config import settings

_ALIGN = 64  # elements: every parameter begins on a cache line, whatever its dtype


@settings
class OptimizerSettings:
    """AdamW."""

    learning_rate: float = 3e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the running mean of gradients."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay per unit of learning rate; norm weights have none."""
    clip_norm: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it (0: never)."""
    embedding_multiplier: float = 1.0
    """The embedding's (and output's) learning rate as a multiple of the others'."""

    def __post_init__(self):
        if self.learning_rate <= 0 or self.embedding_multiplier <= 0:
            raise ValueError("learning_rate and embedding_multiplier must be positive")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError("beta1 and beta2 must lie in [0, 1)")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("weight_decay and clip_norm must be 0 or more")


class FlatAdamW:
    """AdamW with float32 masters for a model's trainable parameters; `num_steps` counts finished updates."""

    def __init__(self, model: nn.Module, options: OptimizerSettings):
        self.options = options
        self.groups = [_Group(parameters, **kind) for kind, parameters in _grouped(model, options)]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [group.master], "weight_decay": options.weight_decay if group.decays else 0.0}
                for group in self.groups
            ],
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            fused=True,
        )
        self.num_steps = 0
        self._set_moments()

    def collect(self) -> None:
        """Add the parameters' gradients of one micro-batch to the float32 sums and free them."""
        for group in self.groups:
            group.collect()

    def reduce(self) -> None:
        """Sum the gradients over all processes, if there are several."""
        if dist.is_available() and dist.is_initialized():
            for group in self.groups:
                dist.all_reduce(group.sums())

    def norm(self, count: float) -> float:
        """The global norm of the summed gradients divided by `count`."""
        norms = torch.stack([torch.linalg.vector_norm(group.sums()) for group in self.groups])
        return torch.linalg.vector_norm(norms).item() / count

    def step(self, learning_rate: float, count: float, norm: float) -> None:
        """Divide the summed gradients by `count`, clip them by their global `norm`, update, and forget them."""
        clip = self.options.clip_norm
        scale = min(1.0, clip / (norm + 1e-6)) / count if clip else 1.0 / count
        for group, adamw_group in zip(self.groups, self._adamw.param_groups):
            adamw_group["lr"] = learning_rate * group.multiplier
            group.master.grad = group.sums().mul_(scale)
        self._adamw.step()
        for group in self.groups:
            group.publish()
        self.num_steps += 1

    def drop_gradients(self) -> None:
        """Forget what was collected (an interrupted or skipped step)."""
        for group in self.groups:
            group.empty = True

    def state(self) -> dict[str, Tensor]:
        """Masters, moments and the number of steps, by parameter name, as views."""
        tensors: dict[str, Tensor] = {"optimizer/num_steps": torch.tensor(self.num_steps)}
        for group in self.groups:
            moments = self._adamw.state[group.master]
            for kind, flat in (("master", group.master.detach()), *((m, moments[m]) for m in _MOMENTS)):
                tensors |= {f"{kind}/{name}": view for name, view in group.views(flat)}
        return tensors

    def restored(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave, after its views have been filled in place."""
        self.num_steps = int(tensors["optimizer/num_steps"])
        for group in self.groups:
            self._adamw.state[group.master]["step"].fill_(self.num_steps)
            group.publish()
            group.empty = True

    def _set_moments(self) -> None:
        for group in self.groups:
            moments = {name: torch.zeros_like(group.master) for name in _MOMENTS}
            step = torch.zeros((), dtype=torch.float32, device=group.master.device)
            self._adamw.state[group.master] = {"step": step, **moments}


_MOMENTS = ("exp_avg", "exp_avg_sq")


class _Group:
    """Parameters of one kind in flat buffers."""

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], *, decays: bool, multiplier: float):
        self.parameters, self.decays, self.multiplier = parameters, decays, multiplier
        self.begins, size = [], 0
        for _, parameter in parameters:
            self.begins.append(size)
            size += -(-parameter.numel() // _ALIGN) * _ALIGN
        first = parameters[0][1]
        self.values = torch.zeros(size, dtype=first.dtype, device=first.device)
        for (_, parameter), (_, view) in zip(parameters, self.views(self.values)):
            view.copy_(parameter.detach())
            parameter.data = view
        self.master = nn.Parameter(self.values.float() if first.dtype != torch.float32 else self.values)
        self._sums = torch.zeros(size, dtype=torch.float32, device=first.device)
        self._sum_views = [view for _, view in self.views(self._sums)]
        self.empty = True

    def views(self, flat: Tensor) -> list[tuple[str, Tensor]]:
        """A flat buffer as named tensors of the parameters' shapes."""
        return [
            (name, flat[begin : begin + parameter.numel()].view(parameter.shape))
            for (name, parameter), begin in zip(self.parameters, self.begins)
        ]

    def sums(self) -> Tensor:
        if self.empty:
            self._sums.zero_()
            self.empty = False
        return self._sums

    def collect(self) -> None:
        pairs = [
            (view, parameter.grad)
            for view, (_, parameter) in zip(self._sum_views, self.parameters)
            if parameter.grad is not None
        ]
        views, gradients = [view for view, _ in pairs], [gradient for _, gradient in pairs]
        if self.empty and len(pairs) == len(self.parameters):
            torch._foreach_copy_(views, gradients)
            self.empty = False
        elif pairs:
            self.sums()
            torch._foreach_add_(views, gradients)
        for _, parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model's own dtype, and await new gradients."""
        if self.master.dtype != self.values.dtype:
            self.values.copy_(self.master)
        self.master.grad = None
        self.empty = True


def kind_of(name: str, parameter: Tensor, options: OptimizerSettings) -> tuple[bool, float]:
    """Whether a parameter decays, and its learning rate as a multiple of the others'."""
    outer = name.endswith(("embed_tokens.weight", "lm_head.weight"))
    return parameter.ndim > 1, options.embedding_multiplier if outer else 1.0


def _grouped(
    model: nn.Module, options: OptimizerSettings
) -> Iterable[tuple[dict[str, object], list[tuple[str, nn.Parameter]]]]:
    kinds: dict[tuple[bool, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds.setdefault(kind_of(name, parameter, options), []).append((name, parameter))
    return [({"decays": decays, "multiplier": multiplier}, found) for (decays, multiplier), found in kinds.items()]
