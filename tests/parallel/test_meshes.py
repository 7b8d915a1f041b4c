"""On every mesh the losses and every parameter's gradient are those of one process, to float32's rounding.

What makes it hard is in each case: rows of several documents of unequal length, processes with unequal numbers of rows
(and so of tokens and of micro-batches), accumulation over micro-batches, two steps with one set of schedules.
"""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp

from herd.parallel.settings import ParallelSettings
from tests.parallel.processes import LORA, NUM_STEPS, alone, run_on_meshes, shape, together

TWO = [
    ParallelSettings(shard=2),
    ParallelSettings(replicas=2),
    ParallelSettings(tensor=2),
    ParallelSettings(context=2),
    ParallelSettings(pipeline=2, interleave=2, contiguous=3),
]
"""Each dimension alone, in the default tests."""

MANY = [
    ParallelSettings(shard=8, reshard_after_forward=False),
    ParallelSettings(tensor=4),
    ParallelSettings(context=4),
    ParallelSettings(pipeline=7),  # embedding alone, five layers, head alone
    ParallelSettings(pipeline=2, interleave=3, contiguous=2, layers=[0, 2, 0, 1, 2, 0]),
    ParallelSettings(replicas=2, shard=2, context=2),
    ParallelSettings(replicas=2, shard=2, tensor=2),
    ParallelSettings(shard=2, pipeline=2, interleave=2),
    ParallelSettings(tensor=2, context=2, pipeline=2),
    ParallelSettings(shard=2, tensor=2, pipeline=2, interleave=2, contiguous=1),
    ParallelSettings(shard=2, tensor=2, context=2, reshard_after_forward=False),
    ParallelSettings(replicas=2, pipeline=2, context=2, order=["context", "pipeline", "tensor", "replicas", "shard"]),
]
"""Larger and mixed, up to eight processes: `docs/parallel.md` shows this table."""


ADAPTERS = [
    ParallelSettings(shard=4),
    ParallelSettings(shard=4, reshard_after_forward=False),
    ParallelSettings(replicas=2, shard=2),
    ParallelSettings(context=2),
    ParallelSettings(shard=2, context=2),
]
"""Adapters beside a frozen base in shards."""


def world(settings: ParallelSettings) -> int:
    return max(settings.replicas, 1) * settings.of_one_copy


def compare(cases, folder, config, dtype=torch.float32, lora=None):
    """Of each case and step: the worst difference of a mean, and of a gradient as a share of its largest entry."""
    expected = alone(config, lora)
    folders = run_on_meshes([(world(case), together, (config, case, dtype, lora)) for case in cases], folder)
    return [[_worst(config, here, step, *expected[step]) for step in range(NUM_STEPS)] for here in folders]


def _worst(config, here, step, means, gradients):
    found = json.loads((here / f"means-{step}.json").read_text())
    assert found.keys() == means.keys()
    assert found["count"] == means["count"]
    read = {name: torch.full_like(gradient, torch.nan) for name, gradient in gradients.items()}
    dcp.load(read, checkpoint_id=here / f"gradients-{step}", no_dist=True)
    worst = max((read[name] / means["count"] - g).abs().max() / g.abs().max() for name, g in gradients.items())
    return max(abs(found[name] / means[name] - 1) for name in means), worst.item()


def check_all(cases, differences):
    for case, steps in zip(cases, differences, strict=True):
        for means, gradients in steps:
            assert means < 1e-6, case
            assert gradients < 1e-5, case


def test_each_dimension_alone_gives_the_losses_and_gradients_of_one_process(tmp_path):
    check_all(TWO, compare(TWO, tmp_path, shape()))


def test_adapters_beside_a_base_in_shards_have_the_gradients_of_one_process(tmp_path):
    cases = [ParallelSettings(shard=2)]
    check_all(cases, compare(cases, tmp_path, shape(), lora=LORA))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_adapters_on_larger_meshes_have_the_gradients_of_one_process(tied, tmp_path):
    check_all(ADAPTERS, compare(ADAPTERS, tmp_path, shape(tie_word_embeddings=tied, num_hidden_layers=2), lora=LORA))


@pytest.mark.slow
def test_mixed_meshes_of_up_to_eight_processes_give_the_losses_and_gradients_of_one(tmp_path):
    check_all(MANY, compare(MANY, tmp_path, shape()))


@pytest.mark.slow
def test_an_output_projection_tied_to_the_embedding_is_split_and_sharded_with_it(tmp_path):
    cases = [ParallelSettings(shard=2), ParallelSettings(tensor=2), ParallelSettings(context=2, tensor=2)]
    check_all(cases, compare(cases, tmp_path, shape(tie_word_embeddings=True, num_hidden_layers=2)))


@pytest.mark.slow
def test_what_is_computed_in_bfloat16_is_summed_in_float32(tmp_path):
    config, adapters = shape(initializer_range=0.05), [ParallelSettings(shard=2)]
    cases = [ParallelSettings(shard=2, tensor=2), ParallelSettings(context=2, pipeline=2)]
    found = compare(cases, tmp_path / "all", config, torch.bfloat16)
    found += compare(adapters, tmp_path / "adapters", config, torch.bfloat16, LORA)
    for steps in found:
        for means, gradients in steps:
            assert means < 5e-3
            assert gradients < 0.1
