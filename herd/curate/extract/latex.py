"""LaTeX as text: prose and formulas stay, commands of layout, references and comments go; formulas are kept as TeX."""

from __future__ import annotations

import re

_BODY = re.compile(r"\\begin\s*\{document\}(.*?)(?:\\end\s*\{document\}|\Z)", re.S)
_TITLE = re.compile(r"\\title\s*(?:\[[^\]]*\])?\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_COMMENT = re.compile(r"(?<!\\)%.*?(?:\n[ \t]*|\Z)")
_CODE = re.compile(
    r"[ \t]*\\begin\{(verbatim\*?|lstlisting|minted|Verbatim)\}(?:\[[^\]\n]*\])?(?:\{\w+\})?\n?(.*?)\\end\{\1\}", re.S
)
_FORMULA = re.compile(
    r"\\begin\{((?:equation|align|gather|multline|eqnarray|alignat|displaymath|math)\*?)\}.*?\\end\{\1\}"
    r"|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|(?<!\\)\$(?:\\.|[^$\\])+\$",
    re.S,
)
_GONE = re.compile(
    r"\\(?:label|cite[a-z]*|nocite|ref|eqref|autoref|cref|Cref|pageref|index|vspace|hspace|bibliography|bibliographystyle|"
    r"includegraphics|input|include|usepackage|pagestyle|thispagestyle|setlength|setcounter|newcommand|renewcommand|"
    r"graphicspath|hypersetup|date|author|thanks|affiliation|email|address|maketitle|tableofcontents)"
    r"\*?\s*(?:\[[^\]]*\]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*"
)
_ENVIRONMENT = re.compile(r"[ \t]*\\(?:begin|end)\s*\{[^{}]*\}(?:\[[^\]\n]*\])?(?:\{[^{}\n]*\})?[ \t]*\n?")
_HEADING = re.compile(
    r"\\(?:part|chapter|(?:sub)*section|paragraph|subparagraph|caption)\*?\s*(?:\[[^\]]*\])?\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_WRAPPED = re.compile(r"\\(?:href\s*\{[^{}]*\}|[a-zA-Z]+\*?(?:\[[^\]]*\])?)\s*\{([^{}]*)\}")
_ITEM = re.compile(r"\n?[ \t]*\\item\b[ \t]*(?:\[([^\]]*)\])?[ \t]*")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+\*?[ \t]*|[,;:!> ])")
_SIGNS = (("~", " "), ("``", "“"), ("''", "”"), ("---", "—"), ("--", "–"), ("\\\\", "\n"))
_ESCAPED = re.compile(r"\\([%&#_{}$])")
_BRACES = re.compile("(?<!\1)[{}]")
_HELD = re.compile("\0(\\d+)\0")


def latex_text(source: str) -> tuple[str, str, list[int]]:
    """Text, title and the lines that are code (start, end, start, end...) of a LaTeX document, or a part of one."""
    title = _TITLE.search(source)
    body = _BODY.search(source)
    held: list[tuple[str, bool]] = []

    def hold(piece: str, is_code: bool) -> str:
        held.append((piece, is_code))
        return f"\0{len(held) - 1}\0"

    text = (body[1] if body else source).replace("\r\n", "\n").replace("\0", "")
    text = _CODE.sub(lambda match: f"\n\n{hold(match[2].strip(chr(10)), True)}\n\n", text)
    text = _COMMENT.sub("", text)
    text = _FORMULA.sub(lambda match: hold(match[0], False), text)
    text = _plain(text)
    lines: list[str] = []
    code_lines: list[int] = []
    for line in re.sub(r"\n[ \t]*\n\s*", "\n\n", text).strip("\n").split("\n"):
        code = _HELD.fullmatch(line.strip())
        if code and held[int(code[1])][1]:
            code_lines.append(len(lines))
            lines += held[int(code[1])][0].split("\n")
            code_lines.append(len(lines))
        else:
            lines += _HELD.sub(lambda match: held[int(match[1])][0], line).strip().split("\n")
    return "\n".join(lines), _plain(title[1]).strip() if title else "", code_lines


def _plain(text: str) -> str:
    text = _HEADING.sub(lambda match: f"\n\n{match[1]}\n\n", _ITEM.sub(lambda m: f"\n{m[1] or ''} ", text))
    text = _ENVIRONMENT.sub("\n", _GONE.sub("", text))
    for _ in range(4):  # as deep as commands stand within commands
        text, count = _WRAPPED.subn(lambda match: match[1], text)
        if not count:
            break
    for sign, plain in _SIGNS:
        text = text.replace(sign, plain)
    text = _ESCAPED.sub(lambda match: f"\1{match[1]}", text)
    text = _COMMAND.sub(" ", text)
    text = _BRACES.sub("", text).replace("\1", "")
    return re.sub(r"[ \t]+", " ", text)
