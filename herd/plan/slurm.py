"""A Slurm script that runs a recipe with the planned layout, and requeues itself after failures."""

from __future__ import annotations

import shlex
from pathlib import Path

from herd.errors import ConfigError
from herd.plan.project import Machine, PlannedPhase, Projection
from herd.plan.table import long_duration
from herd.train.optimizer import is_narrow

_PORT = 29500


def processes_per_server(machine: Machine) -> int:
    """The number of processes per server of a job.

    Raises:
        ConfigError: the devices do not fill a whole number of servers.
    """
    each = min(machine.device.per_server, machine.count)
    if machine.count % each:
        raise ConfigError(
            f"devices: {machine.count} is not a multiple of the {each} devices of a server; "
            f"plan for {machine.count // each * each} or {-(-machine.count // each) * each}"
        )
    return each


def slurm_script(
    stage: str, recipe: Path, machine: Machine, projection: Projection, tokens: float | None = None
) -> str:
    """The script, for `sbatch`; `tokens` replaces the recipe's number."""
    each = processes_per_server(machine)
    planned = projection.phases[-1]
    words = [*_words(stage, planned), *([f"tokens={tokens:.15g}"] if tokens else [])]
    command = " ".join(["-m", "herd", stage, *map(shlex.quote, [str(recipe), *words])])
    return f"""#!/bin/bash
# {planned.layout}: {long_duration(projection.seconds)} in all
# Add what your cluster requires (--partition, --account, --time), and submit it from the environment in which `herd`
# is installed. The recipe's folders must be on storage that all nodes share: the state is saved there, and a requeued
# job (after a lost node, or at its time limit) continues from it.
#SBATCH --job-name=herd
#SBATCH --nodes={machine.count // each}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={each}
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=herd-%j.log
#SBATCH --signal=B:USR1@120
# Two minutes before the time limit all processes get SIGTERM and save; when they have ended (or torchrun has killed
# them) the job is requeued.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"; wait "$run"; echo requeued; scontrol requeue "$SLURM_JOB_ID"' USR1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --cpu-bind=none --kill-on-bad-exit=1 torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node={each} \\
  --max-restarts=100 --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" \\
  --rdzv-endpoint="$head:{_PORT}" \\
  {command} &
run=$!
wait "$run"  # in the background, so that the trap can run"""


def _words(stage: str, planned: PlannedPhase) -> list[str]:
    """The planned layout and optimizer as settings of the stage."""
    layout, optimizer = planned.layout, planned.phase.optimizer
    sizes = {
        "replicas": layout.replicas,
        "shard": layout.data // layout.replicas,
        "tensor": layout.tensor,
        "context": layout.context,
        "pipeline": layout.pipeline,
        "interleave": layout.virtual,
        "contiguous": layout.contiguous,
    }
    words = [f"parallel.{name}={size}" for name, size in sizes.items()]
    words.append(f"parallel.layers=[{','.join(map(str, layout.layers))}]")  # overrides the recipe's
    if layout.shards > 1:
        words.append(f"parallel.reshard_after_forward={str(layout.reshard).lower()}")
    words.append(f"batch.micro_tokens={layout.micro_rows * planned.phase.row_tokens}")
    words.append(f"recompute={int(layout.recompute == 'full')}")
    if is_narrow(optimizer):
        lora = optimizer.lora
        words += [f"optimizer.state={optimizer.state}", f"optimizer.lora.rank={lora.rank}"]
        words += [f"optimizer.lora.alpha={lora.alpha:g}", f"optimizer.lora.base={lora.base}"]
        words.append(f"optimizer.lora.targets=[{','.join(lora.targets)}]")
    return words
