"""Failures of a large machine, and the share of time that remains for training.

Source: The Llama 3 Herd of Models, section 3.3.4 and table 5: 419 unexpected and 47 planned interruptions in 54 days on
16,384 GPUs, with more than 90 % effective training time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_DEVICE_HOURS = 54 * 24 * 16_384
UNEXPECTED_PER_DEVICE_HOUR = 419 / _DEVICE_HOURS
PLANNED_PER_DEVICE_HOUR = 47 / _DEVICE_HOURS


@dataclass(frozen=True)
class Goodput:
    """Interruptions per hour, seconds between saves, and the share of time spent on training."""

    per_hour: float
    save_every: float
    share: float


def goodput(devices: int, restart_seconds: float, save_seconds: float) -> Goodput:
    """The goodput if each interruption costs a restart and half an interval between saves.

    The interval is the optimal one (Young 1974): sqrt(2 x time of a save x mean time between failures).
    """
    per_hour = devices * (UNEXPECTED_PER_DEVICE_HOUR + PLANNED_PER_DEVICE_HOUR)
    between = 3600 / per_hour
    save_every = max(math.sqrt(2 * save_seconds * between), save_seconds)
    lost = (restart_seconds + save_every / 2) / (between + restart_seconds) + save_seconds / save_every
    return Goodput(per_hour, save_every, max(1 - lost, 0.0))
