"""Where the values in a piece of code come from: told in it, made of names, or brought from outside."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from herd.safety.source import Source


class Origin(IntEnum):
    """Where a value comes from, the safest first."""

    CONSTANT = 0  # it stands in the code
    NAMED = 1  # a name whose value the code does not tell, such as a function's argument
    OUTSIDE = 2  # typed, read or received
    WEB = 3  # sent by whoever asks a server


@dataclass(frozen=True)
class Value:
    """What is known of an expression."""

    origin: Origin
    built: bool  # a text put together of others
    said: str  # its text, and that of the values it was made of


class Span(NamedTuple):
    """A stretch of the code."""

    start: int
    end: int


_WEB = {
    "python": r"\brequest\.(?:args|form|values|json|data|GET|POST|cookies|headers|files|get_json|query|params|body)"
    r"|\bself\.get_(?:query_|body_)?argument\b",
    "javascript": r"\b(?:req|request|ctx)\.(?:body|query|params|headers|cookies|url|param|request)\b"
    r"|\blocation\.(?:hash|search|href)|\bdocument\.(?:URL|cookie|referrer)|\bevent\.data\b",
    "java": r"\.get(?:Parameter|ParameterValues|Header|QueryString|Cookies|InputStream|Reader|PathInfo)\s*\("
    r"|@(?:RequestParam|PathVariable|RequestBody)",
    "csharp": r"\bRequest(?:\.(?:QueryString|Form|Params|Query|Cookies|Headers|Body|Path)|\s*\[)",
    "php": r"\$_(?:GET|POST|REQUEST|COOKIE|FILES|SERVER)\b|php://input",
    "go": r"\br\.(?:FormValue|URL|PostFormValue|Form|Header|Body|Cookie)|\bc\.(?:Query|Param|PostForm)\(|mux\.Vars",
    "ruby": r"\bparams\b|\brequest\.|\bcookies\[",
    "rust": r"\b(?:Query|Form|Path)\(|\breq\.(?:uri|body|headers|query)",
}
_OUTSIDE = {
    "python": r"(?<![\w.])(?:raw_)?input\s*\(|\bsys\.(?:argv|stdin)"
    r"|\bos\.(?:environ|getenv)|\.recv(?:from)?\s*\(|\burlopen\(",
    "javascript": r"\bprocess\.(?:argv|env|stdin)|\bprompt\s*\(|\.responseText\b|\breadline\b",
    "java": r"\bargs\s*\[|\bSystem\.(?:in|getenv|getProperty)|\bnextLine\s*\(|\breadLine\s*\(",
    "c": r"\bargv\b|\b(?:getenv|fgets|gets|recv|recvfrom|fread|read|getline)\s*\(",
    "cpp": r"\bargv\b|\b(?:getenv|fgets|gets|recv|recvfrom|fread|getline)\s*\(|\bcin\s*>>",
    "csharp": r"\bConsole\.Read(?:Line)?\s*\(|\bargs\s*\[|\bEnvironment\.Get|\.Text\b",
    "php": r"\$argv\b|\bgetenv\s*\(|\bfgets\s*\(",
    "go": r"\bos\.(?:Args|Getenv)|\bbufio\.New|\.ReadString\(|\bfmt\.Scan",
    "ruby": r"\bARGV\b|\bgets\b|\bENV\[|\bSTDIN\b",
    "rust": r"\benv::(?:args|var)|\bstdin\(\)|\.read_line\(",
    "shell": r"\$\{?(?:[1-9@*]|QUERY_STRING|REPLY)\}?|\bread\s+\w",
}
_ASSIGNED = re.compile(
    r"(?<![\w.!<>=+])(?P<names>[$@]?\w+(?:(?:\.|->|::)\w+)*(?:\s*,\s*[$@]?\w+)*)"
    r"(?:\s*\[[^\]\n]*\])?\s*(?::\s*[^=\n;(){}]{1,60}?)?\s*(?P<sign>:=|\+=|\.=|=)(?![=>~])"
)
_GIVEN = re.compile(
    r"\b(?:def|function|func|fn|fun|sub)\b[^\n(]*\((?P<a>[^)]*)\)|\b[\w>\]*&]+\s+\**\w+\s*\((?P<b>[^();]*)\)\s*(?:const\s*)?\{"
    r"|\((?P<c>[\w\s,$]*)\)\s*=>"
)
_NAME = re.compile(r"[$@]?[A-Za-z_]\w*(?:(?:\.|->|::)[A-Za-z_]\w*)*")
_WORDS = (
    "None True False null nil NULL nullptr true false undefined new not and or in is if else for await async return "
    "let const var mut ref static final auto int char long unsigned short size_t string String str bytes float double "
    "bool lambda self this sizeof as u8 u32 i32 usize vec function format len strlen repr ord chr list tuple dict set "
    "os.path.join join encode decode strip lower upper replace String.format string.Format fmt.Sprintf sprintf"
)
_NOT_VALUES = frozenset(_WORDS.split())
_BUILT = re.compile(
    r"[\"'`]\s*(?:\+|%(?!=)|\.(?!\w)|\.\s*format\s*\(|&(?!&))|(?:\+|\.|&)\s*[\"'`]"
    r"|\b(?:s?n?printf|Sprintf|[fF]ormat|concat|strcat|append|format!|interpolate)\s*\(|\bformat!\s*\("
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_FARTHEST = 600  # characters of an expression


class Flows:
    """The values of one piece of code."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._web = re.compile(_WEB.get(source.language, r"(?!)"))
        self._outside = re.compile(_OUTSIDE.get(source.language, r"(?!)"))
        self._known: dict[str, list[tuple[int, Value]]] = {}
        self._values: dict[Span, Value] = {}
        events = [(hit.start(), hit) for hit in (*_GIVEN.finditer(source.bare), *_ASSIGNED.finditer(source.bare))]
        for place, hit in sorted(events, key=lambda event: event[0]):
            if "sign" in hit.groupdict():
                self._assign(hit)
            else:
                self._give(place, next(filter(None, hit.groups()), ""))

    def value(self, span: Span) -> Value:
        """What is known of an expression."""
        if span not in self._values:
            self._values[span] = self._valued(span)
        return self._values[span]

    def _valued(self, span: Span) -> Value:
        bare = self.source.bare[span.start : span.end]
        said = self.source.text[span.start : span.end]
        built = bool(_BUILT.search(bare)) or any(span.start <= place < span.end for place in self.source.filled)
        origin = Origin.CONSTANT
        if self._web.search(bare):
            origin = Origin.WEB
        elif self._outside.search(bare):
            origin = Origin.OUTSIDE
        for hit in _NAME.finditer(bare):
            name = hit[0]
            if name in _NOT_VALUES or name.rpartition(".")[2] in _NOT_VALUES:
                continue
            before = self._before(name, span.start)
            if before is not None:
                origin, built, said = max(origin, before.origin), built or before.built, f"{said}\n{before.said}"
            elif not name.isupper():
                origin = max(origin, Origin.NAMED)
        return Value(origin, built and origin > Origin.CONSTANT, said[:_FARTHEST])

    def arguments(self, opening: int) -> list[Span]:
        """The arguments of a call without a name, by the place of its opening bracket."""
        end = self._until(opening + 1, ")")
        cuts, depth = [opening], 0
        for place in range(opening + 1, end):
            character = self.source.bare[place]
            depth += (character in _CLOSING) - (character in ")]}")
            if character == "," and not depth:
                cuts.append(place)
        spans = [Span(start + 1, stop) for start, stop in zip(cuts, [*cuts[1:], end], strict=True)]
        return [one for one in spans if not re.match(r"\s*\w+\s*=(?!=)", self.source.bare[one.start : one.end])]

    def call(self, opening: int) -> str:
        """The text of a call's arguments, strings and all."""
        return self.source.text[opening + 1 : self._until(opening + 1, ")")]

    def statement(self, start: int) -> Span:
        """From a place to the end of its statement."""
        return Span(start, self._until(start, ";\n"))

    def _until(self, start: int, ends: str) -> int:
        depth, bare = 0, self.source.bare
        for place in range(start, min(len(bare), start + _FARTHEST)):
            character = bare[place]
            if not depth and character in ends:
                return place
            if character in _CLOSING:
                depth += 1
            elif character in ")]}":
                if not depth:
                    return place
                depth -= 1
        return min(len(bare), start + _FARTHEST)

    def _before(self, name: str, place: int) -> Value | None:
        """The value that a name had last; of a member's owner where that came from outside."""
        if known := self._known.get(name):
            at = bisect_right([start for start, _ in known], place) - 1
            return known[at][1] if at >= 0 and known[at][0] < place else None
        head = re.split(r"\.|->|::", name, maxsplit=1)[0]
        owner = self._before(head, place) if head != name else None
        return owner if owner is not None and owner.origin > Origin.NAMED else None

    def _assign(self, hit: re.Match[str]) -> None:
        span = self.statement(hit.end())
        value = self._valued(span)
        for name in re.split(r"\s*,\s*", hit["names"]):
            before = self._before(name, hit.start()) if hit["sign"] in ("+=", ".=") else None
            if before is not None:
                origin = max(before.origin, value.origin)
                joined = Value(origin, origin > Origin.CONSTANT, f"{before.said}\n{value.said}"[:_FARTHEST])
            self._known.setdefault(name, []).append((span.end - 1, joined if before is not None else value))

    def _give(self, place: int, arguments: str) -> None:
        for one in arguments.split(","):
            names = re.findall(r"[$@]?[A-Za-z_]\w*", one.partition("=")[0])
            for name in {*names[:1], *names[-1:]}:
                self._known.setdefault(name, []).append((place, Value(Origin.NAMED, False, "")))
