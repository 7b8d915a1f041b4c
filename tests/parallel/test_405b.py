"""The layouts of the 405B run, built rank by rank on meta tensors with a fake process group.

Source: The Llama 3 Herd of Models, table 4: 16,384 processes with TP 8, CP 1, PP 16, DP 128 at 8,192 tokens, and TP 8,
CP 16, PP 16, DP 8 at 131,072 tokens.
"""

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest

from herd.config import find_recipe, load
from herd.errors import ConfigError
from herd.model.config import num_parameters
from herd.model.llama import empty_model
from herd.parallel.layout import RankLayout, layers_of_stages
from herd.parallel.rehearsal import as_rank, build_rank
from herd.parallel.settings import ParallelSettings
from herd.stages.pretrain import PretrainSettings
from tests.parallel.test_layout import BIG

WORLD = 16_384
SHORT = ParallelSettings(tensor=8, pipeline=16, interleave=8, shard=128)
LONG = ParallelSettings(tensor=8, context=16, pipeline=16, interleave=8, shard=8)
SIZES = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"]
WHOLE = {name: tuple(p.shape) for name, p in empty_model(BIG).named_parameters()}


def test_the_recipes_are_laid_out_like_that():
    for name, settings in (("405b", SHORT), ("405b-long", LONG)):
        recipe = load(PretrainSettings, find_recipe(Path(f"recipes/llama3/{name}.yaml")))
        assert recipe.parallel == settings
        assert recipe.batch.row_tokens == 8192 * settings.context
        assert {field: getattr(BIG, field) for field in SIZES} == {
            field: getattr(recipe.model, field) for field in SIZES
        }


def share(rows: int, parts: int, index: int) -> int:
    """Rows of a dimension that shard `index` of `parts` keeps."""
    size = -(-rows // parts)
    return max(0, min(size, rows - index * size))


def check_rank(settings: ParallelSettings, layout: RankLayout, rank: int) -> Counter:
    """Build a rank, check all it holds, and count the parameters of its (tensor, pipeline) place over all shards."""
    with as_rank(rank, WORLD):
        model = build_rank(BIG, settings, 8192 * settings.context)
        mesh, shards = model.mesh, list(model.shards())
        place, parts = layout.place(rank), settings.shard * settings.context
        for group, name in ((mesh.tensor, "tensor"), (mesh.context, "context"), (mesh.pipeline, "pipeline")):
            if group is not None:
                assert (group.size(), group.rank()) == (layout.sizes[name], place[name])
        assert (mesh.weights.size(), mesh.weights.get_local_rank()) == (parts, layout.index_in_shards(rank))
        stages = layers_of_stages(BIG, settings)
        expected = {f"model.layers.{layer}." for index in model.indices for layer in stages[index]}
        names = {shard.name for shard in shards}
        assert {name[: name.index(".", 13) + 1] for name in names if ".layers." in name} == expected
        assert ("model.embed_tokens.weight" in names) == (place["pipeline"] == 0)
        assert ("lm_head.weight" in names) == (place["pipeline"] == settings.pipeline - 1)
        counted = Counter()
        for shard in shards:
            assert tuple(shard.whole) == WHOLE[shard.name]
            assert all(b >= 0 and b + size <= n for b, size, n in zip(shard.offset, shard.shape, shard.whole))
            rows = shard.parameter.shape[0]
            assert shard.shape[0] == share(rows, parts, layout.index_in_shards(rank))
            held = sum(share(rows, parts, index) for index in range(parts)) * math.prod(shard.shape[1:])
            counted[shard.name] += held * settings.tensor if shard.split else held  # what is not split is everywhere
        return counted


def data_places(settings: ParallelSettings) -> list[int]:
    return [0, settings.shard // 2, settings.shard - 1]


def ranks(settings: ParallelSettings, layout: RankLayout, tensors, contexts, pipelines) -> list[int]:
    places = itertools.product(tensors, contexts, pipelines, data_places(settings))
    names = ("tensor", "context", "pipeline", "shard")
    return [layout.rank(dict(zip(names, place)) | {"replicas": 0}) for place in places]


def check_ranks(settings: ParallelSettings, tensors, contexts, pipelines) -> dict[tuple[int, int], Counter]:
    """Check all these places; the counts of each (tensor, pipeline) must be the same wherever they are found."""
    layout, found = RankLayout.of(settings, WORLD), {}
    for rank in ranks(settings, layout, tensors, contexts, pipelines):
        place, counted = layout.place(rank), check_rank(settings, layout, rank)
        assert found.setdefault((place["tensor"], place["pipeline"]), counted) == counted
    return found


def check_sum(found: dict[tuple[int, int], Counter], settings: ParallelSettings) -> None:
    """Over all stages each parameter is there once: the bytes of all ranks are those of the model."""
    for tensor in range(settings.tensor):
        whole = sum((found[tensor, pipeline] for pipeline in range(settings.pipeline)), Counter())
        assert whole == {name: math.prod(shape) for name, shape in WHOLE.items()}
        assert sum(whole.values()) == num_parameters(BIG) == 405_853_388_800


def test_ends_and_middle_of_the_405b_layouts_are_built():
    for settings in (SHORT, LONG):
        contexts = sorted({0, settings.context - 1})
        check_ranks(settings, [0, 7], contexts, [0, 9, 15])


def test_a_layout_that_cannot_be_is_refused_before_anything_is_built():
    with as_rank(0, WORLD), pytest.raises(ConfigError, match=r"tensor 16 does not divide .* num_key_value_heads \(8\)"):
        build_rank(BIG, ParallelSettings(tensor=16, pipeline=16, shard=64), 8192)


@pytest.mark.slow
def test_every_place_of_the_405b_layout_is_built_and_the_bytes_sum_to_the_model():
    check_sum(check_ranks(SHORT, range(8), [0], range(16)), SHORT)


@pytest.mark.soak
def test_every_place_of_the_405b_long_context_layout_is_built_and_the_bytes_sum_to_the_model():
    check_sum(check_ranks(LONG, range(8), range(16), range(16)), LONG)
