"""Code Shield: what is insecure in code that a model writes, by line and CWE.

    shield = Shield()
    shield.scan("os.system('rm ' + name)", "python")     # [Finding(cwe="CWE-78", line=1, ...)]
    shield.answer(text)                                   # of the code blocks in an answer
    shield.call("python", {"code": "eval(input())"})      # of a tool call's arguments

Two layers. The fast one looks for patterns in code whose comments and strings are blanked. Only where it finds one does
the deeper layer look at what is handed over: a constant clears it, what comes from outside makes it worse.

Source: Llama 3, section 5.4.7 (Code Shield).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from herd.config import find_recipe, load, settings
from herd.curate.privacy.secrets import find_secrets
from herd.errors import ConfigError
from herd.safety.flows import Flows, Origin, Value
from herd.safety.source import SYNTAXES, Source, blocks_of, language_of, read_source

Severity = Literal["block", "warn", "note"]
SEVERITIES: tuple[Severity, ...] = ("block", "warn", "note")
"""The worst first. A note is something to look at; it is no finding that counts."""
RULES = Path("safety/shield.yaml")
_LONGEST = 200_000  # characters that are scanned
_MOST = 1000  # suspects that the deeper layer looks at; more are told as the fast layer found them
_NEAR = 3  # lines around a finding
_WHEN = {"dynamic": Origin.NAMED, "built": Origin.NAMED, "outside": Origin.OUTSIDE, "web": Origin.WEB}


@settings
class Rule:
    """One thing that is insecure."""

    cwe: str
    """Its number among the Common Weakness Enumeration's: CWE-78."""
    says: str
    """What is wrong, and what is better."""
    languages: list[str]
    """Of which languages; `all` for any."""
    find: str
    """A regular expression for the fast layer, on code without comments and without what strings say. Where it ends
    in an opening bracket the deeper layer looks at the call's arguments, else at the value behind it."""
    strings: bool = False
    """Search with what strings say."""
    severity: Severity = "warn"
    """block, warn or note."""
    argument: int | None = None
    """Which argument the deeper layer looks at, counted from 0; the value behind where there is no call."""
    when: Literal["", "dynamic", "built", "outside", "web"] = ""
    """Only where that argument is no constant (dynamic), a text put together (built), from outside, from a request."""
    needs: str = ""
    """Only where the argument, or what it was made of, says this."""
    unless: str = ""
    """Not where the call, or the line, says this."""
    unless_file: str = ""
    """Not where this stands anywhere in the code."""
    near: str = ""
    """A note only, unless this stands within three lines."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"CWE-\d+", self.cwe):
            raise ValueError(f"cwe: {self.cwe!r} is none; write CWE-78")
        if wrong := [name for name in self.languages if name not in SYNTAXES and name != "all"]:
            raise ValueError(f"languages: {wrong[0]!r} is not read; there are {', '.join(SYNTAXES)}, and all")
        for name in ("find", "needs", "unless", "unless_file", "near"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"{name}: {getattr(self, name)!r} is no regular expression ({error})") from None


@settings
class Rules:
    """What a shield looks for."""

    rules: dict[str, Rule]
    """Rules by their names."""


@dataclass(frozen=True, order=True)
class Finding:
    """Something insecure in a piece of code."""

    line: int  # counted from 1, of the text that was given
    cwe: str
    severity: Severity
    rule: str
    says: str
    text: str  # the line
    language: str

    @property
    def counts(self) -> bool:
        """Whether it is more than a note."""
        return self.severity != "note"


class Shield:
    """Scans code. It may be used from several threads."""

    def __init__(self, rules: Path | None = None) -> None:
        """The rules that Herd brings, and those of a file, which replace those of the same names.

        Raises:
            ConfigError: the file is missing, or no rules.
        """
        self.rules = load(Rules, find_recipe(RULES)).rules
        if rules is not None:
            self.rules = {**self.rules, **load(Rules, rules).rules}
        self._of: dict[str, list[tuple[str, Rule, re.Pattern[str]]]] = {name: [] for name in SYNTAXES}
        for name, rule in self.rules.items():
            pattern = re.compile(rule.find, re.M)
            for language in SYNTAXES if "all" in rule.languages else rule.languages:
                self._of[language].append((name, rule, pattern))

    def scan(self, code: str, language: str, *, layers: Literal["fast", "both"] = "both") -> list[Finding]:
        """What is found in code, by line; of the fast layer alone what it suspects.

        Raises:
            ConfigError: the language is none that is read.
        """
        known = language_of(language)
        if known is None:
            raise ConfigError(f"language: {language!r} is not read; there are {', '.join(SYNTAXES)}")
        source = read_source(code[:_LONGEST], known)
        suspects = list(self._suspects(source))
        if layers == "both" and suspects:
            flows = Flows(source)
            looked = [(hit, name, rule, _severity(rule, hit, flows)) for hit, name, rule, _ in suspects[:_MOST]]
            kept = [(hit, name, rule, severity) for hit, name, rule, severity in looked if severity is not None]
            suspects = kept + suspects[_MOST:]
        found = {_finding(source, hit.start(), name, rule, severity) for hit, name, rule, severity in suspects}
        found |= set(_secrets(source))
        return sorted(_worst(found))

    def answer(self, text: str, *, layers: Literal["fast", "both"] = "both") -> list[Finding]:
        """What is found in an answer's code, by the answer's lines."""
        return [
            Finding(**{**vars(found), "line": found.line + block.line - 1})
            for block in blocks_of(text)
            for found in self.scan(block.code, block.language, layers=layers)
        ]

    def call(self, name: str, arguments: Mapping[str, Any] | str) -> list[Finding]:
        """What is found in the code that a tool call hands over, by the lines of each argument."""
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = {"": arguments}
        return [found for key, text in _texts(arguments) for found in self._argument(f"{name} {key}", text)]

    def _argument(self, name: str, text: str) -> list[Finding]:
        words = set(re.findall(r"[a-z+#]+", name.lower()))
        is_shell = words & {"command", "cmd", "shell", "bash", "terminal", "sh"}
        told = next((found for word in words if (found := language_of(word) if word in SYNTAXES else None)), None)
        language = "shell" if is_shell else told or language_of("", text)
        return self.scan(text, language) if language else self.answer(text)

    def _suspects(self, source: Source) -> Iterator[tuple[re.Match[str], str, Rule, Severity]]:
        for name, rule, pattern in self._of[source.language]:
            if rule.unless_file and re.search(rule.unless_file, source.text):
                continue
            for hit in pattern.finditer(source.text if rule.strings else source.bare):
                yield hit, name, rule, rule.severity


def _severity(rule: Rule, hit: re.Match[str], flows: Flows) -> Severity | None:
    """How bad it is; None where the deeper layer clears it."""
    source, is_call = flows.source, hit[0].endswith("(")
    line = source.text[source.text.rfind("\n", 0, hit.start()) + 1 : flows.statement(hit.end()).end]
    if rule.unless and re.search(rule.unless, flows.call(hit.end() - 1) if is_call else line):
        return None
    severity, value = rule.severity, _examined(rule, hit, flows)
    if rule.when:
        if value is None or value.origin < _WHEN[rule.when] or (rule.when == "built" and not value.built):
            return None
        if value.origin >= Origin.OUTSIDE and severity == "warn":
            severity = "block"
    if rule.needs and (value is None or not re.search(rule.needs, value.said)):
        return None
    if rule.near:
        number = source.line_of(hit.start())
        around = source.code.split("\n")[max(0, number - 1 - _NEAR) : number + _NEAR]
        if not re.search(rule.near, "\n".join(around)):
            return "note"
    return severity


def _examined(rule: Rule, hit: re.Match[str], flows: Flows) -> Value | None:
    if not hit[0].endswith("("):
        return flows.value(flows.statement(hit.end()))
    arguments = flows.arguments(hit.end() - 1)
    place = rule.argument or 0
    return flows.value(arguments[place]) if place < len(arguments) else None


def _finding(source: Source, place: int, name: str, rule: Rule, severity: Severity) -> Finding:
    number = source.line_of(place + len(source.code[place:]) - len(source.code[place:].lstrip()))
    return Finding(number, rule.cwe, severity, name, rule.says, source.line(number)[:200], source.language)


def _secrets(source: Source) -> Iterator[Finding]:
    says = "A key that others can read; keep it out of the code."
    for start, end in find_secrets(source.text):
        if source.text[end : end + 1] == "(":
            continue  # a call, whatever its name
        number = source.line_of(start)
        yield Finding(number, "CWE-798", "warn", "secret", says, source.line(number)[:200], source.language)


def _worst(found: Collection[Finding]) -> list[Finding]:
    """Of several findings of one CWE on a line the worst."""
    best: dict[tuple[int, str], Finding] = {}
    for one in sorted(found, key=lambda one: (SEVERITIES.index(one.severity), one)):
        best.setdefault((one.line, one.cwe), one)
    return list(best.values())


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(one, f"{key} {name}")
    elif isinstance(value, list):
        if value and all(isinstance(one, str) for one in value):
            yield key, " ".join(value)
        else:
            for one in value:
                yield from _texts(one, key)
