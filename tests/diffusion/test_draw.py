"""An objective gets the network and one draw: what later objectives need is in it."""

import torch
from torch import nn

from dit.backbones.dit import DiT
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.layers.features import intermediate_features
from dit.training.diffusion import DiffusionModule
from dit.training.optimizer import adamw, warmup_and_decay
from dit.types import Batch, Condition

PATH, PREDICTION = Linear(), Flow()


def consistency(network, draw):
    """x0 estimated at the later time agrees with what the teacher estimates at the earlier one."""
    late, early = (PATH.point(torch.stack([draw.u, draw.u2]).sort(0).values[place]) for place in (1, 0))
    x0 = [
        Denoiser(net, PATH, PREDICTION)(PATH.corrupt(draw.x0, draw.noise, point), point, draw.condition).x0
        for net, point in ((network, late), (draw.teacher, early))
    ]
    return (x0[0] - x0[1].detach()).square().flatten(1).mean(1)


class Aligned:
    """Flow matching, and features of a block that point where those of the clean picture do (REPA)."""

    def __init__(self, backbone):
        self.backbone = backbone

    def __call__(self, network, draw):
        point = PATH.point(draw.u)
        with intermediate_features(self.backbone, ["blocks.0"]) as features:
            output = PREDICTION.call_network(network, PATH.corrupt(draw.x0, draw.noise, point), point, draw.condition)
        similar = nn.functional.cosine_similarity(features["blocks.0"], draw.features, dim=-1).mean(1)
        return PREDICTION.loss(output, draw.x0, draw.noise, point) - 0.5 * similar


def guided_target(network, draw):
    """The network learns the output that guidance has, from its own conditional and unconditional ones."""
    point = PATH.point(draw.u)
    x = PATH.corrupt(draw.x0, draw.noise, point)
    null = draw.condition.drop(torch.ones(len(x), dtype=torch.bool), draw.null)
    with torch.no_grad():
        cond, plain = (PREDICTION.call_network(network, x, point, c) for c in (draw.condition, null))
    target = PREDICTION.target(draw.x0, draw.noise, point) + 0.5 * (cond - plain)
    return (PREDICTION.call_network(network, x, point, draw.condition) - target).square().flatten(1).mean(1)


class Parts:
    """What DiffusionModule needs of a pipeline."""

    path, prediction = PATH, PREDICTION

    def __init__(self):
        torch.manual_seed(0)
        self.backbone = DiT(channels=2, classes=3, width=16, depth=2, heads=2)
        for p in self.backbone.parameters():
            if p.abs().max() == 0:
                nn.init.normal_(p, std=0.1)

    def null_condition(self):
        return Condition(label=torch.tensor([3]))


def losses(objective, teacher=None, features=None):
    parts = Parts()
    module = DiffusionModule(parts, objective(parts.backbone), adamw, warmup_and_decay, 0, 0.0, teacher=teacher)
    x0 = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(6)
    batch = Batch(x0, Condition(label=rows % 3), index=rows, epoch=torch.zeros(6, dtype=torch.int64), features=features)
    optimizer, found = torch.optim.Adam(module.parameters(), lr=3e-3), []
    for _ in range(30):
        draw = module.draw(module.draws(batch))
        loss = module.objective(module.backbone, draw).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return module, draw, found


def test_consistency_with_a_teacher_and_a_second_time():
    teacher = Parts().backbone
    module, draw, found = losses(lambda _: consistency, teacher=teacher)
    assert found[-1] < 0.7 * found[0]
    assert draw.teacher is teacher
    assert not any(name.startswith("teacher") for name in module.state_dict())  # it is not saved
    assert not torch.equal(draw.u, draw.u2)


def test_alignment_with_features_of_the_clean_picture():
    features = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(2))
    _, _, found = losses(Aligned, features=features)
    assert found[-1] < found[0] - 0.3


def test_guidance_as_a_target():
    _, _, found = losses(lambda _: guided_target)
    assert found[-1] < found[0]


def test_a_draw_is_a_function_of_seed_epoch_and_sample():
    _, draw, _ = losses(lambda _: guided_target)
    module, again, _ = losses(lambda _: guided_target)
    for name in ("noise", "u", "u2"):
        assert torch.equal(getattr(draw, name), getattr(again, name))
    rows = torch.tensor([2])
    batch = Batch(torch.zeros(1, 2, 4, 4), Condition(label=rows), index=rows, epoch=torch.zeros_like(rows))
    alone = module.draw(module.draws(batch))
    assert torch.equal(alone.noise[0], draw.noise[2])
    assert alone.u[0] == draw.u[2]
    assert alone.u2[0] == draw.u2[2]
