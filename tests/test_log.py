"""What a person sees while a stage works."""

from __future__ import annotations

from threading import Event

from herd.log import heartbeat, progress


def test_a_long_part_shows_its_newest_figures():
    seen = Event()
    with progress("asking", total=3, unit="questions") as bar:
        with heartbeat(bar, lambda: seen.set() or {"answers open": 7}):
            assert seen.wait(10)
        assert bar.done == 0 and bar.figures == {"answers open": 7}
