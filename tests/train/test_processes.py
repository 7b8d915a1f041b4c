"""Several processes: the losses and gradients of one, whatever share of the tokens each of them has."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from herd.parallel.launch import open_run_together
from herd.run import read_metrics
from herd.train.objectives import next_token
from herd.train.optimizer import OptimizerSettings
from herd.train.trainer import Trainer
from tests.train.tiny import TinySettings, tiny_loader, tiny_model

STEPS = 4


def train_share(rank, world, folder):
    torch.set_num_threads(1)
    if world > 1:
        store = dist.FileStore(str(folder / "store"), world)
        dist.init_process_group("gloo", rank=rank, world_size=world, store=store)
    loader = tiny_loader(batch_tokens=32 * 5, micro_tokens=64, rank=rank, world=world)  # 5 rows: 3 here, 2 there
    labels = [sum((batch.labels >= 0).sum().item() for batch in loader.batches(step)) for step in range(STEPS)]
    (folder / f"labels-{rank}.json").write_text(json.dumps(labels))
    model = tiny_model()
    with open_run_together(folder / "run", stage="tiny", settings=TinySettings(), inputs={}) as run:
        trainer = Trainer(model, next_token, run, optimizer=OptimizerSettings(learning_rate=1e-2))
        totals, groups = trainer.gradients(loader.batches(0)), trainer.adamw.groups
        gradients = {name: view / totals.count for group in groups for name, view in group.views(group.sums())}
        torch.save(gradients, folder / f"gradients-{rank}.pt")
        trainer.fit(loader, STEPS)
    torch.save(model.state_dict(), folder / f"weights-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_with_unequal_token_counts_train_as_one(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    train_share(0, 1, tmp_path / "one")
    mp.start_processes(train_share, args=(2, tmp_path / "two"), nprocs=2, start_method="spawn")
    counts = [json.loads((tmp_path / f"two/labels-{rank}.json").read_text()) for rank in range(2)]
    assert all(first != second for first, second in zip(*counts))
    alone, together = (read_metrics(tmp_path / name / "run") for name in ("one", "two"))
    for a, b in zip(alone, together):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-5)
    gradients = [torch.load(tmp_path / name) for name in ("one/gradients-0.pt", "two/gradients-1.pt")]
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], atol=1e-6, rtol=0, msg=name)
    weights = [torch.load(tmp_path / f"two/weights-{rank}.pt") for rank in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
