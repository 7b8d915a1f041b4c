"""Which rank does what, and which settings are refused."""

from dataclasses import replace

import pytest

from herd import config
from herd.errors import ConfigError
from herd.model.config import ModelConfig
from herd.model.scaling import DynamicScaling
from herd.parallel.layout import RankLayout, check, layers_of_stages
from herd.parallel.settings import ParallelSettings

BIG = ModelConfig(
    vocab_size=128_256,
    hidden_size=16_384,
    intermediate_size=53_248,
    num_hidden_layers=126,
    num_attention_heads=128,
    num_key_value_heads=8,
)


def test_neighbours_are_as_in_the_papers_example_of_sixteen_processes():
    layout = RankLayout.of(ParallelSettings(tensor=2, context=2, pipeline=2, shard=2), 16)
    assert [layout.group(0, name) for name in ("tensor", "context", "pipeline", "shard")] == [
        [0, 1],
        [0, 2],
        [0, 4],
        [0, 8],
    ]
    assert all(layout.rank(layout.place(rank)) == rank for rank in range(16))


def test_every_rank_is_in_one_group_of_each_kind():
    layout = RankLayout.of(ParallelSettings(tensor=2, context=3, shard=2, replicas=2), 24)
    for names in (("tensor",), ("shard", "context"), ("replicas", "shard", "context", "pipeline")):
        assert sorted(rank for group in layout.groups(*names) for rank in group) == list(range(24))


def test_the_first_of_128_stages_holds_the_embedding_alone_and_the_last_the_head():
    stages = layers_of_stages(BIG, ParallelSettings(pipeline=16, interleave=8))
    assert [len(stage) for stage in stages] == [0] + [1] * 126 + [0]
    assert [index for stage in stages for index in stage] == list(range(126))
    fewer = layers_of_stages(BIG, ParallelSettings(pipeline=16))
    assert [len(stage) for stage in fewer] == [7] + [8] * 14 + [7]
    odd = layers_of_stages(BIG, ParallelSettings(pipeline=5))
    assert [len(stage) for stage in odd] == [24, 26, 26, 26, 24]


def test_what_is_left_of_the_processes_are_replicas():
    assert check(BIG, ParallelSettings(tensor=8, pipeline=16, shard=64), 16_384).sizes["replicas"] == 2


def test_all_faults_of_a_layout_are_told_at_once():
    tied = ModelConfig(
        vocab_size=97, hidden_size=24, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
        tie_word_embeddings=True,
    )  # fmt: skip
    with pytest.raises(ConfigError) as fault:
        check(tied, ParallelSettings(tensor=2, context=2, pipeline=6), 7, row_tokens=100)
    for words in ("needs 24 processes, but there are 7", "num_key_value_heads (3)", "vocab_size (97)",
                  "rows of 100 tokens", "tie_word_embeddings", "6 stages"):  # fmt: skip
        assert words in str(fault.value)


@pytest.mark.parametrize("name", ["attention_bias", "mlp_bias"])
def test_a_model_whose_matrices_add_biases_is_not_split_by_tensor(name):
    model = replace(BIG, **{name: True})
    with pytest.raises(ConfigError, match="biases"):
        check(model, ParallelSettings(tensor=2), 2)
    check(model, ParallelSettings(shard=2), 2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tensor=0", "tensor must be at least 1"),
        ("interleave=2", "interleave needs a pipeline"),
        ("order=[tensor,context]", "order must name each of"),
        ("layers=[1,2]", "layers must give 1 numbers"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        config.load(ParallelSettings, None, [word])


def test_a_scaling_that_goes_by_a_texts_length_is_not_split_by_context():
    dynamic = replace(BIG, rope_scaling=DynamicScaling(factor=2.0))
    with pytest.raises(ConfigError, match="context=2: dynamic RoPE scaling depends on a text's length"):
        check(dynamic, ParallelSettings(context=2), 2, row_tokens=64)
    assert check(dynamic, ParallelSettings(shard=2), 2, row_tokens=64)
