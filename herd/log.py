"""What a person sees while a stage works: plain sentences, and progress with rate and time left.

On a terminal, progress is one line that is redrawn; elsewhere (a file, CI) it is a plain line every few seconds.
`HERD_QUIET=1` silences both.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINE_SECONDS = 5.0  # between plain progress lines where there is no terminal
_REDRAW_SECONDS = 0.1
_BEAT_SECONDS = 1.0


def say(text: str = "") -> None:
    """Print a sentence for the user (to standard error, so that pipes carry results only)."""
    if not os.environ.get("HERD_QUIET"):
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A running count with its rate, its time left and the newest figures."""

    def __init__(self, label: str, total: float | None, unit: str, done: float = 0.0):
        self.label, self.total, self.unit = label, total, unit
        self.start = self.done = done
        self.figures: dict[str, object] = {}
        self.began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._shown = self.began if not self._terminal else 0.0
        if self._terminal:  # visible at once, however long the first part takes
            self._draw(self.began)

    def advance(self, amount: float = 1, **figures: object) -> None:
        """Count `amount` more units; `figures` (loss=2.1) are shown beside."""
        self.done += amount
        self.figures.update(figures)
        now = time.monotonic()
        if now - self._shown >= (_REDRAW_SECONDS if self._terminal else _LINE_SECONDS):
            self._shown = now
            self._draw(now)

    def finish(self) -> None:
        """Draw the last state and end the line."""
        self._draw(time.monotonic())
        if self._terminal and not os.environ.get("HERD_QUIET"):
            print(file=sys.stderr, flush=True)

    def _draw(self, now: float) -> None:
        if os.environ.get("HERD_QUIET"):
            return
        line = self._line(now)
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print("\r\x1b[2K" + line[: max(width - 1, 20)], end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        rate = (self.done - self.start) / max(now - self.began, 1e-9)
        parts = [f"  {self.label}: {amount(self.done)}"]
        if self.total:
            parts = [f"  {self.label}: {self.done / self.total:4.0%} of {amount(self.total)} {self.unit}"]
        else:
            parts[0] += f" {self.unit}"
        parts.append(f"{amount(rate)} {self.unit}/s")
        if self.total and rate > 0 and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        parts += [f"{name} {figure(value)}" for name, value in self.figures.items()]
        return " | ".join(parts)


@contextmanager
def heartbeat(bar: Progress, figures: Callable[[], dict[str, object]]) -> Iterator[None]:
    """During one long part, show the newest figures every second (without a terminal: every few seconds)."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            bar.advance(0, **figures())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def progress(label: str, *, total: float | None = None, unit: str = "items", done: float = 0.0) -> Iterator[Progress]:
    """Show progress over a block of work; `done` is what an interrupted run had already finished."""
    bar = Progress(label, total, unit, done)
    try:
        yield bar
    finally:
        bar.finish()


def amount(value: float) -> str:
    """A count as a person reads it: `1,234`, `56.7k`, `8.03B`."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"


def size(num_bytes: float) -> str:
    """Bytes as a person reads them: `3.2 MB`."""
    for limit, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.3g} {suffix}"
    return f"{num_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `4 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def figure(value: object) -> str:
    """A figure for people: four significant digits for a float, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
