"""Every setting of an optimizer reaches its parameter groups, and the schedule is right at its ends."""

import copy

import pytest
import torch

from dit.training.optimizer import adamw, check_rate, is_matrix, muon, warmup_and_decay

NAMES = {
    "blocks.0.mlp.up.weight": (6, 6), "blocks.0.mlp.up.bias": (6,), "blocks.0.norm.weight": (6,), "head.weight": (2, 6),
    "label.table.weight": (5, 6), "registers": (3, 6),
}  # fmt: skip


def named():
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in NAMES.items()}


def settings(optimizer, parameters, *keys):
    """Returns these settings of the group of each parameter, by name."""
    names = {id(p): name for name, p in parameters.items()}
    return {names[id(p)]: tuple(g[key] for key in keys) for g in optimizer.param_groups for p in g["params"]}


def test_adamw_gets_its_rate_and_betas_and_decays_only_matrices():
    p = named()
    found = settings(adamw(p.items(), 0.03, (0.8, 0.97), 0.2), p, "lr", "betas", "weight_decay")
    decay = dict.fromkeys(NAMES, 0.0) | {"blocks.0.mlp.up.weight": 0.2, "head.weight": 0.2}
    assert found == {name: (0.03, (0.8, 0.97), decay[name]) for name in NAMES}


def test_muon_has_the_matrices_of_blocks_at_its_own_rate_and_adamw_the_rest():
    p = named()
    optimizer = muon(p.items(), 0.03, (0.8, 0.97), 0.2, 0.005)
    inner, *rest = ({"blocks.0.mlp.up.weight"}, set(NAMES) - {"blocks.0.mlp.up.weight"})
    found = settings(optimizer, p, "lr", "weight_decay")
    assert found == {
        name: (0.005 if name in inner else 0.03, 0.2 if is_matrix(name, v) else 0.0) for name, v in p.items()
    }
    fast, slow = optimizer.parts
    assert {id(v) for g in fast.param_groups for v in g["params"]} == {id(p[name]) for name in inner}
    assert all(g["betas"] == (0.8, 0.97) for g in slow.param_groups)
    assert [set(names) for names in rest] == [set(settings(slow, p, "lr"))]


def test_muon_s_step_is_as_long_as_adam_s():
    """Liu et al. 2025, arXiv:2502.16982: 0.2 sqrt(max(rows, columns)) times an orthogonal matrix, so that entries move
    by about 0.2 of the rate, whatever the shape; in the first step of Adam they move by the rate."""
    for shape in ((8, 8), (8, 32), (32, 8)):
        p = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        bias = torch.nn.Parameter(torch.zeros(4))
        optimizer = muon([("blocks.0.mlp.up.weight", p), ("head.bias", bias)], 0.01, (0.9, 0.95), 0.0, 0.01)
        before = p.detach().clone()
        p.grad, bias.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)), torch.ones(4)
        optimizer.step()
        assert float((p.detach() - before).square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.25), shape
        assert bias.tolist() == pytest.approx([-0.01] * 4, rel=1e-3)


def test_a_closure_is_run_with_gradients_and_its_loss_comes_back():
    p = named()
    optimizer = muon(p.items(), 0.1, (0.9, 0.95), 0.0, 0.1)
    before = copy.deepcopy(p)

    def closure():
        loss = sum(v.square().sum() for v in p.values())
        loss.backward()
        return loss.detach()

    assert optimizer.step(closure) == sum(v.square().sum() for v in before.values())
    assert all((p[name] != before[name]).any() for name in NAMES)


def test_a_schedule_continues_with_the_groups_of_a_state_that_was_loaded():
    p = named()
    optimizer = muon(p.items(), 0.03, (0.8, 0.97), 0.2, 0.005)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert all(group["lr"] == 0 for part in optimizer.parts for group in part.param_groups)


@pytest.mark.parametrize(("make", "fault"), [
    (lambda p: muon(p.items(), 0.1, (0.9, 0.95), 0.0, 0.0), "learning rate 0.0 must be positive"),
    (lambda p: muon(p.items(), -1.0, (0.9, 0.95), 0.0, 0.1), "learning rate -1.0 must be positive"),
    (lambda p: muon([("head.weight", p["head.weight"])], 0.1, (0.9, 0.95), 0.0, 0.1), "no matrix in a numbered block"),
    (lambda p: check_rate(float("nan")), "learning rate nan must be positive"),
    (lambda p: warmup_and_decay(torch.optim.SGD(p.values(), lr=1.0), 10, 1, 1.5), r"lr_schedule.decay=1.5 .*\[0, 1\]"),
    (lambda p: warmup_and_decay(torch.optim.SGD(p.values(), lr=1.0), 10, 1, -0.5), "lr_schedule.decay=-0.5"),
])  # fmt: skip
def test_a_setting_without_a_meaning_is_refused(make, fault):
    with pytest.raises(ValueError, match=fault):
        make(named())


@pytest.mark.parametrize(("steps", "warmup", "decay", "rates"), [
    (10, 0, 0.0, [1] * 12), (10, 4, 0.0, [0.25, 0.5, 0.75] + [1] * 9), (10, 0, 0.5, [1] * 6 + [0.8, 0.6, 0.4, 0.2, 0, 0]),
    (4, 4, 1.0, [0.25, 0.5, 0.5, 0.25, 0, 0]), (0, 0, 0.5, [1] * 3),
])  # fmt: skip
def test_the_rate_rises_holds_and_falls_to_nothing_and_stays_there(steps, warmup, decay, rates):
    optimizer = torch.optim.SGD(named().values(), lr=2.0)
    schedule, found = warmup_and_decay(optimizer, steps, warmup, decay), []
    for _ in rates:
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(rates)
