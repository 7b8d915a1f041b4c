"""Formulas in web pages as TeX: from annotations, alternative texts, or the MathML itself.

Source: MathML Core (W3C) for the elements; Unicode's mathematical alphanumeric symbols for the letters.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

from selectolax.lexbor import LexborNode

_MAX_DEPTH = 100
_TEX_SIGNS = re.compile(r"\\[a-zA-Z]{2,}|[_^]\{|\\[()\[\]]|^\$.*\$$")
_TEX_CLASSES = re.compile(r"\b(?:math|tex|latex|mwe-math\S*)\b", re.I)
_TEX_SERVICE = re.compile(
    r"(?:codecogs\.com/[a-z.]*(?:latex|render|editor)[a-z.]*\?|(?:mime|math)tex(?:\.cgi|\.exe)?\?|latex\.php\?latex=)"
    r"(.+)",
    re.S,
)
_TEX_SETTINGS = re.compile(
    r"\\(?:dpi\{\d+\}|inline|bg_?\w*|fn_\w+|large|small|huge|Large|LARGE|displaystyle)\s*"
    r"|^[\d\s]+\$+|\$+$"
)
_MAX_ADDRESS_TEX = 4000
_TEX_SOURCES = re.compile(r"latex|codecogs|/math/|mathtex|mimetex", re.I)

_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi"
_GREEK += " omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega varsigma vartheta varpi varrho"
_GREEK += " varphi varepsilon digamma"
_SYMBOLS = dict(zip("αβγδϵζηθικλμνξπρστυϕχψωΓΔΘΛΞΠΣΥΦΨΩςϑϖϱφεϝ", _GREEK.split(), strict=True))
_OPERATORS = """
∞ infty ∂ partial ∇ nabla ∀ forall ∃ exists ∄ nexists ∅ emptyset ∈ in ∉ notin ∋ ni ∏ prod ∐ coprod ∑ sum ± pm ∓ mp ×
times ÷ div ⋅ cdot · cdot ∗ ast ⋆ star ∘ circ ∙ bullet √ surd ∝ propto ∠ angle ∧ wedge ∨ vee ∩ cap ∪ cup ∫ int ∬
iint ∭ iiint ∮ oint ∴ therefore ∵ because ∼ sim ≃ simeq ≅ cong ≈ approx ≍ asymp ≐ doteq ≠ neq ≡ equiv ≢ not\\equiv ≤
leq ≥ geq ≦ leqq ≧ geqq ≪ ll ≫ gg ≺ prec ≻ succ ≼ preceq ≽ succeq ⊂ subset ⊃ supset ⊄ not\\subset ⊆ subseteq ⊇
supseteq ⊊ subsetneq ⊋ supsetneq ⊎ uplus ⊓ sqcap ⊔ sqcup ⊏ sqsubset ⊐ sqsupset ⊑ sqsubseteq ⊒ sqsupseteq ⊕ oplus ⊖
ominus ⊗ otimes ⊘ oslash ⊙ odot ⊢ vdash ⊣ dashv ⊤ top ⊥ bot ⊨ models ⊩ Vdash ⋀ bigwedge ⋁ bigvee ⋂ bigcap ⋃ bigcup ⨁
bigoplus ⨂ bigotimes ⨀ bigodot ⨄ biguplus ⨆ bigsqcup ⋮ vdots ⋯ cdots ⋱ ddots … ldots ← leftarrow ↑ uparrow →
rightarrow ↓ downarrow ↔ leftrightarrow ↕ updownarrow ↦ mapsto ↩ hookleftarrow ↪ hookrightarrow ↼ leftharpoonup ⇀
rightharpoonup ⇌ rightleftharpoons ⇐ Leftarrow ⇑ Uparrow ⇒ Rightarrow ⇓ Downarrow ⇔ Leftrightarrow ⟵ longleftarrow ⟶
longrightarrow ⟷ longleftrightarrow ⟸ Longleftarrow ⟹ Longrightarrow ⟺ Longleftrightarrow ⟼ longmapsto ↗ nearrow ↘
searrow ↙ swarrow ↖ nwarrow ⟨ langle ⟩ rangle 〈 langle 〉 rangle ⌈ lceil ⌉ rceil ⌊ lfloor ⌋ rfloor ‖ parallel ∥
parallel ∦ nparallel ∣ mid ∤ nmid ¬ neg ℏ hbar ℓ ell ℘ wp ℜ Re ℑ Im ℵ aleph ℶ beth ′ prime ″ prime\\prime ‵
backprime † dagger ‡ ddagger § S ¶ P ♭ flat ♮ natural ♯ sharp ♣ clubsuit ♢ diamondsuit ♡ heartsuit ♠ spadesuit △
bigtriangleup ▽ bigtriangledown ◁ triangleleft ▷ triangleright □ square ◊ lozenge ⋄ diamond ∖ setminus ≀ wr ⨯ times
∁ complement ð eth ≜ triangleq ≔ coloneqq ⋉ ltimes ⋊ rtimes ⋈ bowtie ⌢ frown ⌣ smile ≬ between ⊲ vartriangleleft ⊳
vartriangleright ⊴ trianglelefteq ⊵ trianglerighteq ∽ backsim ≊ approxeq ≲ lesssim ≳ gtrsim
"""
_words = _OPERATORS.split()
_SYMBOLS |= dict(zip(_words[::2], _words[1::2], strict=True))
_PLAIN = {
    "−": "-",
    "–": "-",
    "’": "'",
    "\u2061": "",
    "\u2062": "",
    "\u2063": "",
    "\u2064": "",
    "\u200b": "",
    "\u00a0": " ",
}
_ESCAPED = {"%": "\\%", "#": "\\#", "&": "\\&", "$": "\\$", "_": "\\_", "{": "\\{", "}": "\\}", "\\": "\\backslash "}
_ACCENTS = {"^": "hat", "ˆ": "hat", "̂": "hat", "~": "tilde", "˜": "tilde", "∼": "tilde", "¯": "bar", "‾": "overline"}
_ACCENTS |= {"_": "overline", "→": "vec", "⃗": "vec", "˙": "dot", ".": "dot", "¨": "ddot", "´": "acute", "`": "grave"}
_ACCENTS |= {"˘": "breve", "ˇ": "check", "⏞": "overbrace", "︷": "overbrace", "←": "overleftarrow", "⃛": "dddot"}
_UNDERS = {"_": "underline", "̲": "underline", "⏟": "underbrace", "︸": "underbrace", "¯": "underline", "‾": "underline"}
_FUNCTIONS = {
    "arccos",
    "arcsin",
    "arctan",
    "arg",
    "cos",
    "cosh",
    "cot",
    "coth",
    "csc",
    "deg",
    "det",
    "dim",
    "exp",
    "gcd",
}
_FUNCTIONS |= {"hom", "inf", "ker", "lg", "lim", "liminf", "limsup", "ln", "log", "max", "min", "Pr", "sec", "sin"}
_FUNCTIONS |= {"sinh", "sup", "tan", "tanh"}
_LETTERS = {
    "MATHEMATICAL BOLD SCRIPT ": "mathcal",
    "MATHEMATICAL SCRIPT ": "mathcal",
    "SCRIPT ": "mathcal",
    "MATHEMATICAL BOLD FRAKTUR ": "mathfrak",
    "MATHEMATICAL FRAKTUR ": "mathfrak",
    "BLACK-LETTER ": "mathfrak",
    "MATHEMATICAL DOUBLE-STRUCK ": "mathbb",
    "DOUBLE-STRUCK ": "mathbb",
    "MATHEMATICAL SANS-SERIF ": "mathsf",
    "MATHEMATICAL BOLD ITALIC ": "mathbf",
    "MATHEMATICAL BOLD ": "mathbf",
    "MATHEMATICAL MONOSPACE ": "mathtt",
    "MATHEMATICAL ITALIC ": "",
}
_VARIANTS = {
    "bold": "mathbf",
    "double-struck": "mathbb",
    "script": "mathcal",
    "fraktur": "mathfrak",
    "normal": "mathrm",
}
_VARIANTS |= {"sans-serif": "mathsf", "monospace": "mathtt", "bold-italic": "mathbf", "bold-script": "mathcal"}
_BRACKETS = {
    "{": "\\{",
    "}": "\\}",
    "": ".",
    "⟨": "\\langle",
    "⟩": "\\rangle",
    "〈": "\\langle",
    "〉": "\\rangle",
    "|": "|",
}
_BRACKETS |= {"‖": "\\|", "⌈": "\\lceil", "⌉": "\\rceil", "⌊": "\\lfloor", "⌋": "\\rfloor"}


def is_tex(alt: str, class_name: str, source: str) -> bool:
    """Whether the alternative text of a picture is a formula."""
    if _TEX_CLASSES.search(class_name) or _TEX_SOURCES.search(source):
        return True
    return bool(_TEX_SIGNS.search(alt))


def tex_of_address(address: str) -> str:
    """The formula in the address of a picture that a service draws from it (codecogs, mimetex, WordPress), or ""."""
    if not (match := _TEX_SERVICE.search(address)):
        return ""
    tex = match[1]
    if match[0].startswith("latex.php"):
        tex = tex.partition("&")[0].replace("+", " ")
    tex = unquote(tex.replace("&space;", " ").replace("&plus;", "+").replace("&hash;", "#"))
    tex = _TEX_SETTINGS.sub("", tex).strip()
    return tex if len(tex) <= _MAX_ADDRESS_TEX else ""


def math_to_tex(node: LexborNode) -> str:
    """The TeX of a `math` element: its annotation, its alternative text, or a translation of its MathML.

    `<msup><mi>x</mi><mn>2</mn></msup>` becomes `x^{2}`.
    """
    for annotation in node.css("annotation"):
        if "tex" in (annotation.attributes.get("encoding") or "").lower():
            return _without_style((annotation.text() or "").strip())
    alt = (node.attributes.get("alttext") or "").strip()
    if alt:
        return _without_style(alt)
    try:
        return " ".join(_row(node, 0).split())
    except RecursionError:  # no formula is that deep; its symbols are still there to be read
        return " ".join((node.text() or "").split())


def _without_style(tex: str) -> str:
    """`{\\displaystyle x}`, as MediaWiki writes it, is x."""
    match = re.fullmatch(r"\{\\(?:display|text)style\s*(.*)\}", tex, re.S)
    return match[1].strip() if match else tex


def _children(node: LexborNode) -> list[LexborNode]:
    return [child for child in node.iter() if child.tag not in ("annotation", "annotation-xml")]


def _row(node: LexborNode, depth: int) -> str:
    children = _children(node)
    if not children:
        return _symbols((node.text() or "").strip())
    return " ".join(piece for piece in (_tex(child, depth + 1) for child in children) if piece)


def _tex(node: LexborNode, depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise RecursionError
    writer = _WRITERS.get(node.tag or "")
    return writer(node, depth) if writer else _row(node, depth)


def _arguments(node: LexborNode, count: int, depth: int) -> list[str]:
    """The TeX of a node's first children, empty where there are too few."""
    pieces = [_tex(child, depth + 1) for child in _children(node)[:count]]
    return pieces + [""] * (count - len(pieces))


# ---- tokens ----------------------------------------------------------------------------------------------------------


def _symbols(text: str) -> str:
    return "".join(_symbol(character) for character in text)


def _symbol(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    if character < "\x7f":
        return character
    if character in _SYMBOLS:
        return f"\\{_SYMBOLS[character]} "
    if character in _PLAIN:
        return _PLAIN[character]
    name = unicodedata.name(character, "")
    for prefix, command in _LETTERS.items():
        if name.startswith(prefix):
            letter = unicodedata.normalize("NFKC", character)
            letter = _symbol(letter).strip() if letter != character else character
            return f"\\{command}{{{letter}}}" if command else letter
    return character


def _identifier(node: LexborNode, depth: int) -> str:
    text = (node.text() or "").strip()
    if text in _FUNCTIONS:
        return f"\\{text}"
    plain = _symbols(text).strip()
    variant = _VARIANTS.get((node.attributes.get("mathvariant") or "").lower())
    if variant and text.isalnum() and not (variant == "mathrm" and not text.isascii()):
        return f"\\{variant}{{{plain}}}"
    if len(text) > 1 and text.isalpha() and text.isascii():
        return f"\\operatorname{{{text}}}"
    return plain


def _operator(node: LexborNode, depth: int) -> str:
    text = " ".join((node.text() or "").split())
    if text in _FUNCTIONS:
        return f"\\{text}"
    if len(text) > 1 and text.isalpha() and text.isascii():
        return f"\\operatorname{{{text}}}"
    return _symbols(text).strip()


def _text(node: LexborNode, depth: int) -> str:
    text = " ".join((node.text() or "").replace("\xa0", " ").split(" "))
    return f"\\text{{{text}}}" if text.strip() else ("\\ " if text else "")


# ---- scripts, fractions, roots ---------------------------------------------------------------------------------------


def _base(tex: str) -> str:
    """A base that a script can follow: braces where it is more than one symbol."""
    one = len(tex) <= 1 or re.fullmatch(r"\\[a-zA-Z]+|\\[a-z]+\{[^{}]*\}|\d+|\\[{}|]", tex)
    return tex if one else f"{{{tex}}}"


def _script(node: LexborNode, depth: int) -> str:
    base, script = _arguments(node, 2, depth)
    if node.tag == "msup" and script.replace(" ", "") in ("\\prime", "'", "\\prime\\prime"):
        return _base(base) + "'" * max(1, script.count("prime"))
    if not script.strip():  # a phantom, which only makes room
        return base
    return f"{_base(base)}{'^' if node.tag == 'msup' else '_'}{{{script}}}"


def _both_scripts(node: LexborNode, depth: int) -> str:
    base, low, high = _arguments(node, 3, depth)
    if not low.strip() and not high.strip():
        return base
    return _base(base) + (f"_{{{low}}}" if low.strip() else "") + (f"^{{{high}}}" if high.strip() else "")


def _over(node: LexborNode, depth: int) -> str:
    base, over = _arguments(node, 2, depth)
    mark = (_children(node)[1].text() or "").strip() if len(_children(node)) > 1 else ""
    if mark in _ACCENTS:
        return f"\\{_ACCENTS[mark]}{{{base}}}"
    if not over:
        return base
    return f"{base}^{{{over}}}" if _takes_limits(base) else f"\\overset{{{over}}}{{{base}}}"


def _under(node: LexborNode, depth: int) -> str:
    base, under = _arguments(node, 2, depth)
    mark = (_children(node)[1].text() or "").strip() if len(_children(node)) > 1 else ""
    if mark in _UNDERS:
        return f"\\{_UNDERS[mark]}{{{base}}}"
    if not under:
        return base
    return f"{base}_{{{under}}}" if _takes_limits(base) else f"\\underset{{{under}}}{{{base}}}"


def _under_over(node: LexborNode, depth: int) -> str:
    base, under, over = (piece.strip() for piece in _arguments(node, 3, depth))
    if not under or not over:
        stacked = f"\\underset{{{under}}}{{{base}}}" if under else f"\\overset{{{over}}}{{{base}}}"
        script = f"_{{{under}}}" if under else f"^{{{over}}}"
        return (base + script if _takes_limits(base) else stacked) if under or over else base
    if _takes_limits(base):
        return f"{base}_{{{under}}}^{{{over}}}"
    return f"\\overset{{{over}}}{{\\underset{{{under}}}{{{base}}}}}"


def _takes_limits(base: str) -> bool:
    name = base.strip().lstrip("\\")
    return (
        name in ("sum", "prod", "coprod", "int", "iint", "iiint", "oint")
        or name.startswith("big")
        or name in _FUNCTIONS
    )


def _fraction(node: LexborNode, depth: int) -> str:
    top, bottom = _arguments(node, 2, depth)
    if (node.attributes.get("linethickness") or "").strip() in ("0", "0px", "0pt", "0em"):
        return f"\\binom{{{top}}}{{{bottom}}}"
    return f"\\frac{{{top}}}{{{bottom}}}"


def _root(node: LexborNode, depth: int) -> str:
    inside, degree = _arguments(node, 2, depth)
    return f"\\sqrt[{degree}]{{{inside}}}"


def _prescripts(node: LexborNode, depth: int) -> str:
    base = ""
    post: list[str] = []
    pre: list[str] = []
    target = post
    for number, child in enumerate(_children(node)):
        if child.tag == "mprescripts":
            target = pre
        elif number == 0:
            base, target = _tex(child, depth + 1), post
        else:
            target.append("" if child.tag == "none" else _tex(child, depth + 1))
    return ("{}" + _pairs(pre) if pre else "") + _base(base) + _pairs(post)


def _pairs(scripts: list[str]) -> str:
    pieces = []
    for low, high in zip(scripts[::2], [*scripts[1::2], ""], strict=False):
        pieces.append((f"_{{{low}}}" if low else "") + (f"^{{{high}}}" if high else ""))
    return "".join(pieces)


# ---- fences, tables and the rest -------------------------------------------------------------------------------------


def _fenced(node: LexborNode, depth: int) -> str:
    attributes = node.attributes
    opening, closing = attributes.get("open", "("), attributes.get("close", ")")
    separators = (attributes.get("separators", ",") or "").replace(" ", "")
    pieces = _arguments(node, len(_children(node)), depth)
    inside = "".join(
        piece + (separators[min(i, len(separators) - 1)] if separators and i < len(pieces) - 1 else "")
        for i, piece in enumerate(pieces)
    )
    opening, closing = (opening or "").strip(), (closing or "").strip()
    return f"\\left{_BRACKETS.get(opening, opening)} {inside} \\right{_BRACKETS.get(closing, closing)}"


def _table(node: LexborNode, depth: int) -> str:
    rows = []
    for row in _children(node):
        cells = _children(row)[1:] if row.tag == "mlabeledtr" else _children(row)
        rows.append(" & ".join(_row(cell, depth + 2) for cell in cells))
    return "\\begin{matrix} " + " \\\\ ".join(rows) + " \\end{matrix}"


def _enclosed(node: LexborNode, depth: int) -> str:
    inside, notation = _row(node, depth), (node.attributes.get("notation") or "").split()
    if "radical" in notation:
        return f"\\sqrt{{{inside}}}"
    if "box" in notation or "roundedbox" in notation:
        return f"\\boxed{{{inside}}}"
    return f"\\overline{{{inside}}}" if "top" in notation else inside


def _space(node: LexborNode, depth: int) -> str:
    return ""


_WRITERS = {
    "mi": _identifier,
    "mn": lambda node, depth: _symbols((node.text() or "").strip()),
    "mo": _operator,
    "mtext": _text,
    "ms": _text,
    "msup": _script,
    "msub": _script,
    "msubsup": _both_scripts,
    "mover": _over,
    "munder": _under,
    "munderover": _under_over,
    "mfrac": _fraction,
    "msqrt": lambda node, depth: f"\\sqrt{{{_row(node, depth)}}}",
    "mroot": _root,
    "mmultiscripts": _prescripts,
    "mfenced": _fenced,
    "mtable": _table,
    "menclose": _enclosed,
    "mspace": _space,
    "mphantom": _space,
    "maligngroup": _space,
    "malignmark": _space,
    "none": _space,
    "annotation": _space,
    "annotation-xml": _space,
    "maction": lambda node, depth: _arguments(node, 1, depth)[0],
    "mpadded": _row,
    "mstyle": _row,
}
