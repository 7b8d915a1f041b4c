import pytest
import torch

from herd.errors import ConfigError
from herd.parallel.settings import ParallelSettings
from herd.run import read_metrics
from herd.train.hooks import Hook
from herd.train.objectives import next_token
from herd.train.optimizer import FlatAdamW, OptimizerSettings, mesh_faults, stochastically_rounded
from herd.train.trainer import Trainer
from tests.train.tiny import run_folder, tiny_loader, tiny_model

OPTIONS = OptimizerSettings(learning_rate=1e-2, weight_decay=0.1, clip_norm=0.0)


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_updates_are_those_of_torch_adamw_with_norms_not_decayed():
    ours, theirs = tiny_model(), tiny_model()
    flat = FlatAdamW(ours, OPTIONS)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        flat.collect()
        flat.step(1e-2, count=1.0, norm=1.0)
        adamw.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, msg=name, atol=1e-6, rtol=1e-5)


def test_gradients_are_divided_by_the_count_once_and_clipped_by_their_global_norm():
    model = tiny_model()
    flat = FlatAdamW(model, OptimizerSettings(clip_norm=0.5))
    set_gradients(model, 0)
    set_gradients_again = [parameter.grad.clone() for parameter in model.parameters()]
    flat.collect()
    for parameter, gradient in zip(model.parameters(), set_gradients_again):
        parameter.grad = gradient.clone()
    flat.collect()
    whole = torch.cat([gradient.flatten() for gradient in set_gradients_again]).norm().item() * 2 / 8
    assert flat.norm(8) == pytest.approx(whole, rel=1e-5)


def test_gradients_are_collected_as_they_are_made_and_none_stays():
    model, again = tiny_model(dtype=torch.bfloat16), tiny_model(dtype=torch.bfloat16)
    early, late = FlatAdamW(model, OPTIONS), FlatAdamW(again, OPTIONS)
    tokens = torch.arange(3, 35).view(2, 16)
    with early.collecting():
        for _ in range(2):
            model(tokens).float().square().sum().backward()
            assert all(parameter.grad is None for parameter in model.parameters())
    for _ in range(2):
        again(tokens).float().square().sum().backward()
        late.collect()
    assert early.norm(1) == late.norm(1) > 0
    model(tokens).float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_norm_of_millions_of_gradients_is_exact_to_rounding():
    model = torch.nn.Linear(2048, 2048, bias=False)
    flat = FlatAdamW(model, OptimizerSettings())
    set_gradients(model, 0)
    exact = model.weight.grad.double().norm().item()
    flat.collect()
    assert flat.norm(1) == pytest.approx(exact, rel=1e-6)


def test_bfloat16_weights_follow_float32_masters_through_tiny_updates():
    model = tiny_model(dtype=torch.bfloat16)
    before = model.model.layers[0].mlp.up_proj.weight.detach().float().clone()
    flat = FlatAdamW(model, OptimizerSettings(weight_decay=0.0))
    for _ in range(100):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        flat.collect()
        flat.step(1e-5, count=1.0, norm=0.1)  # each alone is far below what bfloat16 can add to 0.02
    moved = before - model.model.layers[0].mlp.up_proj.weight.float()
    assert moved.mean().item() == pytest.approx(1e-3, rel=0.1)


def test_the_embedding_has_its_own_learning_rate():
    model = tiny_model()
    flat = FlatAdamW(model, OptimizerSettings(embedding_multiplier=3.0, weight_decay=0.0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    flat.collect()
    flat.step(1e-3, count=1.0, norm=0.1)
    moved = {name: (before[name] - parameter).mean().item() for name, parameter in model.named_parameters()}
    assert moved["model.embed_tokens.weight"] == pytest.approx(3e-3, rel=1e-3)
    assert moved["model.layers.0.mlp.up_proj.weight"] == pytest.approx(1e-3, rel=1e-3)


def test_state_by_name_continues_another_optimizer_exactly():
    first, second = tiny_model(dtype=torch.bfloat16), tiny_model(seed=9, dtype=torch.bfloat16)
    a, b = FlatAdamW(first, OPTIONS), FlatAdamW(second, OPTIONS)
    for step in range(3):
        set_gradients(first, step)
        a.collect()
        a.step(1e-2, count=1.0, norm=1.0)
    state = b.state()
    for name, tensor in a.state().items():
        state[name].copy_(tensor)
    b.restored(state)
    for model, optimizer in ((first, a), (second, b)):
        set_gradients(model, 7)
        optimizer.collect()
        optimizer.step(1e-2, count=1.0, norm=1.0)
    assert b.num_steps == 4
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters()))


def test_stochastic_rounding_is_right_on_average_and_exact_where_it_can_be():
    generator = torch.Generator().manual_seed(0)
    value = 1.0 + 2**-8 / 4  # an eighth of the way to the next bfloat16
    rounded = stochastically_rounded(torch.full((40_000,), value), generator)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert rounded.float().mean().item() == pytest.approx(value, abs=1e-4)
    exact = torch.tensor([0.5, -2.0, 0.0])
    assert torch.equal(stochastically_rounded(exact.clone(), generator).float(), exact)


def test_bfloat16_state_takes_six_bytes_a_parameter_beside_the_weights_and_learns_as_well(tmp_path):
    last = {}
    for state in ("fp32", "bf16"):
        model, options = tiny_model(dtype=torch.bfloat16), OptimizerSettings(learning_rate=1e-2, state=state)
        with run_folder(tmp_path / state) as run:
            Trainer(model, next_token, run, optimizer=options).fit(tiny_loader(micro_tokens=64), 60)
        last[state] = read_metrics(tmp_path / state)[-1]["loss"]
    assert last["bf16"] == pytest.approx(last["fp32"], rel=0.05)
    adamw = FlatAdamW(tiny_model(dtype=torch.bfloat16), OptimizerSettings(state="bf16"))
    kept = [tensor for group in adamw.groups for tensor in (group._sums, *adamw._adamw.state[group.master].values())]
    size = sum(group.master.numel() for group in adamw.groups)
    assert sum(tensor.nbytes for tensor in kept if tensor.ndim) == 6 * size
    assert all(group.master.data_ptr() == group.values.data_ptr() for group in adamw.groups)


@pytest.mark.parametrize("own", [{"state": "bf16"}, {"kind": "muon"}], ids=["bfloat16 state", "muon"])
def test_a_resumed_run_is_the_one_that_never_stopped_and_it_learns(own, tmp_path):
    def go(name, hooks=()):
        options = OptimizerSettings(learning_rate=1e-2, **own)
        with run_folder(tmp_path / name) as run:
            model = tiny_model(dtype=torch.bfloat16)
            Trainer(model, next_token, run, optimizer=options, hooks=hooks).fit(tiny_loader(), 30)

    def interrupt(step):
        raise KeyboardInterrupt

    go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("torn", [Hook(interrupt, lambda step, num_steps: step == 7)])
    go("torn")
    found = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("whole", "torn")]
    assert found[0] == found[1] and found[0][-1] < 0.5 * found[0][0]


def test_bfloat16_state_needs_a_model_in_bfloat16():
    with pytest.raises(ConfigError, match="needs the model in bf16"):
        FlatAdamW(tiny_model(), OptimizerSettings(state="bf16"))


def test_muon_steps_the_blocks_matrices_as_torchs_own_and_adamw_the_rest():
    ours, theirs = tiny_model(), tiny_model()
    flat = FlatAdamW(ours, OptimizerSettings(kind="muon", learning_rate=1e-2, weight_decay=0.1, clip_norm=0.0))
    inner = [p for name, p in theirs.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2 and not any(p is one for one in inner)]},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    steps = [
        torch.optim.Muon(inner, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    ]
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        flat.collect()
        flat.step(1e-2, count=1.0, norm=1.0)
        for one in steps:
            one.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, msg=name, atol=1e-6, rtol=1e-5)


def test_muon_is_refused_on_shards_and_with_what_it_does_not_learn():
    faults = mesh_faults(OptimizerSettings(kind="muon"), ParallelSettings(shard=2))
    assert len(faults) == 1 and "whole matrices" in faults[0]
    assert mesh_faults(OptimizerSettings(kind="muon"), ParallelSettings(replicas=2)) == []
    with pytest.raises(ValueError, match="kind=muon"):
        OptimizerSettings(kind="muon", state="bf16")
