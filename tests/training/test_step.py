"""A training step reads no value back from the device; tested on the meta device, which raises."""

from types import SimpleNamespace
from unittest.mock import Mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dit.data.draws import TrainingDraws
from dit.diffusion.path import Linear
from dit.training.diffusion import DiffusionModule
from dit.training.optimizer import adamw, warmup_and_decay
from dit.types import Batch, Condition


class CopiesFromTheCpu(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and out.device.type == "meta":
            self.shapes.append(tuple(out.shape))
        return out


def test_a_step_copies_to_the_device_only_random_numbers_that_the_batch_lacks():
    tokens = torch.zeros(1, 5, 8)
    null = Condition(tokens=tokens, mask=torch.ones(1, 5, dtype=torch.bool), pooled=tokens[:, 0])
    pipeline = SimpleNamespace(path=Linear(), backbone=torch.nn.Linear(2, 2), null_condition=lambda: null)

    def objective(network, draw):
        assert draw.u.device.type == draw.u2.device.type == draw.stratified.device.type == "cpu"
        pooled, tokens = draw.condition.pooled, draw.condition.tokens
        return (draw.x0 + draw.noise).flatten(1).mean(1) + pooled.mean(1) + tokens.mean((1, 2))

    module = DiffusionModule(pipeline, objective, adamw, warmup_and_decay, seed=0).to("meta")
    module.on_fit_start()
    trainer = Mock(world_size=1, accumulate_grad_batches=1, global_rank=0, global_step=0)
    module.trainer = trainer
    condition = Condition(tokens=tokens, mask=null.mask, pooled=null.pooled)
    rows = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 2, 2), condition.expand(4), index=rows, epoch=rows)
    on_device = batch.to("meta")
    assert on_device.index.device.type == on_device.epoch.device.type == "cpu"  # read at every step
    with CopiesFromTheCpu() as copies:
        assert module.loss(on_device, part=0).losses.device.type == "meta"
    assert copies.shapes == [(4, 3, 2, 2), (4,)]  # the noise, and which captions to drop
    drawn = TrainingDraws(Linear(), 0, null, 0.1)(batch).to("meta")  # as by a loader
    with CopiesFromTheCpu() as copies:
        assert module.loss(drawn, part=0).losses.device.type == "meta"
    assert copies.shapes == []
