"""Compiling a grammar in a separate process first, since some grammars of a hundred characters never finish.

The process runs this module. Its first input line is a vocabulary (`first_line`), every other line a form, which it
answers with one line: `{"fault": null}` if the form compiles. The system kills it beyond limits of CPU time for each
form and of memory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import IO, Any

from herd.errors import RequestError
from herd.infer.grammar import Compiler, Vocabulary

try:
    import resource
except ImportError:  # Windows: the waiting process kills it after a timeout
    resource = None  # type: ignore[assignment]

SECONDS = 2.0
"""CPU time for one grammar."""
_MEMORY_BYTES = 1 << 30  # beside the vocabulary


def first_line(compiler: Compiler) -> bytes:
    """The first input line of the process: the vocabulary, as JSON."""
    vocabulary = compiler.vocabulary
    first = {
        "tokens": [token.decode("latin-1") for token in vocabulary.tokens],
        "special": vocabulary.special_token_ids,
        "bos": vocabulary.bos_token_id,
        "eos": vocabulary.eos_token_id,
        "vocab_size": compiler.vocab_size,
        "end": compiler.end_id,
    }
    return json.dumps(first).encode() + b"\n"


def serve(requests: IO[bytes], answers: IO[bytes], *, yielding: bool = False) -> None:
    """Compile forms until the input ends; with `yielding`, at lower priority once it has started."""
    compiler = _compiler(json.loads(requests.readline()))
    compiler.matcher("regex", "a")  # initializes what all forms share
    if resource is not None and sys.platform == "linux":
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY_BYTES, resource.RLIM_INFINITY))
    if yielding:
        os.nice(5)
    for line in requests:
        form, value = json.loads(line)
        fault = None
        _alarm(SECONDS)
        try:
            compiler.matcher(form, tuple(value) if form == "choice" else value)
        except RequestError as error:
            fault = str(error)
        _alarm(0)
        answers.write(json.dumps({"fault": fault}).encode() + b"\n")
        answers.flush()


def _compiler(first: dict[str, Any]) -> Compiler:
    tokens = [token.encode("latin-1") for token in first["tokens"]]
    vocabulary = Vocabulary(tokens, first["special"], first["bos"], first["eos"])
    return Compiler(lambda: vocabulary, first["vocab_size"], first["end"])


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # its signal kills the process
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the parent reports a crash in one sentence
    serve(sys.stdin.buffer, answers, yielding=hasattr(os, "nice"))
