from __future__ import annotations

import json
import os
import tracemalloc
import typing
from dataclasses import field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd import config
from herd.cli import commands
from herd.config import settings
from herd.errors import ConfigError
from herd.stages import settings_of


@settings
class Optimizer:
    """AdamW."""

    lr: float = 3e-4
    """Peak learning rate."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay of the two moments."""


@settings
class TrainSettings:
    """Train."""

    out: Path
    """Run folder."""

    pages: list[Path] = field(default_factory=list)
    """Folders of pages."""

    dtype: Literal["bf16", "fp32"] = "fp32"
    """Type of the weights."""

    steps: int | None = None
    """Optimizer steps."""

    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each source."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    """The optimizer."""

    def __post_init__(self):
        if self.steps == 0:
            raise ValueError("steps must be at least 1")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_inherits_and_words_override(tmp_path):
    write(tmp_path / "base.yaml", "out: a\noptimizer: {lr: 1e-3, betas: [0.8, 0.9]}\nmixture: {web: 1}\n")
    recipe = write(tmp_path / "child.yaml", "base: base.yaml\noptimizer: {lr: 2e-3}\n")
    loaded = config.load(TrainSettings, recipe, ["steps=5", "pages=one", "mixture.code=0.5"])
    assert loaded.optimizer == Optimizer(lr=2e-3, betas=[0.8, 0.9])
    assert (loaded.out, loaded.steps, loaded.pages) == (Path("a"), 5, [Path("one")])
    assert loaded.mixture == {"web": 1.0, "code": 0.5}


def test_all_faults_come_at_once_with_place_and_nearest_name(tmp_path):
    recipe = write(tmp_path / "r.yaml", "dtype: fp8\nstpes: 3\noptimizer: {lrr: 1}\n")
    with pytest.raises(ConfigError) as error:
        config.load(TrainSettings, recipe, ["optimizer.lr=fast", "nonsense"])
    message = str(error.value)
    assert message.startswith("6 problems")
    assert "r.yaml: no setting `stpes`; did you mean `steps`?" in message
    assert "no setting `optimizer.lrr`; did you mean `optimizer.lr`?" in message
    assert "`dtype`: Input should be 'bf16' or 'fp32' (got 'fp8')" in message
    assert "optimizer.lr=fast: `optimizer.lr`" in message
    assert "nonsense: expected `setting=value`" in message
    assert "`out` is required" in message


def test_a_rule_between_settings_reads_like_a_sentence():
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        config.load(TrainSettings, None, ["out=x", "steps=0"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[1, 2]", "expected `setting: value` lines"),
        ("a: [", "not valid YAML"),
        ("base: r.yaml", "leads back to itself"),
    ],
)
def test_a_broken_recipe_is_named(tmp_path, text, what):
    with pytest.raises(ConfigError, match=what):
        config.load(TrainSettings, write(tmp_path / "r.yaml", text))


def test_missing_and_binary_recipes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe"):
        config.load(TrainSettings, tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(TrainSettings, tmp_path / "b.yaml")


def test_yaml_words_stay_words_and_exponents_are_numbers():
    loaded = config.load(TrainSettings, None, ["out=no", "optimizer.lr=1e-3"])
    assert loaded.out == Path("no")
    assert loaded.optimizer.lr == 1e-3


@given(lr=st.floats(1e-9, 10), steps=st.one_of(st.none(), st.integers(1, 10**9)), name=st.text("abc-_ ", min_size=1))
def test_dumped_settings_load_to_the_same(tmp_path_factory, lr, steps, name):
    before = TrainSettings(out=Path(name), steps=steps, optimizer=Optimizer(lr=lr))
    file = write(tmp_path_factory.mktemp("dump") / "settings.yaml", config.dump(before))
    assert config.load(TrainSettings, file) == before


def test_every_setting_is_described_with_kind_default_and_text():
    lines = {line.name: line for line in config.describe(TrainSettings)}
    assert lines["out"].default is None
    assert lines["dtype"].kind == "bf16|fp32"
    assert lines["optimizer.lr"].text == "Peak learning rate."
    assert "optimizer" not in lines


def test_the_schema_carries_the_documentation():
    schema = config.json_schema(TrainSettings)
    assert schema["properties"]["dtype"]["description"] == "Type of the weights."
    assert schema["additionalProperties"] is False


def test_a_list_may_stand_as_a_default_and_is_never_shared():
    @settings
    class Listed:
        """Lists."""

        names: list[str] = ["a"]  # noqa: RUF012
        """Names."""

    assert Listed().names == ["a"] and Listed().names is not Listed().names


def test_one_word_fills_a_list_even_an_optional_one():
    @settings
    class Listed:
        """Lists."""

        names: list[str] | None = None
        """Names."""

    assert config.load(Listed, None, ["names=a"]).names == ["a"]


# ---- a stage's own defaults ------------------------------------------------------------------------------------------


ONE_OF = {
    "CheckSettings": ["text=x"],
    "StorySettings": ["steps=[{name: x, run: average}]"],
    "QualitySettings": ["labelled=x"],
    "DistillSettings": ["shards=x"],
    "PlanSettings": ["path=8B"],
    "MixSettings": ["weights={x: 1}"],
    "TraceSettings": ["token=0"],
    "EvaluateSettings": ["suite=base"],
    "JudgeSettings": ["judge.checkpoint=x"],
    "RlSettings": ["prompts=x"],
}  # settings of which a stage wants one


def needed(cls: type) -> list[str]:
    """Words for the settings that have no default."""
    kinds = typing.get_type_hints(cls)
    kind = {list: "[x]", dict: "{x: x}"}
    fields = [one for one in config.describe(cls) if one.default is None and "." not in one.name]
    words = [f"{one.name}={kind.get(typing.get_origin(kinds[one.name]), 'x')}" for one in fields]
    return words + ONE_OF.get(cls.__name__, [])


def leaves(values: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, value in values.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found


@pytest.mark.parametrize("verb", commands())
def test_naming_one_field_of_a_group_leaves_every_other_at_the_stages_own_default(verb):
    cls = settings_of(verb)
    whole = config.load(cls, None, needed(cls))
    groups = {one.name for one in config.describe(cls) if "." in one.name}
    for name, value in leaves(config.to_dict(whole)).items():
        if name in groups:
            assert config.load(cls, None, [*needed(cls), f"{name}={json.dumps(value)}"]) == whole, name


@pytest.mark.parametrize("verb", commands())
def test_help_and_schema_tell_the_defaults_that_a_run_gets(verb):
    cls = settings_of(verb)
    words = needed(cls)
    given = leaves(config.to_dict(config.load(cls, None, words)))
    named = {word.partition("=")[0] for word in words}
    shown = {one.name: one.default for one in config.describe(cls) if "." in one.name and one.name not in named}
    schema = config.json_schema(cls)
    for name, text in shown.items():
        node = schema
        for part in name.split("."):
            node = node["properties"][part]
        if not hasattr(cls, "derived"):  # what follows from other settings is not known before they are
            assert text == ("none" if given[name] is None else str(given[name])), name
            assert node["default"] == given[name], name


def test_a_group_in_a_recipe_keeps_the_stages_defaults_too(tmp_path):
    file = write(tmp_path / "sft.yaml", "optimizer: {weight_decay: 0}\nbatch: {tokens: 65536}\n")
    found = config.load(
        settings_of("sft"), file, ["optimizer.lora.rank=16", "conversations=[a]", "checkpoint=b", "out=c"]
    )
    assert (found.optimizer.learning_rate, found.batch.row_tokens, found.optimizer.lora.rank) == (1e-5, 512, 16)


@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "dpo"])
def test_whatever_trains_has_the_same_names_for_how(command):
    names = {one.name for one in config.describe(settings_of(command))}
    shared = "batch.tokens optimizer.lora.rank schedule.shape saving.snapshots stability.action parallel.shard"
    assert {*shared.split(), "skip_steps", "dtype", "compile", "recompute", "seed", "out"} <= names


def test_settings_that_are_inherited_are_documented_and_those_without_a_default_come_first():
    cls = settings_of("sft")
    lines = config.describe(cls)
    assert all(one.text for one in lines)
    assert {one.name for one in lines[:3]} == {one.name for one in lines if one.default is None}
    assert config.json_schema(cls)["properties"]["seed"]["description"]


def test_old_names_in_a_group_that_is_no_more_are_refused_with_the_new_ones(tmp_path):
    file = write(tmp_path / "old.yaml", "run: {dtype: bf16, save_seconds: 60, stability: {action: skip}}\n")
    with pytest.raises(ConfigError, match=r"`run.dtype` is now `dtype`") as caught:
        config.load(settings_of("pretrain"), file, ["shards=a", "tokenizer=b", "out=c", "run.seed=3"])
    told = str(caught.value)
    assert "`run.save_seconds` is now `saving.save_seconds`" in told and "`run.seed` is now `seed`" in told
    assert "`run.stability` is now `stability`" in told


def chained(form: str) -> str:
    """Nine values, each of ten times the one before."""
    return "".join(form.format(c, ",".join([f"*{b}"] * 10)) for b, c in zip("abcdefgh", "bcdefghi", strict=True))


BOMBS = {
    "aliases": ("a: &a [1]\n" + chained("{0}: &{0} [{1}]\n"), "stand for more than 10,000 values"),
    "merges": ("a: &a {x: 1}\n" + chained("{0}: &{0}\n  <<: [{1}]\n"), "stand for more than 10,000 values"),
    "an alias of itself": ("a: &a [*a]", "leads back to itself"),
    "brackets": ("a: " + "[" * 20_000, "nested deeper than 50"),
    "braces": ("a: " + "{x: " * 20_000, "nested deeper than 50"),
    "digits": ("steps: " + "9" * 5_000, "a whole number of 5000 digits"),
    "a number past 64 bits": ("steps: 9223372036854775808", "beyond 2\\^63"),
    "a date past the calendar": ("a: !!timestamp 2001-99-99", "not valid YAML"),
    "a large file": ("# " + "x" * 1_100_000, "more than 300,000 bytes"),
    "many keys": ("".join(f"key_{n}: 1\n" for n in range(16_000)), "more than 10,000 values"),
    "unknown keys": ("".join(f"key_{n}: 1\n" for n in range(1_000)), "and 950 more"),
    "a list that does not end": ("pages: [" + "1," * 100_000, "more than 10,000 values"),
    "a base that is a list": ("base: [a, b]", "by its path"),
    "a device": ("base: /dev/zero", "not a regular file"),
    "a name with a zero byte": ('base: "a\\0b"', "cannot be read as a recipe"),
    "a name of a book": ("base: " + "x" * 5000, "cannot be read as a recipe"),
    "no time": ("out: !!timestamp soon", "not what its tag says"),
    "no answer": ("out: !!bool maybe", "not what its tag says"),
    "no digits": ('steps: !!int "_"', "not what its tag says"),
    "no digits either": ('steps: !!float ""', "not what its tag says"),
    "a tag of a book": ("!<" + "a" * 200_000 + "> 1", "not valid YAML: .{,400}$"),
    "a handle of a book": ("out: !" + "%41" * 80_000 + " 1", "not valid YAML: .{,400}$"),
    "marks": ("!" * 200_000, "not valid YAML: .{,400}$"),
    "empty lines": ("\n" * 990_000, "more than 300,000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_a_recipe_is_one_fault_in_little_memory(tmp_path, name):
    text, what = BOMBS[name]
    recipe = write(tmp_path / "r.yaml", text)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=what):
            config.load(TrainSettings, recipe, ["out=x"])
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_a_pipe_as_a_recipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        config.load(TrainSettings, tmp_path / "r.yaml")


def test_a_chain_of_bases_has_an_end(tmp_path):
    for number in range(2000):
        write(tmp_path / f"{number}.yaml", f"base: {number + 1}.yaml")
    with pytest.raises(ConfigError, match="more than 20 recipes"):
        config.load(TrainSettings, tmp_path / "0.yaml")


def test_recipes_on_top_of_one_another_hold_no_more_than_one_may(tmp_path):
    for number in range(19):
        keys = "".join(f"  key_{number}_{n}: 1\n" for n in range(1_000))
        write(tmp_path / f"{number}.yaml", f"base: {number + 1}.yaml\nmixture:\n{keys}")
    with pytest.raises(ConfigError, match=r"4.yaml: not valid YAML: more than 1,9\d\d values"):
        config.load(TrainSettings, tmp_path / "0.yaml")


def test_links_in_a_circle_are_no_recipe(tmp_path):
    (tmp_path / "a.yaml").symlink_to("b.yaml")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    with pytest.raises(ConfigError, match="cannot be read as a recipe"):
        config.load(TrainSettings, tmp_path / "a.yaml")


def test_anchors_within_reason_stay_useful(tmp_path):
    recipe = write(tmp_path / "r.yaml", "out: x\npages: &p [a, b]\noptimizer: {betas: &b [0.9, 0.99]}\n")
    assert config.load(TrainSettings, recipe).optimizer.betas == [0.9, 0.99]
