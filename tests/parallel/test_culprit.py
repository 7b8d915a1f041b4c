"""A loss that is no number is put down to the layer and the processes in which it came up, whatever the mesh."""

import pytest
import torch.distributed as dist

from herd.errors import ConfigError, DataError
from herd.parallel.launch import open_run_together
from herd.parallel.layout import check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.train.objectives import next_token
from herd.train.trainer import Trainer
from tests.parallel.processes import loader, run_on_meshes, shape, whole_model
from tests.train.tiny import TinySettings, tiny_model


def told(model, folder, mine, objective=next_token, fault=ConfigError):
    """What the end of a run on this model says."""
    with (
        open_run_together(folder / "run", stage="tiny", settings=TinySettings(), inputs={}) as run,
        pytest.raises(fault) as caught,
    ):
        Trainer(model, objective, run).fit(mine, 2)
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
    told(model, folder, loader(layout.data_index(dist.get_rank()), layout.num_data), objective)


def on_copies(folder):
    told(tiny_model(), folder, loader(dist.get_rank(), 2), nan_on_the_second)


class Damaged:
    """A loader whose rows on the second process hold a token that the model has not."""

    def __init__(self, inner):
        self.inner, self.row_tokens, self.names = inner, inner.row_tokens, inner.names
        self.tokens_before = inner.tokens_before

    def batches(self, step):
        batches = self.inner.batches(step)
        if dist.get_rank() == 1:
            batches[0].tokens[0, 0] = 1000
        return batches


def damaged(folder):
    config, settings = shape(), ParallelSettings(shard=2)
    model = ParallelModel(config, settings, Mesh(check(config, settings, 2, row_tokens=32))).materialize()
    model.fill(whole_model(config).named_parameters())
    told(model, folder, Damaged(loader(dist.get_rank(), 2)), fault=DataError)


def nan_on_the_second(hidden, head, batch):
    loss = next_token(hidden, head, batch)
    return loss._replace(sum=loss.sum * float("nan")) if dist.get_rank() == 1 else loss


def gradient_alone(hidden, head, batch):
    loss = next_token(hidden, head, batch)
    return loss._replace(sum=loss.sum + (hidden * 0).sqrt().sum())


DOWN, QUERIES = "model.layers.2.mlp.down_proj", "model.layers.1.self_attn.q_proj"
MESHES = [
    (
        on_mesh,
        ({"shard": 2}, f"{DOWN}.weight", None, next_token),
        f"it first appears in the output of {DOWN} on ranks 0, 1",
    ),
    (on_mesh, ({"tensor": 2}, f"{DOWN}.weight", 1, next_token), f"it first appears in the output of {DOWN} on rank 1"),
    (
        on_mesh,
        ({"tensor": 2}, f"{QUERIES}.weight", 0, next_token),
        f"it first appears in the output of {QUERIES} on rank 0",
    ),
    (
        on_mesh,
        ({"tensor": 2}, f"{QUERIES}.weight", 1, next_token),
        f"it first appears in the output of {QUERIES} on rank 1",
    ),
    (
        on_mesh,
        ({"pipeline": 2, "interleave": 2, "contiguous": 2}, f"{QUERIES}.weight", None, next_token),
        f"it first appears in the output of {QUERIES} on rank",
    ),
    (on_mesh, ({"shard": 2}, "", None, nan_on_the_second), "it first appears in the objective on rank 1"),
    (
        on_mesh,
        ({"shard": 2}, "", None, gradient_alone),
        "it first appears in the gradient of model.norm.weight on ranks 0, 1",
    ),
    (on_copies, (), "it first appears in the objective on rank 1"),
    (damaged, (), "step 1: source `library` holds the token id 1,000"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return run_on_meshes([(2, call, arguments) for call, arguments, _ in MESHES], tmp_path_factory.mktemp("meshes"))


@pytest.mark.parametrize("number", range(len(MESHES)))
def test_layer_and_processes_are_named(folders, number):
    for rank in range(2):
        assert MESHES[number][2] in (folders[number] / f"told-{rank}.txt").read_text()
