"""How often a large machine fails, and what is left of its time.

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
    """Interruptions an hour, how often to save (s), and the share of the time in which tokens are learned from."""

    per_hour: float
    save_every: float
    share: float


def goodput(devices: int, restart_seconds: float, save_seconds: float) -> Goodput:
    """What remains when each interruption costs a restart and half the time since the last save.

    The interval between saves is the one that loses least (Young 1974): sqrt(2 x pause of a save x time to failure).
    """
    per_hour = devices * (UNEXPECTED_PER_DEVICE_HOUR + PLANNED_PER_DEVICE_HOUR)
    between = 3600 / per_hour
    save_every = max(math.sqrt(2 * save_seconds * between), save_seconds)
    lost = (restart_seconds + save_every / 2) / (between + restart_seconds) + save_seconds / save_every
    return Goodput(per_hour, save_every, max(1 - lost, 0.0))
