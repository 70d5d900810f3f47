"""Detects steps whose loss, gradient or update is not finite or an outlier, and skips them, rolls back or stops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from dit.checkpoints.native import checkpoints_of
from dit.checkpoints.snapshots import remove_later
from dit.distributed import rank_and_world_size
from dit.training.after_step import AfterStep
from dit.training.ema import EMA
from dit.training.faulty_steps import Step, record
from dit.training.loss_by_time import LossByTime
from dit.training.module import TrainedModule
from dit.training.parallel import Sharded, shard_of, whole
from dit.training.posthoc_ema import PosthocEMA
from dit.training.window import Window

Policy = Literal["stop", "skip", "roll_back", "warn"]
POLICIES = ("stop", "skip", "roll_back", "warn")
NAMES = ("loss", "gradient norm", "update norm")
REMEDY = (
    "try a lower optimizer.lr, trainer.gradient_clip_val=1, trainer.precision=32-true or callbacks.guard.policy=skip"
)


class StabilityGuard(AfterStep):
    """Decides after each optimizer step, from the loss, the norm of the gradient before clipping and the norm of the
    update, whether the step is faulty: one of them is not finite, or an outlier among those of the last `window` good
    steps. All are means over the ranks, so that all ranks decide alike.

    policy:
      stop: training ends with a ValueError.
      skip: the gradient of a faulty step is discarded, and weights and optimizer do not change. More than `most` such
        steps in a row, or a faulty update, are handled as with roll_back.
      roll_back: weights, averages and optimizer become those of the last checkpoint, and training goes on with the next
        batch: it passes over all batches since that checkpoint. A faulty step more than `most` times after the same
        checkpoint ends training.
      warn: a warning is printed once.

    The samples of a faulty step, with their times and losses, are written to RUN/spikes/step_0000123.json.

    deviations: see `Window`; null finds only values that are not finite. update_every: the update is measured every so
    many steps, or never if null: such a step copies the trained weights and takes three passes over them. bins: the
    loss is also logged for so many equal intervals of time.

    With skip, every step waits for the device before the optimizer. With the other policies a step is judged after the
    next one, or before a checkpoint is written, so that no step waits. Raises ValueError for other values.
    """

    def __init__(
        self,
        policy: Policy = "stop",
        deviations: float | None = None,
        window: int = 128,
        most: int = 3,
        update_every: int | None = 10,
        bins: int = 5,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"callbacks.guard.policy={policy!r} is not one of {', '.join(POLICIES)}")
        least = {"window": (window, 2), "most": (most, 0), "bins": (bins, 1), "update_every": (update_every or 1, 1)}
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise ValueError(f"callbacks.guard.{name}={value} must be at least {lowest}")
        if deviations is not None and not deviations > 0:
            raise ValueError(f"callbacks.guard.deviations={deviations} must be positive, or null")
        self.policy, self.most, self.update_every = policy, most, update_every
        self.window = Window(window, deviations)
        self.before: list[Tensor] = []  # the trained weights before the step, if its update is measured
        self.pending: list[Step] = []
        self.by_time = LossByTime(bins)  # since the last logged step
        self.undone: list[tuple[int, int]] = []  # first and last steps whose changes the weights do not have any more
        self.skipped, self.rollbacks, self.origin = 0, 0, ""  # origin: the checkpoint of the last rollback
        self.warned = False
        self.values: list[Tensor] = []
        self.fault: str | None = None

    @property
    def state_key(self) -> str:
        return "StabilityGuard"

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, TrainedModule)
        parameters = list(pl_module.parameters())
        pl_module.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.values = agreed([pl_module.step_loss, whole(pl_module.gradient_norm)])
        self.fault = None
        if self.policy == "skip":
            self.fault = self.window.fault(named(torch.stack(self.values).tolist()))
        if self.fault is not None:
            for parameter in parameters:
                parameter.grad = None  # optimizers of torch then change neither the weight nor its state
        if self.update_every is not None and (self.step + 1) % self.update_every == 0:
            self.before = [p.detach().clone() for p in parameters if p.requires_grad]

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainedModule)
        for part in module.samples:
            if part.times is not None and part.losses is not None:
                self.by_time.add(part.times, part.losses)
        values = [*self.values, *agreed(self.update(module))]
        self.pending.append(Step(self.step, later(torch.stack(values)), list(module.samples), self.fault))
        if self.step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_step(module, values)
        while len(self.pending) > (self.policy != "skip"):
            self.judge(trainer, module)

    @torch.no_grad()
    def update(self, module: L.LightningModule) -> list[Tensor]:
        """Returns the norm of the last change of the weights, or an empty list if it is not measured."""
        if not self.before:
            return []
        change, self.before = self.before, []
        torch._foreach_sub_([shard_of(before) for before in change], EMA.shards(module))
        return [whole(torch.nn.utils.get_total_norm(change))]

    def log_step(self, module: TrainedModule, values: list[Tensor]) -> None:
        """Logs the norms of this step, and the mean loss of each interval of time since the last logged step."""
        for name, value in zip(NAMES[1:], values[1:], strict=False):
            module.log(f"train/{name.replace(' ', '_')}", value)
        for interval, loss in self.by_time.take().items():
            module.log(f"train/loss_t{interval}", loss)

    def judge(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Returns True if the oldest step that is not judged yet was good; else acts by the policy."""
        step = self.pending.pop(0)
        values = named(step.read())
        fault = step.fault or self.window.fault(values)
        if fault is None:
            self.window.add(values)
            self.skipped = 0
            return True
        if isinstance(trainer.strategy, Sharded):
            trainer.strategy.writer.complete()  # that of a good step, which may be the newest
        kept = trainer.strategy.broadcast(checkpoints_of(Path(trainer.default_root_dir)))
        action, why = self.choose(step, kept)
        record(Path(trainer.default_root_dir), step, values, f"{fault}{why}", action)
        last = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint was written before"
        message = f"{fault} at step {step.number}{why}"
        if action == "stop":
            raise ValueError(f"{message}: {REMEDY}; {last}")
        if action == "skip":
            self.undone.append((step.number, step.number))
        if action == "roll_back":
            self.roll_back(trainer, module, kept[0])
            message = f"{message}: continuing with the weights of {kept[0]}"
        if trainer.is_global_zero and (action != "warn" or not self.warned):
            print(f"warning: {message}", file=sys.stderr)
        self.warned = True
        return False

    def choose(self, step: Step, kept: list[Path]) -> tuple[str, str]:
        """Returns what to do about a faulty step, and why it is more than the policy says, in words."""
        if self.policy in ("stop", "warn"):
            return self.policy, ""
        why = ""
        if step.fault is not None:
            self.skipped += 1
            if self.skipped <= self.most:
                return "skip", ""
            why = f", after {self.skipped} skipped steps"
        if not kept:
            return "stop", f"{why}, before the first checkpoint"
        self.rollbacks = self.rollbacks + 1 if self.origin == kept[0].name else 1
        self.origin, self.skipped = kept[0].name, 0
        if self.rollbacks > self.most:
            return "stop", f"{why}, after {self.most} rollbacks to the same checkpoint"
        return "roll_back", why

    def roll_back(self, trainer: L.Trainer, module: L.LightningModule, path: Path) -> None:
        """Loads weights, averages and the optimizer's state. Learning rates stay those of this step. Later snapshots of
        averages are removed."""
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
        module.on_load_checkpoint(checkpoint)
        trainer.strategy.load_model_state_dict(checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        for optimizer, lrs in zip(trainer.optimizers, rates, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA | PosthocEMA):
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
                callback.on_train_start(trainer, module)
        if trainer.is_global_zero:
            remove_later(Path(trainer.default_root_dir), checkpoint["global_step"])
        self.undone.append((checkpoint["global_step"] + 1, trainer.global_step))
        self.pending.clear()

    def passes(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Returns True if a checkpoint may be written: all steps are judged, and the weights are finite. Raises
        ValueError like a faulty step if they are not and the policy is not warn."""
        self.by_time.collect()
        good = True
        while self.pending:
            good = self.judge(trainer, module) and good
        finite = bool(torch.stack([shard_of(p.detach()).isfinite().all() for p in module.parameters()]).all())
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            return good or self.policy != "warn"
        message = f"the weights are not finite at step {trainer.global_step}: {REMEDY}"
        if self.policy != "warn":
            raise ValueError(message)
        if not self.warned and trainer.is_global_zero:
            print(f"warning: {message}", file=sys.stderr)
        self.warned = True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Steps that are not judged yet are not in it: `passes` judges all before a checkpoint is written."""
        counts = {"skipped": self.skipped, "rollbacks": self.rollbacks, "origin": self.origin}
        state = {"window": self.window.state_dict(), "binned": self.by_time.sums, "undone": list(self.undone)}
        return state | counts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.window.load_state_dict(state_dict["window"])
        if len(state_dict["binned"]) == len(self.by_time.sums):
            self.by_time.sums = state_dict["binned"]
        self.undone = [(first, last) for first, last in state_dict.get("undone", [])]
        self.skipped, self.rollbacks, self.origin = (state_dict[name] for name in ("skipped", "rollbacks", "origin"))


def agreed(scalars: list[Tensor]) -> list[Tensor]:
    """Returns the means of the scalars over all ranks: the same numbers on every rank."""
    world = rank_and_world_size()[1]
    if world == 1 or not scalars:
        return [scalar.detach().float() for scalar in scalars]
    total = torch.stack([scalar.detach().float() for scalar in scalars])
    torch.distributed.all_reduce(total)
    return list((total / world).unbind())


def later(values: Tensor) -> Callable[[], list[float]]:
    """Returns a function that returns the values. On CUDA the copy starts now, and only that function waits for it."""
    if values.device.type != "cuda":
        return values.tolist
    host, copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True), torch.cuda.Event()
    host.copy_(values, non_blocking=True)
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return read


def named(values: list[float]) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=False))
