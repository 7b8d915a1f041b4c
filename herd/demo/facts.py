"""Facts that questions can be asked about: names with their signature and first sentence, read out of documents.

Three readers: Python sources (by `ast`), `pydoc` pages of modules that have no source, and anybody's own pages
(titles, headings and definitions). A fact is short, stands alone and knows the group that a split must not tear apart.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from html import unescape
from itertools import pairwise, takewhile

MAX_WORDS = 24
"""Longest summary in words: answers stay under about 40 tokens."""
MIN_WORDS = 3

PUBLIC_NAMES = {
    "posixpath": "os.path",
    "_collections_abc": "collections.abc",
    "_pydecimal": "decimal",
    "_pydatetime": "datetime",
    "_pyio": "io",
    "_weakrefset": "weakref",
}
"""Modules of the standard library that everybody knows under another name."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """The subject of a question."""

    name: str  # "os.path.join", or the title, heading or term of a page
    kind: str  # module, class, function, method, attribute; page, section, term for a user's own pages
    module: str  # "os.path", or the page's title
    group: str  # facts of a group stay on one side of a train/held-out split
    summary: str  # one sentence
    parameters: str | None = None  # "a, *p"; None where unknown


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


# ---- Python sources --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The content of a Python source: facts about its own names, and the names that it uses or re-exports."""

    facts: list[Fact]
    reexports: dict[str, str]  # "json.decoder.JSONDecoder" -> "json.JSONDecoder"; "asyncio.events.*" -> "asyncio.*"
    uses: set[str]  # modules it imports and dotted names it calls


def read_source(text: str, module: str, group: str) -> Source:
    """The public names of a Python source that have a short, clear first sentence.

    Private names (a leading underscore, or outside `__all__` where there is one) are left out, and so are names whose
    docstring says too little. A source that does not parse has no facts.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Source([], {}, set())
    public = _exported(tree)
    facts = []
    if summary := first_sentence(ast.get_docstring(tree)):
        facts.append(Fact(name=module, kind="module", module=module, group=group, summary=summary))
    for node in _definitions(tree.body):
        if not node.name.startswith("_") and (public is None or node.name in public):
            facts += _facts_of(node, module, group)
    distinct = {fact.name: fact for fact in reversed(facts)}
    return Source(list(distinct.values())[::-1], _reexports(tree, module, public), _uses(text))


_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+([\w., \t]+))", re.MULTILINE)
_CALLED = re.compile(r"(?<![\w.])([A-Za-z]\w*(?:\.\w+)+)\(")


def _uses(text: str) -> set[str]:
    modules = {one or name for one, many in _IMPORT.findall(text) for name in ([one] if one else many.split(","))}
    return {name.split(" as ")[0].strip() for name in modules} | set(_CALLED.findall(text))


def _facts_of(node: Definition, module: str, group: str) -> Iterator[Fact]:
    name = f"{module}.{node.name}"
    if isinstance(node, ast.ClassDef):
        if summary := first_sentence(ast.get_docstring(node)):
            parameters = _constructor_parameters(node)
            yield Fact(name=name, kind="class", module=module, group=group, summary=summary, parameters=parameters)
        for member in _definitions(node.body):
            if isinstance(member, ast.ClassDef) or member.name.startswith("_"):
                continue
            if summary := first_sentence(ast.get_docstring(member)):
                decorators = {ast.unparse(decorator).split(".")[-1] for decorator in member.decorator_list}
                attribute = bool(decorators & {"property", "cached_property", "setter", "_magic_enum_property"})
                bound = "staticmethod" not in decorators
                yield Fact(
                    name=f"{name}.{member.name}",
                    kind="attribute" if attribute else "method",
                    module=module,
                    group=group,
                    summary=summary,
                    parameters=None if attribute else parameters_of(member.args, bound=bound),
                )
    elif summary := first_sentence(ast.get_docstring(node)):
        parameters = parameters_of(node.args)
        yield Fact(name=name, kind="function", module=module, group=group, summary=summary, parameters=parameters)


def _parsed(parameters: str) -> ast.arguments:
    [function] = ast.parse(f"def f({parameters}): 0").body
    assert isinstance(function, ast.FunctionDef)
    return function.args


def parameters_of(args: ast.arguments, *, bound: bool = False) -> str:
    """Parameters as they are written in a call's documentation: defaults kept, annotations and `self` left out."""
    bare = _parsed(ast.unparse(args))
    for argument in [*bare.posonlyargs, *bare.args, *bare.kwonlyargs, bare.vararg, bare.kwarg]:
        if argument is not None:
            argument.annotation = None
    if bound and (first := bare.posonlyargs or bare.args):
        del first[0]
        bare.defaults = bare.defaults[: len(bare.posonlyargs) + len(bare.args)]
    return ast.unparse(bare)


def _constructor_parameters(node: ast.ClassDef) -> str | None:
    for member in _definitions(node.body):
        if member.name == "__init__" and not isinstance(member, ast.ClassDef):
            return parameters_of(member.args, bound=True)
    return None


def _definitions(body: Iterable[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes of a body, also those under `if` and `try`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            handlers = [statement for handler in getattr(node, "handlers", ()) for statement in handler.body]
            yield from _definitions([*node.body, *handlers, *node.orelse])


def _exported(tree: ast.Module) -> set[str] | None:
    """The names of a literal `__all__`, or None where there is none."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                try:
                    names.update(ast.literal_eval(node.value))
                except (ValueError, TypeError):  # computed: it cannot be known without running the module
                    return None
    return names or None


def _reexports(tree: ast.Module, module: str, public: set[str] | None) -> dict[str, str]:
    """Names that a package re-exports from its own modules or its private implementation."""
    renamed = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or node.level > 1:
            continue
        origin = f"{module}.{node.module}" if node.level else node.module or ""
        if not origin.startswith((f"{module}.", f"_{module}")):
            continue
        for alias in node.names:
            name = alias.asname or alias.name
            if not name.startswith("_") and (name == "*" or public is None or name in public):
                renamed[f"{origin}.{alias.name}"] = f"{module}.{name}"
    return renamed


def under_public_names(facts: Iterable[Fact], reexports: dict[str, str]) -> list[Fact]:
    """Facts under their public names; those with only a private name are left out.

    `json.decoder.JSONDecoder.decode` becomes `json.JSONDecoder.decode`, `posixpath.join` becomes `os.path.join`.
    """
    public = []
    for fact in facts:
        name, module = _public_name(fact, reexports)
        if not any(part.startswith("_") for part in name.split(".")):
            public.append(replace(fact, name=name, module=module))
    return public


def _public_name(fact: Fact, reexports: dict[str, str]) -> tuple[str, str]:
    if fact.module in PUBLIC_NAMES:
        module = PUBLIC_NAMES[fact.module]
        return module + fact.name.removeprefix(fact.module), module
    if fact.kind != "module":
        top, *rest = fact.name.removeprefix(f"{fact.module}.").split(".")
        public = reexports.get(f"{fact.module}.{top}") or reexports.get(f"{fact.module}.*", "").replace("*", top)
        if public:
            return ".".join([public, *rest]), public.rpartition(".")[0]
    return fact.name, fact.module


# ---- pydoc pages -----------------------------------------------------------------------------------------------------

_PYDOC_ENTRY = re.compile(
    r'<a name="(?P<type>\w+)">class <strong>(?:(?!<a name=).)*?colspan=2><span class="code">(?P<about>.*?)</span>'
    r'|<dt><a name="(?P<owner>\w*)-(?P<name>\w+)"><strong>\w+</strong></a>(?P<call>.*?)</dt>'
    r'(?:<dd><span class="code">(?P<doc>.*?)</span>)?'
    r"|(?P<origin>inherited from|defined here)\b",
    re.DOTALL,
)
_TAG = re.compile(r"<[^>]*>")
_CALL = re.compile(r"[\w.]+\((.*?)\)(?:\s*-+>(?:(?! --).)*)?", re.DOTALL)


def read_pydoc(page: str, module: str, group: str) -> list[Fact]:
    """Functions, classes and methods of a module's `pydoc` page (HTML), for modules without source.

    Inherited methods are left out, and so are methods that the page lists as functions (they begin with `self`).
    """
    prefix = "" if module == "builtins" else f"{module}."
    facts: list[Fact] = []
    inherited = False

    def add(name: str, kind: str, docstring: str, parameters: str | None) -> None:
        if summary := first_sentence(docstring):
            facts.append(
                Fact(name=prefix + name, kind=kind, module=module, group=group, summary=summary, parameters=parameters)
            )

    for entry in _PYDOC_ENTRY.finditer(page):
        if entry["origin"]:
            inherited = entry["origin"] == "inherited from"
            continue
        if entry["type"]:
            inherited = False
            if not entry["type"].startswith("_"):
                about = _text_of(entry["about"])
                add(entry["type"], "class", about, _parameters_in(about.partition("\n\n")[0].partition("\n")[0]))
            continue
        inherited = inherited and bool(entry["owner"])
        if not inherited and not entry["name"].startswith("_") and not entry["owner"].startswith("_"):
            parameters = _parameters_in("f" + _text_of(entry["call"]))
            if entry["owner"]:
                add(f"{entry['owner']}.{entry['name']}", "method", _text_of(entry["doc"]), _without_self(parameters))
            elif not (parameters or "").startswith("self"):
                add(entry["name"], "function", _text_of(entry["doc"]), parameters)
    return facts


def _text_of(html: str | None) -> str:
    """The text of a stretch of pydoc's HTML, its lines kept."""
    text = unescape(_TAG.sub("", (html or "").replace("<br>\n", "\n").replace("<br>", "\n"))).replace("\xa0", " ")
    return "\n".join(line.rstrip() for line in text.splitlines())


def _parameters_in(call: str) -> str | None:
    """The parameters in `join(a, *p) -> str`; None if they are elided (`...`) or cannot be parsed."""
    match = _CALL.fullmatch(call.split(" from ")[0].strip())
    if match is None or "..." in match[1] or "[" in match[1]:
        return None
    try:
        return parameters_of(_parsed(match[1]))
    except SyntaxError:
        return None


def _without_self(parameters: str | None) -> str | None:
    """Parameters of a method as its caller sees them: no `self`, and no `/` that only `self` stood before."""
    if parameters is None:
        return None
    names = parameters.split(", ")
    if names[0] in ("self", "cls", "type"):
        names = names[1:]
    return ", ".join(names[1:] if names[:1] == ["/"] else names)


# ---- other pages -----------------------------------------------------------------------------------------------------

_SITE = re.compile(r"\s+[-|–—·]\s+.*$")
_DEFINITION = re.compile(r"^(?:(?:The|An?)\s+)?([A-Z][\w'’-]*(?:\s[\w'’-]+){0,3}?)\s+(?:is|are)\s+(?:an?|the|one)\s")
_PRONOUNS = {"it", "this", "that", "there", "these", "those", "he", "she", "they", "we", "you", "here", "what", "which"}
_MAX_HEADING_WORDS = 8


def read_page(title: str, text: str, group: str) -> list[Fact]:
    """Facts of a page by three templates: what the page is about, what a section says, and what a term means.

    - page: the title with the first whole sentence of the text;
    - section: a heading (a short line of its own, without a full stop) with the first sentence under it;
    - term: a paragraph that begins `X is a ...`, with that sentence.
    """
    title = _SITE.sub("", " ".join(title.split()))
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    blocks = [block.lstrip("# ").strip() for block in blocks if block.strip("# ")]
    facts: list[Fact] = []

    def add(kind: str, name: str, summary: str) -> None:
        facts.append(Fact(name=name, kind=kind, module=title, group=group, summary=summary))

    if title and (opening := next(filter(None, map(_whole_sentence, blocks)), None)):
        add("page", title, opening)
    for heading, body in pairwise(blocks):
        if title and _is_heading(heading) and heading != title and (sentence := _whole_sentence(body)):
            add("section", heading, sentence)
    for block in blocks:
        sentence = _whole_sentence(block)
        if sentence and (match := _DEFINITION.match(sentence)) and match[1].lower() not in _PRONOUNS:
            add("term", match[1], sentence)
    return list({(fact.kind, fact.name): fact for fact in reversed(facts)}.values())[::-1]


def _is_heading(block: str) -> bool:
    words = block.split()
    return 1 <= len(words) <= _MAX_HEADING_WORDS and block[0].isupper() and block[-1] not in ".!?:;,…"


def _whole_sentence(block: str) -> str | None:
    """The first sentence of a paragraph, if it ends as one and is neither too short nor too long to be an answer."""
    end = _SENTENCE_END.search(block)
    sentence = block[: end.end()] if end else ""
    return sentence if 5 <= len(sentence.split()) <= MAX_WORDS + 6 else None


# ---- documents -------------------------------------------------------------------------------------------------------

_PYTHON_PAGE = re.compile(r"^python://[^/]+/(?:doc|lib)/(.*?)(?:/__init__)?\.(?:html|py)$")


def module_of(url: str) -> str:
    """The module a document is about: `python://3.11/lib/json/__init__.py` is `json`, `src/bees.py` is `bees`."""
    match = _PYTHON_PAGE.match(url)
    return match[1].replace("/", ".") if match else url.rpartition("/")[2].removesuffix(".py")


def facts_of(documents: Iterable[Mapping[str, str]], manuals: Mapping[str, str]) -> tuple[list[Fact], Counter[str]]:
    """Facts of kept documents (`url title text source group`), and how many sources use each module and name.

    Python sources come first. A `pydoc` document adds what only it knows, read from its raw page in `manuals` (HTML by
    URL), because curation cuts the headings that all these pages share. Every other page is read by its templates.
    """
    facts: list[Fact] = []
    reexports: dict[str, str] = {}
    uses: Counter[str] = Counter()
    pages = []
    for document in documents:
        url, group = document["url"], document["group"]
        if url.endswith(".py"):
            source = read_source(document["text"], module_of(url), group)
            facts += source.facts
            reexports |= source.reexports
            uses.update({*source.uses, "builtins"})
        elif document["source"] != "pydoc":
            facts += read_page(document["title"] or "", document["text"], group)
        elif url in manuals:
            pages.append((url, group))
    with_source = {fact.module for fact in facts}
    facts = under_public_names(facts, reexports)
    known = {fact.name for fact in facts}
    for url, group in pages:
        module = module_of(url)
        if any(part.startswith("_") for part in module.split(".")):
            continue
        covered = ("method", "class") if module in with_source else ()  # the source has better facts of these kinds
        in_manual = read_pydoc(manuals[url], module, group)
        facts += [fact for fact in in_manual if fact.kind not in covered and fact.name not in known]
    return facts, uses


# ---- sentences -------------------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.!?](?=\s+[A-Z(\"'`*]|$)")
_CALL_LINE = re.compile(r"^[\w.]+\([^)]*\)?[^)]*\)?\s*(?:-> [\w ]+ --|->|--|=>|:)\s*")
_MARKUP = re.compile(r":\w+(?::\w+)?:`~?([^`]*)`|(?<!\w)\*(\w+)\*(?!\w)")
_OWN_NAME = re.compile(
    r"^(?:module )?[\w.]+(?:\.py)? +--? +|^[\w.]+: (?=[A-Z])|^[\w, ]{1,24} -+> (?=\w+ )", re.IGNORECASE
)
_UNCLEAR = re.compile(
    r">>>|\bTODO\b|\bXXX\b|^(see|same as|undocumented|internal|deprecated|initialize self|like |ditto|overrid"
    r"|helper|this (method|function|is)|for testing|not implemented|test )|[:;,]$|\bdocstring\b|@|https?:",
    re.IGNORECASE,
)


def first_sentence(docstring: str | None) -> str | None:
    """The first sentence of a docstring on one line, or None where it is missing, too long or says too little.

    Lines before it that only show the call (`str(object='') -> str`) are passed over.
    """
    if not docstring:
        return None
    lines = inspect.cleandoc(docstring).splitlines()
    while lines and (not lines[0].strip() or _CALL.fullmatch(lines[0].strip())):
        lines = lines[1:]
    text = _plain("\n".join(takewhile(str.strip, lines)))
    text = _OWN_NAME.sub("", _CALL_LINE.sub("", text))
    end = _SENTENCE_END.search(text)
    sentence = (text[: end.end()] if end else text).strip()
    words = sentence.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or len(sentence) > 8 * MAX_WORDS or _UNCLEAR.search(sentence):
        return None
    letters = sum(character.isalpha() or character == " " for character in sentence)
    if not sentence.isascii() or not sentence[0].isalpha() or letters < 0.8 * len(sentence):
        return None
    return sentence[0].upper() + sentence[1:].rstrip(".") + "."


def _plain(paragraph: str) -> str:
    """A paragraph on one line without reStructuredText marks."""
    return _MARKUP.sub(r"\1\2", " ".join(paragraph.split())).replace("``", "").replace("`", "")
