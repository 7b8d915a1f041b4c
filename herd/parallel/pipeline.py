"""Running our schedule of micro-batches with PyTorch's pipeline runtime. The only file that uses its private names.

`torch.distributed.pipelining` does the communication, unsharding and reduction; here only its schedule is set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as runtime

from herd.parallel.schedule import pipeline_table

_KINDS = {"F": runtime._ComputationType.FORWARD, "B": runtime._ComputationType.FULL_BACKWARD}


def make_schedule(stages: Sequence[PipelineStage], num_micro: int, contiguous: int) -> runtime.PipelineScheduleMulti:
    """The schedule of this process's stages. The last stage returns its loss, which is not scaled or averaged."""
    first = stages[0]
    schedule = runtime._PipelineScheduleRuntime(
        list(stages), num_micro, loss_fn=lambda loss, _: loss, scale_grads=False
    )
    table = pipeline_table(first.group_size, first.num_stages // first.group_size, num_micro, contiguous)
    actions = {
        rank: [None if a is None else runtime._Action(a.stage, _KINDS[a.kind], a.micro) for a in row]
        for rank, row in enumerate(table)
    }
    schedule._prepare_schedule_with_comms(actions)
    return schedule


def make_stage(
    module: nn.Module,
    index: int,
    num_stages: int,
    group: dist.ProcessGroup,
    device: torch.device,
    ends: tuple[Tensor, Tensor],
) -> PipelineStage:
    """A stage whose input and output are like the two tensors of `ends` (on the meta device)."""
    return PipelineStage(module, index, num_stages, device, input_args=ends[0], output_args=ends[1], group=group)
