"""Model and data cards from run folders alone: each figure with the file and the key that it was read from.

Nothing is typed by hand, nothing is rounded; what is estimated (energy, carbon) says from what, and says that it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.errors import CheckpointError
from herd.run import read_manifest

DATA_STAGES = ("curate", "pack", "mix", "tokenizer", "decontaminate", "repositories", "demo pages", "demo questions")
"""Stages whose figures stand in the data card; `demo preferences` and prompts belong to it too."""
_DATA_WORDS = ("questions", "preferences", "pages", "prompts", "rows")
_CONFIG = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "vocab_size", "max_position_embeddings", "rope_theta", "torch_dtype", "dtype"),
)


@dataclass(frozen=True)
class Fact:
    """One figure, and where it stands."""

    name: str
    value: Any
    file: str  # relative to the run folder
    key: str  # dotted


@dataclass(frozen=True)
class Part:
    """A section of a card."""

    title: str
    facts: tuple[Fact, ...]
    note: str = ""


@dataclass(frozen=True)
class Energy:
    """What energy and carbon are estimated by, where no counter was read."""

    watts: float | None = None  # of the whole machine; by its cores when None
    watts_per_core: float = 10.0
    grams_per_kwh: float = 480.0


def runs_of(root: Path) -> list[tuple[str, dict[str, Any]]]:
    """The run folders within a run folder, and itself, with their manifests, in the order they ended.

    Raises:
        CheckpointError: it is no run folder, or one of them is not finished.
    """
    read_manifest(root)
    found = []
    for file in sorted([root / "run.json", *root.glob("*/run.json"), *root.glob("*/*/run.json")]):
        manifest = read_manifest(file.parent)
        if manifest.get("state") != "finished":
            raise CheckpointError(f"{file.parent}: this run is not finished; a card tells of what is done")
        found.append((str(file.parent.relative_to(root)), manifest))
    return sorted(found, key=lambda pair: (pair[1].get("finished", ""), pair[0] == "."))


def model_card(root: Path, energy: Energy | None = None) -> list[Part]:
    """The sections of a model's card."""
    runs = runs_of(root)
    parts = [_part_of_model(root, runs)]
    parts += [_part(name, manifest) for name, manifest in runs if not _is_data(manifest["stage"]) and name != "."]
    if len(runs) == 1:
        parts.append(_part(*runs[0]))
    parts += [_machine(root), _energy(root, runs, energy or Energy())]
    return [part for part in parts if part.facts]


def data_card(root: Path) -> list[Part]:
    """The sections of the card of the data that a run used or made."""
    runs = runs_of(root)
    parts = []
    for name, manifest in runs:
        if _is_data(manifest["stage"]):
            parts.append(_part(name, manifest))
            for extra in ("index.json", "funnel.json"):
                parts.append(_of_file(root, name, extra))
        else:
            parts.append(_of_file(root, name, "sources.json"))
        parts.append(_inputs(root, name))
    return [part for part in parts if part.facts]


def rendered(title: str, parts: Sequence[Part], about: str) -> str:
    """A card as Markdown: every figure beside its file and key."""
    lines = [f"# {title}", "", about, ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        if part.note:
            lines += [part.note, ""]
        lines += ["| what | value | from |", "|---|---|---|"]
        lines += [f"| {fact.name} | {_told(fact.value)} | `{fact.file}`: `{fact.key}` |" for fact in part.facts]
        lines.append("")
    return "\n".join(lines)


def _is_data(stage: str) -> bool:
    return stage in DATA_STAGES or any(word in stage for word in _DATA_WORDS)


def _file(name: str, file: str) -> str:
    return file if name == "." else f"{name}/{file}"


def _part(name: str, manifest: Mapping[str, Any]) -> Part:
    figures = manifest.get("figures") or {}
    file = _file(name, "run.json")
    facts = [Fact(told, value, file, key) for told, value, key in _leaves(figures, "figures")]
    facts.append(Fact("seconds", manifest.get("seconds"), file, "seconds"))
    title = manifest["stage"] if name == "." else f"{name} ({manifest['stage']})"
    return Part(title[:1].upper() + title[1:], tuple(facts))


def _part_of_model(root: Path, runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Part:
    """The model that the run ended with."""
    manifest = dict(runs)["."]
    pointer = manifest.get("checkpoint") or "checkpoint"
    facts = [Fact("checkpoint", pointer, "run.json", "checkpoint")] if "checkpoint" in manifest else []
    config = root / pointer / "config.json"
    if config.is_file():
        values = _read(config)
        facts += [Fact(key, values[key], f"{pointer}/config.json", key) for key in _CONFIG if key in values]
    facts.append(Fact("finished", manifest["finished"], "run.json", "finished"))
    return Part("The model", tuple(facts))


def _machine(root: Path) -> Part:
    values = _read(root / "environment.json")
    keys = ("processor", "cores", "system", "python", "packages.herd-lm", "packages.torch")
    facts = [Fact(key, _at(values, key), "environment.json", key) for key in keys if _at(values, key) is not None]
    return Part("The machine", tuple(facts))


def _energy(root: Path, runs: Sequence[tuple[str, Mapping[str, Any]]], by: Energy) -> Part:
    """An estimate from times and an assumed power: run folders hold no counter of energy."""
    whole = dict(runs)["."]
    seconds = Fact("seconds of the whole run", whole["seconds"], "run.json", "seconds")
    cores = int(_at(_read(root / "environment.json"), "cores") or 1)
    watts = by.watts if by.watts is not None else cores * by.watts_per_core
    kwh = whole["seconds"] * watts / 3.6e6
    how = f"{watts:g} W" if by.watts is not None else f"{by.watts_per_core:g} W for each of {cores} cores"
    note = (
        f"Estimated, not measured: no counter of energy was read. Energy is the time by {how}, an assumption that "
        f"leaves cooling and memory out and says nothing of accelerators; carbon is that by {by.grams_per_kwh:g} g of "
        "CO2 a kWh (480 is about the world's mean). Give `watts=` and `grams_per_kwh=` of your own."
    )
    facts = (
        seconds,
        Fact("energy, estimated, kWh", kwh, "run.json", f"seconds * {watts:g} W / 3.6e6"),
        Fact("carbon, estimated, g CO2", kwh * by.grams_per_kwh, "run.json", f"energy * {by.grams_per_kwh:g} g/kWh"),
    )
    return Part("Energy and carbon", facts, note)


def _of_file(root: Path, name: str, extra: str) -> Part:
    file = root / name / extra
    if not file.is_file():
        return Part("", ())
    facts = [Fact(told, value, _file(name, extra), key) for told, value, key in _leaves(_read(file), "")]
    return Part(f"{name}, {extra.removesuffix('.json')}", tuple(facts))


def _inputs(root: Path, name: str) -> Part:
    file = root / name / "inputs.json"
    if not file.is_file():
        return Part("", ())
    facts = []
    for key, one in _read(file).items():
        place = ", ".join(one["path"]) if isinstance(one["path"], list) else one["path"]
        facts.append(Fact(f"{key}: {place}", one["sha256"], _file(name, "inputs.json"), f"{key}.sha256"))
    return Part(f"{name}, inputs by content", tuple(facts))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any, str]]:
    """Numbers and texts of nested records with their dotted keys; lists by place."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for place, one in enumerate(value):
            yield from _leaves(one, f"{key}.{place}")
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        yield key.removeprefix("figures.").replace("_", " "), value, key


def _at(values: Any, key: str) -> Any:
    for name in [key] if isinstance(values, Mapping) and key in values else key.split(".", 1):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from None
    return found


def _told(value: Any) -> str:
    return json.dumps(value) if isinstance(value, int | float) else str(value).replace("|", "\\|").replace("\n", " ")
