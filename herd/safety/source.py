"""Source code of many languages, read just far enough: its comments and strings, and the code in an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

_C_COMMENT, _HASH = r"//[^\n]*|/\*.*?(?:\*/|\Z)", r"\#[^\n]*"
_DOUBLE, _SINGLE = r'"(?:[^"\\\n]|\\.)*+(?:"|(?=\n)|\Z)', r"'(?:[^'\\\n]|\\.)*+(?:'|(?=\n)|\Z)"
_CHARACTER = r"'(?:[^'\\\n]|\\[^\n]{1,8})'"
_BACKTICK = r"`(?:[^`\\]|\\.)*+(?:`|\Z)"


@dataclass(frozen=True)
class Syntax:
    """How a language writes comments and strings, and what its strings fill in."""

    comments: str
    strings: str
    fills: str = r"(?!)"  # an expression inside a string
    filled: str = r""  # what a string begins with that fills in; any string where empty


SYNTAXES = {
    "python": Syntax(
        _HASH,
        rf"[rbfuRBFU]{{0,2}}(?:\"\"\"(?:[^\\]|\\.)*?(?:\"\"\"|\Z)|'''(?:[^\\]|\\.)*?(?:'''|\Z)|{_DOUBLE}|{_SINGLE})",
        r"\{[^{}\n]+\}",
        r"[rR]?[fF]",
    ),
    "javascript": Syntax(_C_COMMENT, f"{_BACKTICK}|{_DOUBLE}|{_SINGLE}", r"\$\{[^{}\n]+\}", "`"),
    "java": Syntax(_C_COMMENT, rf'"""(?:[^\\]|\\.)*?(?:"""|\Z)|{_DOUBLE}|{_CHARACTER}'),
    "c": Syntax(_C_COMMENT, f"{_DOUBLE}|{_CHARACTER}"),
    "cpp": Syntax(_C_COMMENT, f"{_DOUBLE}|{_CHARACTER}"),
    "csharp": Syntax(_C_COMMENT, rf'\$?@\$?"(?:[^"]|"")*+(?:"|\Z)|\$?{_DOUBLE}|{_CHARACTER}', r"\{[^{}\n]+\}", r"@?\$"),
    "php": Syntax(rf"{_C_COMMENT}|{_HASH}", f"{_DOUBLE}|{_SINGLE}", r"\{?\$\w+[^\s\"';,<>]*", '"'),
    "rust": Syntax(_C_COMMENT, rf'b?r(#*)".*?(?:"\1|\Z)|b?"(?:[^"\\]|\\.)*+(?:"|\Z)|{_CHARACTER}'),
    "go": Syntax(_C_COMMENT, f"`[^`]*+(?:`|\\Z)|{_DOUBLE}|{_CHARACTER}"),
    "ruby": Syntax(_HASH, f"{_DOUBLE}|{_SINGLE}|{_BACKTICK}", r"\#\{[^{}\n]+\}", '["`]'),
    "shell": Syntax(r"(?<!\S)\#[^\n]*", r'"(?:[^"\\]|\\.)*+(?:"|\Z)|\'[^\']*+(?:\'|\Z)', r"\$\{?[\w@*?!-]+\}?", '"'),
}
"""The languages that are read."""

_NAMES = {
    **{name: name for name in SYNTAXES},
    **dict.fromkeys(("py", "python3", "py3", "ipython", "pyw", "pyi"), "python"),
    **dict.fromkeys(("js", "jsx", "ts", "tsx", "mjs", "cjs", "typescript", "node", "vue"), "javascript"),
    **dict.fromkeys(("kt", "kotlin", "scala", "groovy"), "java"),
    **dict.fromkeys(("h",), "c"),
    **dict.fromkeys(("c++", "cc", "cxx", "hpp", "hh", "hxx", "cu", "ino"), "cpp"),
    **dict.fromkeys(("c#", "cs", "dotnet"), "csharp"),
    **dict.fromkeys(("php3", "php4", "php5", "phtml"), "php"),
    **dict.fromkeys(("rs",), "rust"),
    **dict.fromkeys(("golang",), "go"),
    **dict.fromkeys(("rb", "rails"), "ruby"),
    **dict.fromkeys(("sh", "bash", "zsh", "ksh", "console", "terminal", "shellscript"), "shell"),
}
_SIGNS = (
    ("php", r"<\?php|\$_(?:GET|POST|SERVER|REQUEST)\b|^\s*\$\w+\s*=.*;\s*$"),
    ("shell", r"\A#!.*\b(?:ba|z|k)?sh\b|^\s*(?:sudo|apt(?:-get)?|chmod|curl|wget|rm|echo|export|cd)\s+\S"),
    ("csharp", r"^\s*using\s+[\w.]+;|\bnamespace\s+[\w.]+\s*[{;]|\bConsole\.Write|\bstring\s+\w+\s*="),
    ("java", r"^\s*import\s+java|\bpublic\s+(?:static\s+)?(?:class|void|final|String)\b|\bSystem\.out\."),
    ("rust", r"\bfn\s+\w+.*\{|\blet\s+mut\b|\buse\s+std::|\bprintln!"),
    ("go", r"^\s*package\s+\w+\s*$|\bfunc\s+(?:\(\w+ [*\w.]+\)\s*)?\w+\(|\bfmt\.Print"),
    ("cpp", r"\bstd::|#include\s*<(?:iostream|vector|string|map|memory)>|\btemplate\s*<|\bcout\s*<<"),
    ("c", r"#include\s*[<\"]|\b(?:int|void|char|size_t)\s+\*?\w+\s*\([^)]*\)\s*\{|\bprintf\s*\("),
    ("python", r"^\s*(?:def|class)\s+\w+.*:\s*$|^\s*(?:from\s+[\w.]+\s+)?import\s+[\w.]+|^\s*(?:print|exec|eval)\("),
    ("ruby", r"^\s*def\s+\w+[^:]*$|^\s*(?:require|puts)\s+['\"]|\bdo\s*\|\w+\|"),
    ("javascript", r"\b(?:const|let|var)\s+[\w{]|\bfunction\b\s*\w*\s*\(|=>\s*[{(]|\brequire\(|\bdocument\."),
)
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.M | re.S)


@dataclass(frozen=True)
class Source:
    """Code with its comments blanked, in two forms that keep every character's place."""

    language: str
    code: str
    text: str  # without comments
    bare: str  # and without what strings say, but for what they fill in
    filled: tuple[int, ...]  # where strings begin that fill in

    def line_of(self, place: int) -> int:
        """Counted from 1."""
        return self.code.count("\n", 0, place) + 1

    def line(self, number: int) -> str:
        """A line as it stands there."""
        return self.code.split("\n")[number - 1].strip()


@dataclass(frozen=True)
class Block:
    """Code in an answer."""

    language: str
    code: str
    line: int  # of the answer, that it begins at


def read_source(code: str, language: str) -> Source:
    """Code of one of the known languages."""
    syntax = SYNTAXES[language]
    filled: list[int] = []
    begins = re.compile(syntax.filled)

    tokens = re.compile(f"(?P<comment>{syntax.comments})|(?P<string>{_named(syntax.strings)})", re.S)
    text: list[str] = []
    bare: list[str] = []
    last = 0
    for hit in tokens.finditer(code):
        between, found, last = code[last : hit.start()], hit[0], hit.end()
        blank = _spaces(found)
        inside = blank
        if hit["comment"] is None:
            head = len(found) - len(found.lstrip("rbfuRBFU$@"))
            if syntax.filled and begins.match(found):
                for part in re.finditer(syntax.fills, found):
                    filled.append(hit.start())
                    inside = inside[: part.start()] + part[0] + inside[part.end() :]
            quote = found[head : head + 1]
            inside = inside[:head] + quote + inside[head + 1 : -1] + (quote if len(found) > head + 1 else "")
            blank = found
        text += [between, blank]
        bare += [between, inside]
    rest = code[last:]
    return Source(language, code, "".join([*text, rest]), "".join([*bare, rest]), tuple(filled))


def _named(pattern: str) -> str:
    """A group is called by its name once it stands inside of another."""
    return pattern.replace("(#*)", "(?P<marks>#*)").replace("\\1", "(?P=marks)")


def _spaces(text: str) -> str:
    return "\n".join(" " * len(line) for line in text.split("\n"))


def language_of(name: str, code: str = "") -> str | None:
    """The language that a fence's word or a file's name tells, else what the code looks like; None if neither."""
    word = name.strip().lower()
    if found := _NAMES.get(word) or _NAMES.get(PurePath(word).suffix.lstrip(".")):
        return found
    if word and not PurePath(word).suffix and word not in ("text", "txt", "code", "plaintext", "markdown"):
        return None  # another language
    return next((language for language, sign in _SIGNS if re.search(sign, code, re.M)), None)


def blocks_of(answer: str) -> Iterator[Block]:
    """The code that stands in fences; an answer without any that looks like code is taken whole."""
    number = 0
    for hit in _FENCE.finditer(answer):
        number += 1
        if language := language_of(hit[2], hit[3]):
            yield Block(language, hit[3], answer.count("\n", 0, hit.start(3)) + 1)
    if not number and (language := _whole(answer)):
        yield Block(language, answer, 1)


def _whole(answer: str) -> str | None:
    """The language of a text that is code: where a third of its lines end or begin as lines of code do."""
    lines = [line for line in answer.splitlines() if line.strip()]
    coded = [line for line in lines if re.search(r"[;{}\])]\s*$|^\s*(?:def|import|from|class|for|if|#include)\b", line)]
    return language_of("", answer) if lines and len(coded) * 3 >= len(lines) else None
