"""AdamW over the shards of a model on a mesh: the counterpart of `FlatAdamW`, with the same names in its state."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from herd.parallel.chunk import local_part
from herd.parallel.model import ParallelModel, Shard
from herd.train.optimizer import OptimizerSettings, kind_of

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedAdamW:
    """AdamW on this rank's float32 shards of the trainable parameters; `num_steps` counts finished updates.

    Gradients are already summed over processes (`ParallelModel.losses`), and are divided once, by the global count.
    """

    def __init__(self, model: ParallelModel, options: OptimizerSettings):
        self.options, self.num_steps = options, 0
        self.shards = [shard for shard in model.shards() if shard.parameter.requires_grad]
        kinds: dict[tuple[bool, float, bool], list[Shard]] = {}
        for shard in self.shards:
            kinds.setdefault(kind_of(shard.name, shard.parameter, options), []).append(shard)
        self._multipliers = [multiplier for _, multiplier, _ in kinds]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [shard.parameter for shard in shards], "weight_decay": options.weight_decay * decays}
                for (decays, _, _), shards in kinds.items()
            ],
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            fused=True,
        )
        for shard in self.shards:
            moments = {name: torch.zeros_like(shard.parameter) for name in _MOMENTS}
            step = torch.zeros((), dtype=torch.float32, device=shard.parameter.device)
            self._adamw.state[shard.parameter] = {"step": step, **moments}

    def norm(self, count: float) -> float:
        """The global norm of the summed gradients divided by `count`; copies of a shard count once."""
        squares = [g.double().square().sum() / copies for g, copies in self._gradients()]
        device = self.shards[0].parameter.device
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.sqrt().item() / count

    def step(self, learning_rate: float, count: float, norm: float) -> None:
        """Divide the summed gradients by `count`, clip them by their global `norm`, update, and clear them."""
        clip = self.options.clip_norm
        scale = min(1.0, clip / (norm + 1e-6)) / count if clip else 1.0 / count
        for group, multiplier in zip(self._adamw.param_groups, self._multipliers):
            group["lr"] = learning_rate * multiplier
        torch._foreach_mul_([gradient for gradient, _ in self._gradients()], scale)
        self._adamw.step()
        self.drop_gradients()
        self.num_steps += 1

    def drop_gradients(self) -> None:
        """Clear the gradients (of an interrupted or skipped step)."""
        for shard in self.shards:
            shard.parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Masters, moments and the number of steps, under the names of the whole model, as views."""
        tensors: dict[str, Tensor] = {"optimizer/num_steps": torch.tensor(self.num_steps)}
        for shard in self.shards:
            if 0 in shard.shape:
                continue
            moments = self._adamw.state[shard.parameter]
            tensors[f"master/{shard.name}"] = shard.chunk()
            tensors |= {f"{moment}/{shard.name}": shard.chunk(moments[moment]) for moment in _MOMENTS}
        return tensors

    def restored(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a loaded state: call it after the views of `state` have been filled in place."""
        self.num_steps = int(tensors["optimizer/num_steps"])
        for shard in self.shards:
            self._adamw.state[shard.parameter]["step"].fill_(self.num_steps)

    def _gradients(self) -> list[tuple[Tensor, int]]:
        """This rank's gradients, each with the number of ranks that hold the same shard."""
        gradients = ((shard.parameter.grad, shard.copies) for shard in self.shards)
        return [(local_part(gradient), copies) for gradient, copies in gradients if gradient is not None]
