"""Training by distribution matching: a student and the fake network that learns the score of the student's samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dit.checkpoints.native import check_fit, trained_of
from dit.diffusion.distribution_matching import DistributionMatching
from dit.distributed import rank_and_world_size
from dit.training.diffusion import DiffusionModule, times_of
from dit.training.parallel import change_blocks
from dit.types import Batch, Draw

FAKE = "dit_fake_score"  # in a checkpoint: the fake network and its optimizer


class FakeScore:
    """A network that learns the score of the student's samples, with an optimizer of the student's kind and settings,
    at a constant learning rate. clip: the largest norm of its gradient, or None. adapter: whether only the trained
    weights are stored, because the others are those of the student's base."""

    def __init__(
        self, network: nn.Module, optimizer: Callable[..., Optimizer], clip: float | None = None, adapter: bool = False
    ) -> None:
        self.network, self.clip, self.adapter = network.train(), clip, adapter
        self.optimizer = optimizer(network.named_parameters())
        self.settings = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]

    def to(self, device: torch.device) -> None:
        self.network.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())  # which moves it to the parameters' device

    def step(self, loss: Tensor) -> None:
        """Makes one update, with the gradient averaged over all ranks."""
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        world = rank_and_world_size()[1]
        for gradient in gradients if world > 1 else ():
            torch.distributed.all_reduce(gradient.div_(world))
        if self.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.stored(), "optimizer": self.optimizer.state_dict()}

    def stored(self) -> dict[str, Tensor]:
        """Returns the weights that a checkpoint holds by name."""
        state = self.network.state_dict()
        return {name: state[name] for name in trained_of(self.network)} if self.adapter else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads weights and the optimizer's state; its settings stay those of the config."""
        check_fit(self.stored(), state["network"])
        self.network.load_state_dict(state["network"], strict=not self.adapter)
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            group |= settings


class DistributionMatchingModule(DiffusionModule):
    """Trains a flow map by `DistributionMatching`. A step is `fake_updates` updates of the fake network, each on new
    samples for the captions of the step's batch, and then one update of the student.

    Lightning has one optimizer, the student's, so that steps, learning rates, averages and the stability guard are
    those of the student; the fake network is no submodule, and a checkpoint holds it beside the weights. Its updates
    are made before the step and outside of DDP, which would wait for gradients of all that it wraps.

    fake: the fake network, a copy of the student's that was made before the student is compiled.
    """

    objective: DistributionMatching

    def __init__(self, fake: nn.Module, clip: float | None, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.fake_score = FakeScore(fake, self.optimizer, clip, adapter=self.base is not None)

    def configure_model(self) -> None:
        super().configure_model()
        change_blocks(self.fake_score.network, self.activation_checkpointing, self.compile_parts == "blocks")
        if self.compile_parts is True:
            self.fake_score.network.compile()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.fake_score.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[FAKE] = self.fake_score.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if FAKE not in checkpoint:
            raise ValueError(
                "the checkpoint holds no fake network: its run has another objective; start a new run with init"
            )
        self.fake_score.load_state_dict(checkpoint[FAKE])

    def draw(self, batch: Batch, part: int | None = None) -> Draw:
        """Returns the draw of the student's loss. In validation the samples have one jump."""
        start, _ = self.draws.further(batch, 1, validation=part is None)
        drawn = replace(super().draw(batch, part), start=start, fake=self.fake_score.network)
        return replace(drawn, step=0) if part is None else drawn

    def fake_draw(self, batch: Batch, update: int) -> Draw:
        """Returns the draw of an update of the fake network, 1, 2, ..."""
        (start, _), (noise, uniform) = (self.draws.further(batch, 2 * update + key) for key in (0, 1))
        u, u2, u3 = times_of(uniform)
        return replace(super().draw(batch), start=start, noise=noise, u=u, u2=u2, u3=u3, fake=self.fake_score.network)

    def on_train_batch_start(self, batches: list[Batch], part: int) -> None:
        """Updates the fake network."""
        drawn = self.draws(batches[0]) if batches[0].noise is None else batches[0]
        for update in range(1, self.objective.fake_updates + 1):
            draw = self.fake_draw(drawn, update)
            with self.trainer.precision_plugin.train_step_context():
                losses = self.objective.fake_loss(self.backbone, draw, self.global_step + update)
            self.fake_score.step(losses.mean())
        step, every = self.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % every == 0 or step == self.trainer.max_steps:
            self.log("train/fake_loss", losses.mean().detach(), sync_dist=True)
