"""A hive of bees, for the tests.

More about bees than anybody needs.
"""

__all__ = ["Hive", "count_bees", "smoke", "swarm"]

import os.path


def count_bees(hive, *, sleeping: bool = False) -> int:
    """Count the bees that are at home.

    Sleeping bees are counted on request.
    """
    return len(os.path.join("hive", hive)) + sleeping


def smoke(hive, seconds=3.0, /, *puffs, colour="white", **options):
    """Calm the bees of a hive with ``seconds`` of smoke (see :func:`count_bees`)."""


async def swarm():
    """Let half of the bees look for a new home."""


def wander(hive):
    """Walk about the hive without being exported."""


def hum():
    return "mmm"


class Hive:
    """A wooden box with frames."""

    def __init__(self, frames: int = 10):
        """Initialize self."""

    def open(self, gently=True):
        """Open the lid and look inside"""

    @property
    def weight(self):
        """The weight of the hive in kilograms."""

    @staticmethod
    def build(wood):
        """hive.build(wood) -> Hive

        Build a new hive from a piece of wood.
        """

    def _rattle(self):
        """Rattle the box to no good end."""


if os.path:

    def smoke_again():
        """Smoke the hive again; this one is not exported."""
