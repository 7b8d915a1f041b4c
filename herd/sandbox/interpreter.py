"""The program in a session's box: it reads cells from descriptor 3 and answers each with one byte on descriptor 4.

It is passed to the interpreter as text and imports nothing from Herd. Its output is not trusted.
"""

import ast
import contextlib
import linecache
import os
import signal
import sys
import traceback
import types


def main() -> None:
    """Serve cells until descriptor 3 is closed."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    own, number, plots = os.getpid(), 0, 0
    sys.argv = [""]
    sys.path.insert(0, "")
    with open(3, "rb") as cells:
        while head := cells.read(8):
            number += 1
            code = cells.read(int.from_bytes(head, "little")).decode("utf-8", "surrogatepass")
            status = run(code, module.__dict__, f"<cell {number}>")
            if os.getpid() != own:
                os._exit(status)  # a child forked by the cell has reached the end of its code
            plots = save_plots(plots)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # a cell may have replaced them
                    stream.flush()
            os.write(4, bytes([status]))


def run(code: str, names: dict[str, object], title: str) -> int:
    """Run a cell and print the value of a final expression. Returns 1 for an exception, else 0."""
    linecache.cache[title] = (len(code), None, code.splitlines(keepends=True), title)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        tree = ast.parse(code, title)
        last = ast.Module(tree.body[-1:], []) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        del tree.body[len(tree.body) - (last is not None) :]
        exec(compile(tree, title, "exec"), names)
        if last is not None:
            exec(compile(ast.Interactive(last.body), title, "single"), names)
        return 0
    except SystemExit:
        raise
    except BaseException as error:
        frames = error.__traceback__.tb_next if error.__traceback__ else None  # not this function's own
        traceback.print_exception(type(error), error, frames)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a late interrupt must not end the session


def save_plots(number: int) -> int:
    """Save every open figure as plot-N.png and close it; returns the number of plots so far."""
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is None:
        return number
    for figure in pyplot.get_fignums():
        number += 1
        try:
            pyplot.figure(figure).savefig(f"plot-{number}.png")
        except Exception as error:
            print(f"plot-{number}.png could not be drawn: {error}", file=sys.stderr)
    pyplot.close("all")
    return number


main()
