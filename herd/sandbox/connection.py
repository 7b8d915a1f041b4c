"""The client side of a warden process: starting, requests, closing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from herd.errors import SandboxError
from herd.sandbox import frames

ROOT = str(Path(__file__).parents[2])
_WARDEN = "import sys; sys.path.insert(0, sys.argv[1]); from herd.sandbox.warden import main; main()"
_CLOSE_SECONDS = 5.0


class Connection:
    """A warden process, and a folder on disk for its boxes."""

    def __init__(self) -> None:
        self.scratch = tempfile.mkdtemp(prefix="herd-box-")
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-I", "-S", "-c", _WARDEN, ROOT]
        with theirs:
            self._warden = subprocess.Popen(command, stdin=theirs.fileno(), env={}, cwd="/")
        self._channel = ours
        self._turn = threading.Lock()  # otherwise two threads could get each other's answers

    @property
    def process(self) -> int:
        """The warden's process id."""
        return self._warden.pid

    def ask(self, message: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send a message and wait for the answer, `seconds` at most.

        Raises:
            SandboxError: the warden has ended, reported an error, or did not answer in time.
        """
        with self._turn:
            try:
                self._channel.settimeout(seconds)
                frames.send(self._channel, message)
                answer = frames.receive(self._channel)
            except OSError as error:
                self._hang_up()
                raise SandboxError(f"the sandbox's warden process has ended ({error}); open a new one") from None
            except BaseException:  # Ctrl-C: the answer that comes late must not be taken for the next one's
                self._hang_up()
                raise
        if answer is None or "fault" in answer:
            said = answer["fault"] if answer else "its process ended"
            raise SandboxError(f"the sandbox could not run it: {said}")
        return answer

    def close(self) -> None:
        """End the warden and whatever it runs, and remove the folder."""
        self._hang_up()
        self._channel.close()
        try:
            self._warden.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._warden.kill()
            self._warden.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # closing alone tells nobody while a thread waits for an answer
