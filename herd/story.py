"""A story: a sequence of steps, each an ordinary stage with a run folder of its own, as one YAML file.

    out: runs/mine
    steps:
      - {name: pack, run: pack, settings: {documents: my/curate, tokenizer: my/tokenizer}}
      - name: size
        run: pretrain
        grid: {width: [64, 128]}
        settings: {shards: "${pack}", tokenizer: my/tokenizer, tokens: 1e6, model: {hidden_size: "${width}"}}
      - {name: learned, go_on_if: min(size.loss) < 4}

`${name}` is the run folder of an earlier step (`${name}/file` a file in it), a value of the story, or the value of a
grid's axis. `plan` expands a story into acts and checks them all; `go` executes them in order.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from herd import config
from herd.config import settings
from herd.errors import ConfigError, DataError, UserError
from herd.gate import Figures, Gate
from herd.log import duration, say
from herd.run import read_manifest

_LINK = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z][\w-]*")
_BUILT_IN = {"story", "round", "previous"}

Find = Callable[[str], tuple[type, Callable[[Any], Any]]]
"""Maps a command to its settings class and its `run`; raises ConfigError for an unknown command."""


@settings
class Step:
    """One step: a stage to run, steps to repeat, or a gate."""

    name: str
    """Name of the step and of its run folder: letters, digits, `-` and `_`."""
    run: str = ""
    """The command, as after `herd`: `pretrain`, or `demo questions` of a family."""
    recipe: str = ""
    """Recipe that `settings` override: a path, or a shipped one (`demo/pretrain.yaml`)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the command; texts may contain links (`${name}`)."""
    first: dict[str, Any] = field(default_factory=dict)
    """Overrides `settings` in the first round, which has no `${previous.NAME}`."""
    grid: dict[str, list[Any] | dict[str, Any] | str] = field(default_factory=dict)
    """Axes to cross: values, values by name, or `${NAME}` of either. Each cell does `run` or `steps`."""
    rounds: int = 0
    """How often `steps` are repeated; `${round}` is the number, `${previous.NAME}` a step of the round before."""
    steps: list[Step] = field(default_factory=list)
    """The steps that a grid or rounds repeat."""
    go_on_if: str = ""
    """A gate on figures of earlier steps' manifests: `sft.loss < 2 and new.accuracy > old.accuracy + 0.01`."""
    otherwise: Literal["stop", "leave"] | list[Step] = "stop"
    """If the gate fails: stop with the reason, leave the rounds, or do these steps instead of the rest."""

    def __post_init__(self):
        kinds = [bool(self.run), bool(self.steps), bool(self.go_on_if)]
        if not _NAME.fullmatch(self.name) or self.name in _BUILT_IN:
            raise ValueError(f"name `{self.name}`: expected letters, digits, - and _, and none of {sorted(_BUILT_IN)}")
        if sum(kinds) != 1:
            raise ValueError(f"step `{self.name}` needs one of `run`, `steps` (with `grid` or `rounds`) and `go_on_if`")
        if self.steps and bool(self.grid) == bool(self.rounds):
            raise ValueError(f"step `{self.name}` repeats its steps: give either `grid` or `rounds`")
        if (self.rounds and not self.steps) or self.rounds < 0 or (self.grid and self.go_on_if):
            raise ValueError(
                f"step `{self.name}`: `rounds` (1 or more) needs `steps`; a gate has neither rounds nor grid"
            )
        if not all(self.grid.values()):
            raise ValueError(f"step `{self.name}`: every axis of `grid` needs a value")


@settings
class StorySettings:
    """A story: what is done, where, and with which values."""

    out: Path
    """Folder of the story: a run folder for each step, and report.html."""
    steps: list[Step]
    """The steps, in order (`herd.story.Step`, docs/stories.md)."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values for `${NAME}` in settings, to be changed in one place (`values.tokens=1e6`)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Planned seconds of each step by name, shown in the plan; `herd demo` sizes its steps by them."""
    dry_run: bool = False
    """Check everything and print the plan; run nothing."""
    may_change = ("steps", "values", "seconds", "dry_run")  # each step's own run folder knows what it was made with


@dataclass(frozen=True)
class _Rounds:
    """A step of completed rounds, with a run folder for each round; a round whose gate failed does not count."""

    group: str
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Act:
    """One thing to do: run a stage in `folder`, or evaluate a gate."""

    name: str
    folder: Path
    step: Step
    names: Mapping[str, Any]  # the meaning of each `${...}` here
    given: Mapping[str, Any] = field(default_factory=dict)
    rounds: str = ""  # the rounds it belongs to
    round: int = 0
    ending: tuple[Act, ...] = ()


# ---- the plan --------------------------------------------------------------------------------------------------------


def plan(story: StorySettings, find: Find) -> list[Act]:
    """The acts of a story, with grids and rounds expanded and all settings checked.

    Raises:
        ConfigError: with all errors at once: unknown, circular or forward links, unknown commands and settings, gates
            that cannot be parsed.
    """
    faults: list[str] = []
    names = {"story": story.out, **story.values}
    acts = _Layout(story.out, faults).lay(story.steps, names, "")
    known = _all_names(story.steps)
    faults += [f"seconds.{name}: no step has this name" for name in story.seconds if name not in known]
    faults += [f"seconds.{name}: must be above 0" for name, planned in story.seconds.items() if planned <= 0]
    faults += _circles(story.steps)
    for act in _with_endings(acts):
        faults += _faults_of(act, find, known)
    if faults:
        unique = list(dict.fromkeys(faults))
        count = "1 problem" if len(unique) == 1 else f"{len(unique)} problems"
        raise ConfigError("\n".join([f"{count} in the story", *(f"  {fault}" for fault in unique)]))
    return acts


class _Layout:
    """Expands steps into acts and collects the meaning of names on the way."""

    def __init__(self, out: Path, faults: list[str]):
        self.out, self.faults, self.taken = out, faults, set[str]()

    def lay(
        self, steps: Sequence[Step], names: dict[str, Any], prefix: str, rounds: str = "", no: int = 0
    ) -> list[Act]:
        """The acts of these steps; the names that they define are added to `names`."""
        acts: list[Act] = []
        for step in steps:
            if step.name in names:
                self.faults.append(f"{prefix}{step.name}: the name is taken; choose another")
            elif step.grid:
                acts += self._grid(step, names, prefix, rounds, no)
            elif step.rounds and rounds:
                self.faults.append(f"{prefix}{step.name}: rounds within rounds; write the inner ones out, or as a grid")
            elif step.rounds:
                acts += self._rounds(step, names, prefix)
            elif no == 1 and "previous." in step.go_on_if:
                continue  # the first round has nothing to compare with
            else:
                acts.append(self._act(step, names, prefix, rounds, no))
        return acts

    def _act(self, step: Step, names: dict[str, Any], prefix: str, rounds: str, no: int, label: str = "") -> Act:
        name, ending = f"{prefix}{step.name}{label}", tuple[Act, ...]()
        if name in self.taken:
            self.faults.append(f"{name}: two steps would share this run folder; choose another name")
        self.taken.add(name)
        if isinstance(step.otherwise, list):
            taken = set(self.taken)  # an ending may reuse the names of the steps that it replaces
            ending = tuple(self.lay(step.otherwise, dict(names), prefix))
            self.taken = taken
        elif step.otherwise == "leave" and not rounds:
            self.faults.append(f"{name}: `otherwise: leave` leaves rounds, but this gate is not inside any")
        given = _merged(step.settings, step.first) if no == 1 else step.settings
        act = Act(name, self.out / name, step, dict(names), given, rounds, no, ending)
        if step.run:
            names[step.name] = act.folder
        return act

    def _grid(self, step: Step, names: dict[str, Any], prefix: str, rounds: str, no: int) -> list[Act]:
        acts: list[Act] = []
        made: dict[str, list[Path]] = {}
        axes = [_axis(_given(axis, values, names)).items() for axis, values in step.grid.items()]
        for axis in step.grid:
            if axis in names or axis in _BUILT_IN:
                self.faults.append(f"{prefix}{step.name}: the name of the axis `{axis}` is taken; choose another")
        for cell in itertools.product(*axes):
            values = {axis: value for axis, (_, value) in zip(step.grid, cell)}
            label = "-".join(f"{axis}={name}" for axis, (name, _) in zip(step.grid, cell))
            inner = names | values
            if step.run:
                act = self._act(step, inner, prefix, rounds, no, label=f"-{label}")
                acts.append(act)
                made.setdefault(step.name, []).append(act.folder)
            else:
                before = set(inner)
                acts += self.lay(step.steps, inner, f"{prefix}{step.name}-{label}-", rounds, no)
                for name in inner.keys() - before:
                    made.setdefault(f"{step.name}.{name}", []).append(inner[name])
        names |= made
        return acts

    def _rounds(self, step: Step, names: dict[str, Any], prefix: str) -> list[Act]:
        acts: list[Act] = []
        group = f"{prefix}{step.name}"
        previous: dict[str, Any] = {}
        made: dict[str, list[Path]] = {}
        for number in range(1, step.rounds + 1):
            inner = names | {"round": number} | {f"previous.{name}": made for name, made in previous.items()}
            before = set(inner)
            acts += self.lay(step.steps, inner, f"{group}-{number}-", group, number)
            previous = {name: inner[name] for name in inner.keys() - before}
            for name, folder in previous.items():
                made.setdefault(name, []).append(folder)
        names |= {f"{step.name}.{name}": _Rounds(group, tuple(folders)) for name, folders in made.items()}
        return acts


def _given(axis: str, values: Any, names: Mapping[str, Any]) -> Any:
    given = names.get(values.strip("${}")) if isinstance(values, str) else values
    if not isinstance(given, list | dict) or not given:
        raise ConfigError(f"grid: the axis `{axis}` is {values!r}; expected values, or ${{NAME}} of a list or a table")
    return given


def _axis(values: list[Any] | dict[str, Any]) -> dict[str, Any]:
    named = values if isinstance(values, dict) else {value: value for value in map(_hashable, values)}
    return {re.sub(r"[^\w.+]+", "_", str(name)): value for name, value in named.items()}


def _hashable(value: Any) -> Any:
    if isinstance(value, list | dict):
        raise ConfigError(f"grid: {value} has no readable name; give the axis as `name: value` lines")
    return value


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _with_endings(acts: Sequence[Act]) -> Iterator[Act]:
    for act in acts:
        yield act
        yield from _with_endings(act.ending)


# ---- errors ----------------------------------------------------------------------------------------------------------


def _faults_of(act: Act, find: Find, known: set[str]) -> Iterator[str]:
    if act.step.go_on_if:
        try:
            refers = Gate.read(act.step.go_on_if, act.names).refers
        except UserError as error:
            yield f"{act.name}: {error}"
        else:
            asked = [name for name in sorted(refers) if not isinstance(act.names.get(name), Path | list | _Rounds)]
            yield from (f"{act.name}: {_unlinked(name, act, known)}" for name in asked)
        return
    unknown = [name for name in _links(act.given) if name not in act.names]
    yield from (f"{act.name}: {_unlinked(name, act, known)}" for name in unknown)
    try:
        _settings(act, find, {}, stand_in=True)
    except UserError as error:
        yield f"{act.name}: {error}".replace("\n", "\n  ")


def _unlinked(name: str, act: Act, known: set[str]) -> str:
    if name.split(".")[-1] in known and name.startswith("previous."):
        return f"${{{name}}} does not exist in the first round; give a replacement under `first`"
    if name in known:
        return f"${{{name}}} is defined later (or in another branch); move that step before this one"
    nearest = difflib.get_close_matches(name, list(act.names), n=1)
    return f"no step, value or axis `{name}`" + (f"; did you mean `{nearest[0]}`?" if nearest else "")


def _links(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _LINK.findall(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _links(item)
    elif isinstance(value, list):
        for item in value:
            yield from _links(item)


def _all_names(steps: Sequence[Step]) -> set[str]:
    inner = [*(step.steps for step in steps), *(step.otherwise for step in steps if isinstance(step.otherwise, list))]
    return {step.name for step in steps}.union(*map(_all_names, inner))


def _circles(steps: Sequence[Step]) -> Iterator[str]:
    """A line for each cycle of links among the steps of a list, and within nested lists."""
    links = {step.name: {*_links(step.settings), *_links(step.first)} for step in steps}
    said: set[frozenset[str]] = set()
    for start in links:
        ways: list[tuple[str, ...]] = [(start,)]
        while ways:
            way = ways.pop()
            for name in sorted(links.get(way[-1], ())):
                if name == start and frozenset(way) not in said:
                    said.add(frozenset(way))
                    yield f"{start}: circular links: {' -> '.join((*way, start))}"
                elif name in links and name not in way:
                    ways.append((*way, name))
    for step in steps:
        yield from _circles(step.steps)


# ---- settings of a step ----------------------------------------------------------------------------------------------


def _settings(
    act: Act, find: Find, kept: Mapping[str, int], *, over: Mapping[str, Any] | None = None, stand_in: bool = False
) -> Any:
    cls, _ = find(act.step.run)
    if "out" not in getattr(cls, "__dataclass_fields__", {}):
        raise ConfigError(f"`herd {act.step.run}` writes no run folder (it has no `out`), so it cannot be a step")
    if "out" in act.given:
        raise ConfigError("`out` is the step's folder in the story; take it out of the settings")
    recipe = config.find_recipe(Path(act.step.recipe)) if act.step.recipe else None
    given = _merged(act.given, over or {}) | {"out": str(act.folder)}
    values = _resolved(given, act.names, kept, stand_in)
    return config.load(cls, recipe, values=values, where=f"step {act.name}")


def _resolved(value: Any, names: Mapping[str, Any], kept: Mapping[str, int], stand_in: bool) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item, names, kept, stand_in) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, names, kept, stand_in) for item in value]
    if not isinstance(value, str):
        return value

    def meaning(name: str) -> Any:
        meant = names.get(name, f"({name})") if stand_in else names[name]
        return config.to_dict(_folder(name, meant, kept))

    if whole := _LINK.fullmatch(value):
        return meaning(whole[1])

    def within(link: re.Match[str]) -> str:
        if isinstance(target := meaning(link[1]), list | dict):
            raise ConfigError(f"{value}: {link[0]} is {len(target)} values; it can only stand alone")
        return str(target)

    return _LINK.sub(within, value)


def _folder(name: str, meant: Any, kept: Mapping[str, int]) -> Any:
    """The present meaning of a name; for completed rounds, the folder of the last round that was kept."""
    if isinstance(meant, list):
        return [_folder(name, one, kept) for one in meant]
    if not isinstance(meant, _Rounds):
        return meant
    number = kept.get(meant.group, len(meant.folders))
    if not number:
        raise DataError(f"{name}: no round of `{meant.group}` passed its gate, so there is nothing to continue from")
    return meant.folders[number - 1]


# ---- execution -------------------------------------------------------------------------------------------------------


Adjust = Callable[[Act, Any], Mapping[str, Any]]
"""Maps an act and its settings to overrides of these; see `go`."""


def go(acts: Sequence[Act], find: Find, adjust: Adjust = lambda act, settings: {}, *, done: Sequence[Act] = ()) -> str:
    """Execute the acts in order; finished stages are skipped. Returns why it ended early, or an empty string.

    `adjust` overrides settings that are known only when a step's turn comes (from a measured speed). `done` are acts
    before these; they are included in the step numbers that are printed.

    Raises:
        DataError: a gate failed and says to stop, or a figure that it needs is missing.
    """
    kept: dict[str, int] = {}
    number = sum(bool(act.step.run) for act in done)
    total = number + sum(bool(act.step.run) for act in acts)
    for place, act in enumerate(acts):
        number += bool(act.step.run)
        if act.rounds in kept and act.round > kept[act.rounds]:
            continue
        if act.step.run:
            say(f"\n[{number}/{total}] {act.name}")
            _run(act, find, kept, adjust)
            continue
        say(f"\n{act.name}")
        reason = _verdict(act, kept)
        if not reason:
            continue
        if act.step.otherwise == "stop":
            raise DataError(f"the story stops at `{act.name}`: {reason}")
        if act.step.otherwise == "leave":
            kept[act.rounds] = act.round - 1
            say(f"  {act.rounds} ends: round {act.round} is not kept, {act.round - 1} before it count")
            continue
        say("  the story continues with its other ending")
        return go(act.ending, find, adjust, done=[*done, *acts[:place]]) or f"{act.name}: {reason}"
    return ""


def _run(act: Act, find: Find, kept: Mapping[str, int], adjust: Adjust) -> None:
    _, run = find(act.step.run)
    settings = _settings(act, find, kept)
    over = adjust(act, settings)
    run(_settings(act, find, kept, over=over) if over else settings)


def _verdict(act: Act, kept: Mapping[str, int]) -> str:
    """Evaluate a gate and print the result; returns why it failed, or an empty string."""

    def figures(name: str) -> Figures:
        folders = _folder(name, act.names[name], kept)
        return [read_manifest(folder)["figures"] for folder in (folders if isinstance(folders, list) else [folders])]

    holds, text = Gate.read(act.step.go_on_if, act.names).judge(figures)
    say(f"  {act.step.go_on_if}: {text}, {'holds' if holds else 'does not hold'}")
    return "" if holds else f"{act.step.go_on_if} does not hold ({text})"


def described(acts: Sequence[Act], seconds: Mapping[str, float]) -> Iterator[str]:
    """The plan as lines: what runs where, what is done already, how long it may take, and the gates."""
    for act in acts:
        if act.step.go_on_if:
            yield f"  {act.name}: goes on if {act.step.go_on_if}, else " + (
                "ends so:" if act.ending else str(act.step.otherwise)
            )
            yield from (f"  {line}" for line in described(act.ending, seconds))
        else:
            manifest = read_manifest(act.folder) if (act.folder / "run.json").exists() else {"state": "to do"}
            recipe = f" {act.step.recipe}" if act.step.recipe else ""
            planned = f", {duration(seconds[act.step.name])}" if act.step.name in seconds else ""
            yield f"  {act.folder}: herd {act.step.run}{recipe} ({manifest['state']}{planned})"
