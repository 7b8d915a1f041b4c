"""Sessions that keep state between cells, for a model's code interpreter."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict

from herd.errors import SandboxError
from herd.sandbox.packages import chosen
from herd.sandbox.sandbox import Limits, Place, Result, checked_level, checked_limits, checked_text, encoded

_GRACE_SECONDS = 15.0  # for interrupting, freezing or killing, and the answer, after a cell's time limit


class Session:
    """Python in a box that stays open: names, imports and files last from cell to cell.

    `limits` apply to each cell (time, output, returned files) and to the box at any moment (memory, disk, processes). A
    cell over a limit is interrupted, as by Ctrl-C; if it does not stop, it is killed with the session's state. Then
    `state_lost` is set, and the next cell starts a new interpreter with the same files. Between cells all processes of
    the box are frozen.

    Raises:
        SandboxError: the level is not available here and `allow_weaker` is not set, or the box could not be set up.
        ConfigError: a package is not installed, or a file's name leads elsewhere.
    """

    def __init__(
        self,
        level: str = "full",
        *,
        allow_weaker: bool = False,
        packages: Sequence[str] = (),
        files: dict[str, bytes] | None = None,
        limits: Limits | None = None,
    ):
        self.limits = checked_limits(limits)
        self.packages = chosen(packages)
        given = encoded(files)
        self._place = Place(checked_level(level, allow_weaker), self.packages)
        self.level = self._place.level
        job = self._place.job("python", self.limits) | {"session": True, "files": given}
        try:
            self._place.connection.ask(job, self.limits.wall_seconds + _GRACE_SECONDS)
        except SandboxError:
            self.close()
            raise

    def run(self, code: str, files: dict[str, bytes] | None = None, limits: Limits | None = None) -> Result:
        """Run a cell and print the value of a final expression, as in a notebook; open plots become files.

        `files` are written first. The result has the files that are new or changed since the last cell, and matplotlib
        plots as plot-1.png and so on. `limits` apply to this cell: time, output, returned files.

        Raises:
            SandboxError: the session's process has ended; open a new one.
            ConfigError: code, a limit or a file's name is invalid.
        """
        bounds = self.limits if limits is None else checked_limits(limits)
        cell = {"code": checked_text("code", code), "files": encoded(files), "limits": asdict(bounds)}
        try:
            return self._place.result(self._place.connection.ask(cell, bounds.wall_seconds + _GRACE_SECONDS))
        except SandboxError:
            self.close()
            raise

    def close(self) -> None:
        """End all its processes and delete its files."""
        with contextlib.suppress(OSError):
            self._place.connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
