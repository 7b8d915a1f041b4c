"""Meta's published figures, for checking and calibrating the projection.

Source: The Llama 3 Herd of Models, tables 3 and 4; GPU hours from the Llama 3.1 model card. In table 4's third row
versions of the paper print a data dimension of 4 or 8; only 8 gives 16,384 GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.model.config import num_parameters
from herd.model.sizes import LLAMAS
from herd.plan.cluster import DEVICES
from herd.plan.layout import PlanLayout
from herd.plan.steptime import StepTime, step_time

H100 = DEVICES["h100"]


@dataclass(frozen=True)
class Row:
    """A row of table 4: layout, sequence length, sequences per step, measured TFLOP/s per GPU and printed MFU."""

    layout: PlanLayout
    row_tokens: int
    rows: int
    tflops: float
    mfu: float


TABLE_4 = (
    Row(PlanLayout(8, 1, 16, 64, 8, recompute="light"), 8192, 64 * 32, 430, 0.43),
    Row(PlanLayout(8, 1, 16, 128, 8, recompute="light"), 8192, 128 * 16, 400, 0.41),
    Row(PlanLayout(8, 16, 16, 8, 8, recompute="light"), 131_072, 8 * 16, 380, 0.38),
)

GPU_HOURS = {"8B": 1.46e6, "70B": 7.0e6, "405B": 30.84e6}
TRAINED_TOKENS = {"8B": 15e12, "70B": 15e12, "405B": 15.6e12}
CO2_KG = {"8B": 420e3, "70B": 2_040e3, "405B": 8_930e3}


def predicted(row: Row, efficiency: float | None = None) -> StepTime:
    """The projection for a row of table 4."""
    shape = (LLAMAS["405B"], row.layout, H100, row.row_tokens, row.rows)
    return step_time(*shape) if efficiency is None else step_time(*shape, efficiency=efficiency)


def calibrated() -> float:
    """The efficiency for which the projection gives the first row's 430 TFLOP/s; `EFFICIENCY` is set to it."""
    low, high = 0.1, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if predicted(TABLE_4[0], middle).mfu * H100.flops < 430e12 else (low, middle)
    return low


def implied_mfu(size: str) -> float:
    """The MFU implied by the published GPU hours: 6 x parameters x tokens over hours x peak.

    It includes restarts, failed attempts, annealing experiments and idle GPUs, and is not used for calibration.
    """
    work = 6 * num_parameters(LLAMAS[size]) * TRAINED_TOKENS[size]
    return work / (GPU_HOURS[size] * 3600 * H100.flops)


CARBON_KG_PER_KWH = sum(CO2_KG.values()) / (sum(GPU_HOURS.values()) * H100.watts / 1000)
"""Emissions per kilowatt-hour of GPU power implied by the model card's location-based figures, overheads included."""
