"""The process in which chat templates run, because a template is untrusted code.

It runs in Jinja's sandbox, which gives access only to the passed values, in a separate process with limits on memory
and output; the calling process sets a time limit (`herd.tokenizer.jinja`). Beside Jinja's own features there are those
of `transformers`: `raise_exception`, `strftime_now`, `tojson` without HTML escapes, `break` and `continue`, and
`{% generation %}` around the assistant's text.

In both directions a message is its length in eight bytes, then JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30
MAX_CHARS = 1 << 25
"""The longest output of a template."""


class Refused(Exception):
    """Raised by a template that refuses a conversation."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: puts its content between two marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        marks: Any = self.environment.globals["herd_marks"]
        return f"{marks[0]}{caller()}{marks[1]}"


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals.pop("lipsum")  # random words
    return environment.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> None:
    raise Refused(str(message))


def answer(asked: dict[str, Any]) -> dict[str, str]:
    """`text`, the template's output; or `refused` or `broken`, with the reason."""
    now = datetime.fromisoformat(asked["now"]) if asked["now"] else datetime.now()
    try:
        template = _compiled(asked["template"])
        template.environment.globals |= {"strftime_now": now.strftime, "herd_marks": asked["marks"]}
        parts, size = [], 0
        for part in template.generate(**asked["variables"]):
            size += len(part)
            if size > MAX_CHARS:
                return {"broken": f"it writes more than {MAX_CHARS:,} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
    except Refused as said:
        return {"refused": str(said)}
    except jinja2.TemplateSyntaxError as error:
        return {"broken": f"line {error.lineno} is not valid Jinja: {error}"}
    except MemoryError:
        return {"broken": f"it takes more than {MEMORY_BYTES >> 20} MB of memory"}
    except Exception as error:  # it can raise anything
        return {"broken": f"{type(error).__name__}: {str(error)[:300]}"}


def work() -> None:
    """Answer until the pipe closes."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # the system has no such limits, or lower ones
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while asked := read_message(sys.stdin.buffer.read):
        write_message(answers, answer(asked))


def read_message(read: Callable[[int], bytes]) -> Any:
    """The next message, None at the end."""
    head = read(8)
    if len(head) < 8:
        return None
    return json.loads(read(struct.unpack("<Q", head)[0]))


def write_message(stream: BinaryIO, message: Any) -> None:
    """Send a message."""
    content = json.dumps(message).encode()
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()
