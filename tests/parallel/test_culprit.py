"""A loss that is no number is put down to the layer and the processes in which it came up, whatever the mesh."""

import pytest
import torch.distributed as dist

from herd.errors import ConfigError
from herd.parallel.launch import open_run_together
from herd.parallel.layout import check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.train.objectives import next_token
from herd.train.trainer import train
from tests.parallel.processes import loader, run_on_meshes, shape, whole_model
from tests.train.tiny import TinySettings, tiny_model


def told(model, folder, rank, world, objective=next_token):
    """What the end of a run on this model says."""
    mine = loader(rank, world)
    with (
        open_run_together(folder / "run", stage="tiny", settings=TinySettings(), inputs={}) as run,
        pytest.raises(ConfigError) as caught,
    ):
        train(model, objective, mine, run, num_steps=2)
    (folder / f"told-{dist.get_rank()}.txt").write_text(str(caught.value))


def on_mesh(sizes, spoiled, only, objective, folder):
    """NaN in one weight, of one rank's part only or of all."""
    config, settings = shape(num_hidden_layers=4), ParallelSettings(**sizes)
    layout = check(config, settings, 2, row_tokens=32)
    model = ParallelModel(config, settings, Mesh(layout)).materialize()
    model.fill(whole_model(config).named_parameters())
    for shard in model.shards():
        if shard.name == spoiled and only in (None, dist.get_rank()):
            shard.chunk().local.fill_(float("nan"))
    told(model, folder, layout.data_index(dist.get_rank()), layout.num_data, objective)


def on_copies(folder):
    rank = dist.get_rank()
    told(tiny_model(), folder, rank, 2, nan_on_the_second)


def nan_on_the_second(hidden, head, batch):
    loss = next_token(hidden, head, batch)
    return loss._replace(sum=loss.sum * float("nan")) if dist.get_rank() == 1 else loss


def gradient_alone(hidden, head, batch):
    loss = next_token(hidden, head, batch)
    return loss._replace(sum=loss.sum + (hidden * 0).sqrt().sum())


DOWN, QUERIES = "model.layers.2.mlp.down_proj", "model.layers.1.self_attn.q_proj"
MESHES = [
    (on_mesh, ({"shard": 2}, f"{DOWN}.weight", None, next_token), f"in the result of {DOWN} on ranks 0, 1"),
    (on_mesh, ({"tensor": 2}, f"{DOWN}.weight", 1, next_token), f"in the result of {DOWN} on rank 1"),
    (on_mesh, ({"tensor": 2}, f"{QUERIES}.weight", 0, next_token), f"in the result of {QUERIES} on rank 0"),
    (on_mesh, ({"tensor": 2}, f"{QUERIES}.weight", 1, next_token), f"in the result of {QUERIES} on rank 1"),
    (
        on_mesh,
        ({"pipeline": 2, "interleave": 2, "contiguous": 2}, f"{QUERIES}.weight", None, next_token),
        f"in the result of {QUERIES} on rank",
    ),
    (on_mesh, ({"shard": 2}, "", None, nan_on_the_second), "in the result of the objective on rank 1"),
    (on_mesh, ({"shard": 2}, "", None, gradient_alone), "in the gradient of model.norm.weight on ranks 0, 1"),
    (on_copies, (), "in the result of the objective on rank 1"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return run_on_meshes([(2, call, arguments) for call, arguments, _ in MESHES], tmp_path_factory.mktemp("meshes"))


@pytest.mark.parametrize("number", range(len(MESHES)))
def test_layer_and_processes_are_named(folders, number):
    for rank in range(2):
        assert f"; it appears first {MESHES[number][2]}" in (folders[number] / f"told-{rank}.txt").read_text()
