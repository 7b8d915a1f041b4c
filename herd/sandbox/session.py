"""A kept-open session: what one piece of code has defined, the next one can use. For tools that a model calls."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict

from herd.errors import SandboxError
from herd.sandbox.packages import chosen
from herd.sandbox.sandbox import Limits, Place, Result, checked_level, checked_limits, checked_text, encoded

_GRACE_SECONDS = 15.0  # to be stopped, frozen or killed, and to answer, once a cell's own clock has run out


class Session:
    """Python in a box that stays open: names, imports and files last from cell to cell.

    `limits` hold for each cell (time, output, returned files) and for the box at any moment (memory, disk, processes).
    A cell over a limit is asked to stop, as Ctrl-C would; one that does not is killed with everything the session has
    defined, `state_lost` says so, and the next cell begins anew beside the same files. Between two cells every process
    of the box is frozen.

    Raises:
        SandboxError: the level is not to be had here and `allow_weaker` was not said, or the box could not be put up.
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
        """Run a cell: the value of an expression at its end is printed, as in a notebook; open plots become files.

        `files` are put beside it first. The result has the files that are new or changed since the cell before, plots
        of matplotlib as plot-1.png and so on. `limits` may be narrower for this cell: time, output, returned files.

        Raises:
            SandboxError: the session's process has gone; open a new one.
            ConfigError: code, a limit or a file's name that cannot be.
        """
        bounds = self.limits if limits is None else checked_limits(limits)
        cell = {"code": checked_text("code", code), "files": encoded(files), "limits": asdict(bounds)}
        try:
            return self._place.result(self._place.connection.ask(cell, bounds.wall_seconds + _GRACE_SECONDS))
        except SandboxError:
            self.close()
            raise

    def close(self) -> None:
        """End everything that runs in it; its files are gone."""
        with contextlib.suppress(OSError):
            self._place.connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
