"""The command line: `herd <stage> [recipe.yaml] [setting=value ...]`.

A thin caller: every verb is one file of `herd/stages/`, with a settings class and `run(settings)`; a verb with a folder
there is a family (`herd guard train` is `herd/stages/guard/train.py`), whose `__init__.py` may have a `run` of its own.
Nothing heavy is imported before the verb is known, so that `herd --help` answers at once.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import errno
import importlib
import json
import os
import signal
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from herd import renamed, stages
from herd.errors import ConfigError, UserError

STORY: dict[str, tuple[str, ...]] = {
    "The whole story": ("demo", "story"),
    "From pages to a corpus": (
        "repositories",
        "curate",
        "quality",
        "decontaminate",
        "mix",
        "tokenizer",
        "pack",
        "ngrams",
    ),
    "From a corpus to a base model": ("pretrain", "average"),
    "From a base model to an assistant": ("tune", "distill", "sft", "reward", "reject", "dpo", "rl", "rounds"),
    "Measure and shrink": ("evaluate", "quantize"),
    "Measure further": ("harness", "haystack", "judge", "scaling"),
    "Use": ("chat", "serve", "convert"),
    "Your own files": ("index", "search", "ask", "check", "summarize"),
    "Look closer": (
        *("plan", "examine", "inspect", "show", "report", "template", "trace"),
        *("sandbox", "guard", "shield", "card", "memory", "forget", "poison", "identity", "doctor"),
    ),
}
"""The verbs in the order of the story; each is `herd/stages/<verb>.py`, or a family `herd/stages/<verb>/`."""

BY_NAME_ONLY = ("Measure further", "Your own files", "Look closer")
"""Groups whose verbs share one line of the first help screen, which has at most 40 lines."""

INTERRUPTED = 130
USER_ERROR = 2
_LONGEST_MESSAGE = 20_000  # characters


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 2 a user error, 130 interrupted)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else PyTorch is 5 to 20 times slower on a busy machine
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"herd {importlib.import_module('herd').__version__}")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run_verb(words[0], words[1:])
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped; the same command continues where it was", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if message := _system_fault(error):
            return _fail(message)
        raise


def commands() -> list[str]:
    """Every command, in the order of the story: `pack`, `guard train`, ..."""
    result = []
    for verb in (name for names in STORY.values() for name in names):
        members = _members(verb)
        if not members or _has_run(verb):
            result.append(verb)
        result += [f"{verb} {member}" for member in members]
    return result


def _members(verb: str) -> list[str]:
    """The commands of a family by name; empty for a verb that is one file."""
    file = _file(verb)
    files = file.parent.glob("*.py") if file.name == "__init__.py" else ()
    return sorted(one.stem for one in files if not one.stem.startswith("_"))


def _has_run(family: str) -> bool:
    """Whether a family has a `run` of its own, read without importing it."""
    body = _parsed(family).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in body)


def _run_verb(verb: str, words: list[str]) -> int:
    command, words = _which(verb, words)
    asks_help = any(word in ("-h", "--help") for word in words)
    if command not in commands():  # a family that is only its members
        print(_family_help(command))
        return 0
    stage, cls = stages.stage(command), stages.settings_of(command)
    if asks_help:
        print(_verb_help(command, stage, cls))
        return 0
    from herd import config

    if words == ["--schema"]:
        print(json.dumps(config.json_schema(cls), indent=1))
        return 0
    recipe, overrides = sort_words(command, cls, words)
    result = stage.run(config.load(cls, recipe, overrides))
    return result if isinstance(result, int) else 0


def _which(verb: str, words: list[str]) -> tuple[str, list[str]]:
    """The command that the first word names (or the first two, for a family), and the remaining words."""
    if verb in renamed.VERBS:
        raise ConfigError(f"`herd {verb}` is now `herd {renamed.VERBS[verb]}`")
    known = commands()
    if verb not in (name.split()[0] for name in known):
        if verb.isidentifier() and verb[0] != "_" and (file := next(_files(verb), None)):
            raise ConfigError(f"no command `{verb}`: {file} exists, but `STORY` in {__file__} does not list it")
        raise ConfigError(f"no command `{verb}`{_nearest(verb, known)}")
    first = words[0] if words else ""
    if f"{verb} {first}" in known:
        return f"{verb} {first}", words[1:]
    if verb not in known and first not in ("", "-h", "--help"):
        raise ConfigError(f"no command `{verb} {first}`{_nearest(f'{verb} {first}', known, family=verb)}")
    return verb, words


def _nearest(wrong: str, known: list[str], family: str = "") -> str:
    """A hint for an error: the nearest known command, or all of them."""
    names = [name for name in known if name.startswith(f"{family} ")] if family else known
    if nearest := difflib.get_close_matches(wrong, names, n=1):
        return f"; did you mean `{nearest[0]}`?"
    if of_family := [name for name in names if name.split()[-1] == wrong]:
        return f"; did you mean `{of_family[0]}`?"
    return f"; there are: {', '.join(names)}"


def sort_words(verb: str, cls: type, words: list[str]) -> tuple[Path | None, list[str]]:
    """Separate the recipe from the settings: `key=value`, `--key value`, `--flag` and positional words (path, out).

    Returns the recipe's path and the settings as `key=value` words for `herd.config.load`.

    Raises:
        ConfigError: a word that the command does not take.
    """
    from herd.config import find_recipe

    hints = typing.get_type_hints(cls)
    recipe, overrides, paths, recipes = None, [], [], []
    bare = _bare(cls, hints)
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            name, equals, given = word[2:].partition("=")
            name = name.replace("-", "_")
            value = given if equals else "true" if hints.get(name) is bool else next(rest, None)
            if value is None:
                raise ConfigError(f"{word}: expected a value after it ({word} VALUE)")
            overrides.append(f"{name}={value}")
        elif "=" in word and not Path(word).exists():
            overrides.append(word)
        elif word.endswith((".yaml", ".yml")) and "recipe" in hints:  # recipes of another command
            recipes.append(str(find_recipe(Path(word))))
        elif word.endswith((".yaml", ".yml")) and recipe is None:
            recipe = find_recipe(Path(word))
        elif typing.get_origin(hints.get("path")) is list:
            paths.append(word)
        elif bare:
            name = bare.pop(0)  # a text is no YAML: "Note: this" is not a mapping, "12" no number
            overrides.append(f"{name}={json.dumps(word, ensure_ascii=False) if hints[name] is str else word}")
        else:
            expected = "only one recipe" if recipe else "a recipe (.yaml) or setting=value"
            meant = _first_input(cls, hints)
            hint = f"did you mean `{meant}={word}`? See" if meant and not recipe else "see"
            raise ConfigError(f"{word}: expected {expected}; {hint} `herd {verb} --help`")
    for name, words in (("path", paths), ("recipe", recipes)):
        if words:
            overrides.append(f"{name}={json.dumps(words)}")  # JSON is YAML
    return recipe, overrides


def _bare(cls: type, names: Iterable[str]) -> list[str]:
    """The settings that positional words set, in order."""
    return [name for name in getattr(cls, "bare_words", ("path", "out")) if name in names] if "path" in names else []


def _first_input(cls: type, hints: dict[str, Any]) -> str | None:
    """The first required setting that takes files: what a bare path was probably meant for."""
    needed = (field.name for field in dataclasses.fields(cls) if field.name != "out" and _is_needed(field))
    return next((name for name in needed if Path in (hints[name], *typing.get_args(hints[name]))), None)


def _is_needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# ---- help ------------------------------------------------------------------------------------------------------------


def _overview() -> str:
    lines = [
        "Herd raises Llama-3-class models, from raw web pages to a guarded assistant.",
        "  herd <command> [recipe.yaml] [setting=value ...]     herd <command> --help shows every setting",
        "",
    ]
    for title, verbs in STORY.items():
        if title in BY_NAME_ONLY:
            lines.append(f"{title}: {', '.join(verbs)}")
        else:
            lines += [f"{title}:", *(f"  {verb:<14} {_summary(verb)}" for verb in verbs)]
    return "\n".join([*lines, "", "Begin with `herd demo`: the whole story on this machine, in about ten minutes."])


def _summary(command: str) -> str:
    """The first sentence of a stage's docstring, read without importing the stage; a family names its members."""
    text = ast.get_docstring(_parsed(command)) or ""
    members = [] if " " in command else _members(command)
    also = f" Also: {', '.join(members)}." if members else ""
    return text.split("\n\n")[0].replace("\n", " ").strip() + also


def _parsed(command: str) -> ast.Module:
    return ast.parse(_file(command).read_text(encoding="utf-8"))


def _file(command: str) -> Path:
    """The file of a stage, or the `__init__.py` of a family."""
    return next(_files(command))


def _files(command: str) -> Iterator[Path]:
    places = [Path(folder, *command.split()) for folder in stages.__path__]
    files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    return (file for file in files if file.is_file())


def _family_help(family: str) -> str:
    """The description of a family, and its commands with a line each."""
    text = (ast.get_docstring(_parsed(family)) or "").strip()
    usage = f"  herd {family} <command> [setting=value ...]     herd {family} <command> --help shows every setting"
    return "\n".join([text, "", usage, "", *_member_lines(family)])


def _member_lines(family: str) -> list[str]:
    return [f"  {member:<14} {_summary(f'{family} {member}')}" for member in _members(family)]


def _verb_help(verb: str, stage: ModuleType, cls: type) -> str:
    from herd.config import describe

    settings = describe(cls)
    kinds = {setting.name: setting.kind for setting in settings}
    one = " ".join(name.upper() for name in _bare(cls, kinds))
    first = "[recipe.yaml]" if "path" not in kinds else "PATH ..." if kinds["path"].startswith("list") else one
    usage = f"  herd {verb} {first} [setting=value ...]     (or --setting value; lists as [a,b])"
    lines = [(stage.__doc__ or "").strip(), "", usage, ""]
    if members := _member_lines(verb):
        lines += [f"Also, `herd {verb} <command>`:", *members, "", "Settings:"]
    for setting in settings:
        default = "required" if setting.default is None else f"default {setting.default or 'empty'}"
        lines += [f"  {setting.name}  ({setting.kind}; {default})", f"      {setting.text}"]
    return "\n".join(lines)


# ---- errors and signals ----------------------------------------------------------------------------------------------


def _fail(message: str) -> int:
    if len(message) > _LONGEST_MESSAGE:  # it may quote a megabyte of input
        half = _LONGEST_MESSAGE // 2
        left_out = len(message) - 2 * half
        message = f"{message[:half]} ... ({left_out:,} characters left out) ... {message[-half:]}"
    message = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in message)  # no escape codes
    print(f"error: {message}", file=sys.stderr)
    return USER_ERROR


def _system_fault(error: OSError) -> str | None:
    """A message for a system error that the user can fix; None for what looks like a bug of ours."""
    where = f"{error.filename}: " if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"{where}the disk is full; free some space and give the same command again, it continues"
        case errno.EFBIG:
            limit = "`ulimit -f`, or the file system's own limit"
            return f"{where}files may not grow that large here ({limit}); raise it, the same command continues"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{where}no permission; choose a place you may write to (out=...) or change its rights"
        case errno.EEXIST | errno.ENOTDIR | errno.EISDIR | errno.ENOENT | errno.ENAMETOOLONG:
            return f"{where}{(error.strerror or str(error)).lower()}"
        case _:
            return None


def _interrupt(_signal: int, _frame: FrameType | None) -> Any:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
