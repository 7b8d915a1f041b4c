"""A grammar compiled on trial, by a process that may die of it: some of a hundred characters never end.

It is this module run as a program. The first line it reads is a vocabulary (`told`), every other one a form; it answers
each with one line, `{"fault": null}` where the form can be followed. It has so much time of the processor for each, and
so much memory, and is ended by the system beyond them.
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
except ImportError:  # Windows: the process that waits ends it by the clock
    resource = None  # type: ignore[assignment]

SECONDS = 2.0
"""Of the processor, for one grammar."""
_MEMORY_BYTES = 1 << 30  # more than what the vocabulary takes


def told(compiler: Compiler) -> bytes:
    """What such a process is told first."""
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
    """Try forms until there are no more; where `yielding`, others have the processor first once it has started."""
    compiler = _compiler(json.loads(requests.readline()))
    compiler.matcher("regex", "a")  # all that is made once
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
    if hasattr(signal, "setitimer"):  # its signal ends the process
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it is told, and ends it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a dying compiler says is told in one sentence
    serve(sys.stdin.buffer, answers, yielding=hasattr(os, "nice"))
