"""Renders standard-library modules to HTML with `pydoc`; runs as a program of its own and imports only the library.

    python -s -S -B -P pydoc_child.py FOLDER SECONDS STDLIB < names

Each name on standard input is imported and rendered in a fork of this clean process, so that no module sees what
another one did and a crash or a hang costs one page. A page appears whole in FOLDER/NAME.html or not at all; one JSON
line a name goes to standard output.
"""

import json
import os
import pydoc
import re
import resource
import select
import signal
import sys
import time

REFUSED_EVENTS: tuple[str, ...] = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "webbrowser.open",
)
REFUSED_EVENTS += ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
MAX_PAGE_BYTES = 20_000_000


def main() -> None:
    folder, seconds, stdlib = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    results = os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_RDWR)
    names = sys.stdin.read().split()
    for stream in (0, 1, 2):  # what a module prints while it is imported goes nowhere
        os.dup2(silence, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in names:
        began = time.monotonic()
        error = render_apart(name, folder, seconds, stdlib)
        results.write(json.dumps({"name": name, "error": error, "seconds": time.monotonic() - began}) + "\n")


def render_apart(name: str, folder: str, seconds: float, stdlib: str) -> str:
    """Render one module in a fork; returns what went wrong, or nothing."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        status = 1
        try:
            os.setsid()
            render(name, folder, stdlib)
            status = 0
        except BaseException as error:
            os.write(write_end, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:4000])
        os._exit(status)
    os.close(write_end)
    try:
        return wait_for(pid, read_end, seconds)
    finally:
        os.close(read_end)


def wait_for(pid: int, read_end: int, seconds: float) -> str:
    ready, _, _ = select.select([read_end], [], [], seconds)  # readable when the child writes, or ends
    message = os.read(read_end, 4000).decode("utf-8", "replace") if ready else ""
    if not ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not ready:
        return f"took longer than {seconds:g} seconds"
    if os.WIFSIGNALED(status):
        return f"died of signal {os.WTERMSIG(status)}"
    return message or ("" if os.WEXITSTATUS(status) == 0 else f"exited with {os.WEXITSTATUS(status)}")


def render(name: str, folder: str, stdlib: str) -> None:
    """Import `name`, write its page aside, rename it into place."""
    sys.addaudithook(refuse)
    sys.argv = [name]
    page = topic_page(name[len("topics.") :]) if name.startswith("topics.") else module_page(name)
    data = without_places(page, folder, stdlib).encode("utf-8", "replace")
    if len(data) > MAX_PAGE_BYTES:
        raise ValueError(f"the page has {len(data):,} bytes")
    aside = os.path.join(folder, f".{name}.tmp")
    with open(aside, "wb") as file:
        file.write(data)
    os.rename(aside, os.path.join(folder, f"{name}.html"))


def refuse(event: str, arguments: tuple) -> None:
    if event in REFUSED_EVENTS:
        raise PermissionError(f"{event} is not allowed while a module is rendered")


def module_page(name: str) -> str:
    module = pydoc.safeimport(name)
    if module is None:
        raise ModuleNotFoundError(f"no module named {name!r} on this platform")
    return pydoc.html.page(pydoc.describe(module), pydoc.html.document(module, name))


def topic_page(topic: str) -> str:
    """A chapter of the language reference, which Python carries as plain text."""
    import pydoc_data.topics

    text = pydoc_data.topics.topics[topic].strip("\n")
    heading = text.partition("\n")[0]
    return pydoc.html.page(heading, f'<pre class="topic">{pydoc.html.escape(text)}</pre>')


def without_places(page: str, folder: str, stdlib: str) -> str:
    """Take the paths of this machine and the addresses of this run out of a page: it is the same page everywhere."""
    page = (
        page.replace(stdlib, "/usr/lib/python").replace(folder, "/tmp").replace(os.path.dirname(__file__), "/usr/bin")
    )
    for place in sorted({sys.executable, sys.prefix, sys.base_prefix}, key=len, reverse=True):
        page = page.replace(place, "/usr")
    return re.sub(r"\b(at|handle)( |&nbsp;)(?:0x)?[0-9a-f]{6,16}\b", r"\1\2...", page)


if __name__ == "__main__":
    main()
