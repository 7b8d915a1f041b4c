"""lm-evaluation-harness's task files, read as ours: templates over local files, without its Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from herd.errors import ConfigError
from herd.log import say
from herd.markup import read_markup

_SCORERS = {"acc": "accuracy", "acc_norm": "accuracy_norm", "acc_mutual_info": "accuracy_pmi", "exact_match": "exact"}
_SCORERS |= {"f1": "token_f1", "bleu": "bleu", "chrf": "chrf"}
_READ = {
    "task", "include", "dataset_path", "dataset_name", "dataset_kwargs", "output_type", "test_split", "num_fewshot",
    "validation_split", "training_split", "fewshot_split", "doc_to_text", "doc_to_choice", "doc_to_target",
    "target_delimiter", "fewshot_delimiter", "generation_kwargs", "metric_list", "filter_list", "description",
    "fewshot_config",
}  # fmt: skip
_WITHOUT_MEANING = {"task_alias", "tag", "group", "metadata", "repeats", "should_decontaminate", "dataset_name"}
_WITHOUT_MEANING |= {"doc_to_decontamination_query", "training_split"}


def is_harness_task(file: Path) -> bool:
    """Whether a file is one of the harness's: it has a `doc_to_text` or a `dataset_path`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(r"^(doc_to_text|dataset_path|output_type):", text, re.MULTILINE) is not None


def harness_task(file: Path) -> dict[str, Any]:
    """The settings of our task that asks the same.

    Raises:
        ConfigError: it calls Python, fetches its data, or has settings whose meaning we do not know: all by name.
    """
    raw = _read(file)
    unknown = sorted(set(raw) - _READ - _WITHOUT_MEANING)
    if unknown:
        raise ConfigError(f"{file}: not read from the harness's tasks: {', '.join(unknown)}; write a task file of ours")
    kind = raw.get("output_type", "generate_until")
    if kind not in ("multiple_choice", "generate_until"):
        raise ConfigError(
            f"{file}: output_type {kind}: only multiple_choice and generate_until are read; see `herd harness`"
        )
    needed = ["doc_to_text", "doc_to_target", *(["doc_to_choice"] if kind == "multiple_choice" else [])]
    if lacking := [name for name in needed if raw.get(name) is None]:
        raise ConfigError(f"{file}: lacks {', '.join(lacking)}, which the harness's tasks of this kind have")
    paths = _paths(file, raw)
    split = next((raw[key] for key in ("test_split", "validation_split") if raw.get(key)), next(iter(paths)))
    delimiter = raw.get("fewshot_delimiter", "\n\n")
    if delimiter != "\n\n":
        raise ConfigError(f"{file}: fewshot_delimiter {delimiter!r}: ours stand two lines apart")
    task: dict[str, Any] = {
        "ask": "choices" if kind == "multiple_choice" else "generate",
        "name": str(raw.get("task", file.stem)),
        "data": _path(file, paths, split),
        "source": "the data_files of lm-evaluation-harness's task",
        "chat": False,
        "prompt": _template(raw["doc_to_text"]),
        "answer": _template(raw["doc_to_target"]),
        "before_answer": raw.get("target_delimiter", " "),
        "preamble": raw.get("description", ""),
        "shots": int(raw.get("num_fewshot") or 0),
    }
    if (repeats := raw.get("repeats", 1)) not in (None, 1):
        say(f"  {file.name}: repeats: {repeats} is read as 1: each question is answered once")
    if task["shots"]:
        shown = (
            raw.get("fewshot_split")
            or (raw.get("fewshot_config") or {}).get("split")
            or raw.get("training_split")
            or split
        )
        task["shots_from"] = _path(file, paths, shown) if shown != split else None
        config = raw.get("fewshot_config") or {}
        if unknown := sorted(set(config) - {"sampler", "split"}):
            raise ConfigError(f"{file}: not read from the harness's fewshot_config: {', '.join(unknown)}")
        first = config.get("sampler") == "first_n"
        if not first or shown == split:
            say(f"  {file.name}: its examples are drawn otherwise than the harness draws them")
    return task | (_choices(raw) if kind == "multiple_choice" else _generation(file, raw)) | _scorer(file, raw)


_MOST_INCLUDES = 20


def _read(file: Path, includes: int = 0) -> dict[str, Any]:
    if includes > _MOST_INCLUDES:
        raise ConfigError(f"{file}: more than {_MOST_INCLUDES} files include one another")
    try:
        raw = read_markup(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = "it calls Python (!function), which is not run" if "!function" in str(error) else str(error)
        raise ConfigError(f"{file}: no task of the harness that can be read: {why}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a YAML mapping")
    return (_read(file.parent / str(raw["include"]), includes + 1) | raw) if "include" in raw else raw


def _paths(file: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    given = (raw.get("dataset_kwargs") or {}).get("data_files")
    if not given:
        told = raw.get("dataset_path", "nothing")
        raise ConfigError(
            f"{file}: its data is fetched ({told}); name local files: dataset_kwargs: data_files: {{test: FILE}}"
        )
    return given if isinstance(given, dict) else {"train": given}


def _path(file: Path, paths: Mapping[str, Any], split: str) -> str:
    if split not in paths or not isinstance(paths[split], str):
        raise ConfigError(f"{file}: data_files has no one file for the split {split}; it has {', '.join(paths)}")
    return str(paths[split])


def _template(given: Any) -> str:
    """A column's name, a template, or a number."""
    text = str(given)
    return f"{{{{ {text} }}}}" if re.fullmatch(r"[A-Za-z_]\w*", text) else text


def _choices(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = raw["doc_to_choice"]
    if isinstance(given, list):
        return {"choices": [str(one) for one in given]}
    text = str(given).strip()
    return {"choices": text.removeprefix("{{").removesuffix("}}").strip()}


def _generation(file: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    given = raw.get("generation_kwargs") or {}
    until = given.get("until") or ["\n\n"]
    found: dict[str, Any] = {"stop": [until] if isinstance(until, str) else list(until)}
    found["max_tokens"] = int(given.get("max_gen_toks", 256))
    if given.get("do_sample") and float(given.get("temperature", 1.0)) > 0:
        found["temperature"] = float(given.get("temperature", 1.0))
    if unread := sorted(set(given) - {"until", "max_gen_toks", "do_sample", "temperature"}):
        say(f"  {file.name}: of its generation_kwargs are not read: {', '.join(unread)}")
    filters = raw.get("filter_list") or []
    if len(filters) > 1:
        say(f"  {file.name}: of its {len(filters)} filters the first is read ({filters[0].get('name')})")
    for step in filters[0].get("filter") or [] if filters else []:
        if step.get("function") == "regex":
            pattern = step.get("regex_pattern", r"#### (\-?[0-9\.\,]+)")
            found["pattern"] = pattern if step.get("group_select") == -1 else rf"(?s:\A.*?){pattern}"
        elif step.get("function") not in ("take_first", "remove_whitespace"):
            raise ConfigError(f"{file}: filter {step.get('function')} is not read; see `herd harness`")
    return found


def _scorer(file: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    names = [one["metric"] for one in raw.get("metric_list") or [] if one.get("metric") in _SCORERS]
    if raw.get("metric_list") and not names:
        raise ConfigError(f"{file}: none of its metrics is read; known: {', '.join(_SCORERS)}")
    if unread := [str(one.get("metric")) for one in raw.get("metric_list") or [] if one.get("metric") not in _SCORERS]:
        say(f"  {file.name}: of its metrics are not read: {', '.join(unread)}")
    found = [_SCORERS[name] for name in names]
    best = next((one for one in found if one == "accuracy_norm"), found[0] if found else "")
    if best == "exact" and any(one.get("regexes_to_ignore") or one.get("ignore_case") for one in raw["metric_list"]):
        best = (
            "number"
            if any("####" in str(one.get("regexes_to_ignore")) for one in raw["metric_list"])
            else "exact_words"
        )
        say(f"  {file.name}: what its exact_match ignores is read as our scorer `{best}`")
    return {"scorer": best}
