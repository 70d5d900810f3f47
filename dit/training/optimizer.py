"""Optimizers, as functions of a network's named parameters, and the learning-rate schedule."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz
from torch.optim.lr_scheduler import LambdaLR

from dit.training.parallel import placed_like, whole

IN_BLOCK = re.compile(r"\.\d+\.\w+\.")  # matches blocks.3.mlp.up.weight, but not pooled.2.weight
Named = Iterable[tuple[str, nn.Parameter]]


def adamw(parameters: Named, lr: float, betas: tuple[float, float], weight_decay: float) -> AdamW:
    """Returns AdamW (Loshchilov and Hutter 2019) with weight decay only on matrices: not on biases, norms, embedding
    tables or tokens."""
    check_rate(lr)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in parameters:
        groups[is_matrix(name, p)].append(p)
    options = [{"params": ps, "weight_decay": weight_decay if many else 0.0} for many, ps in groups.items() if ps]
    return AdamW(options, lr=lr, betas=(betas[0], betas[1]))


def is_matrix(name: str, p: nn.Parameter) -> bool:
    """Returns True for the weight of a linear map or a convolution, False for embedding tables and vectors."""
    return p.dim() > 1 and name.endswith("weight") and "table." not in name


class Muon(torch.optim.Muon):
    """torch's Muon, exact for sharded matrices too: each is made whole once per step, for the Newton-Schulz iteration.
    Its bfloat16 products of shards would be rounded otherwise than those of whole matrices. Momentum stays sharded."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is None, "MuonAndAdamW calls the closure"
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = whole(p.grad.lerp(state["momentum_buffer"], momentum))
                update = _zeropower_via_newtonschulz(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(placed_like(p, update), alpha=-_adjust_lr(group["lr"], group["adjust_lr_fn"], p.shape))


class MuonAndAdamW(Optimizer):
    """One optimizer that applies Muon to the matrices of the blocks and AdamW to the rest (Jordan et al. 2024).

    The parameter groups are those of both, so a learning-rate schedule scales both.
    """

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.parts: tuple[Optimizer, ...] = (muon, adamw)
        super().__init__([p for part in self.parts for g in part.param_groups for p in g["params"]], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def rates_of(optimizer: Any) -> dict[str, float]:
    """Returns the learning rates of the next step by their names in the config: lr, and muon_lr of MuonAndAdamW."""
    if isinstance(optimizer, MuonAndAdamW):
        muon, adamw = optimizer.parts
        return {"lr": adamw.param_groups[0]["lr"], "muon_lr": muon.param_groups[0]["lr"]}
    return {"lr": optimizer.param_groups[0]["lr"]}


def muon(parameters: Named, lr: float, betas: tuple[float, float], weight_decay: float, muon_lr: float) -> MuonAndAdamW:
    """Returns Muon with `muon_lr` for every matrix in a numbered block and AdamW with `lr` for all other parameters.

    Muon is meant for matrices between hidden layers (Jordan et al. 2024): attention, MLP and modulation of the blocks.
    AdamW trains input and output layers (patches, embeddings of time, text and class, the head with its modulation),
    embedding tables, tokens, norms and biases. Raises ValueError if there is no such matrix.
    """
    check_rate(muon_lr)
    named = list(parameters)
    inner = {name for name, p in named if p.dim() == 2 and is_matrix(name, p) and IN_BLOCK.search(name)}
    rest = [(name, p) for name, p in named if name not in inner]
    if not inner:
        raise ValueError("optimizer=muon found no matrix in a numbered block; use optimizer=adamw")
    fast = Muon(
        [p for name, p in named if name in inner], lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return MuonAndAdamW(fast, adamw(rest, lr, betas, weight_decay))


def check_rate(lr: float) -> None:
    """Raises ValueError if a learning rate is not positive."""
    if not lr > 0:
        raise ValueError(f"optimizer learning rate {lr} must be positive")


def warmup_and_decay(optimizer: Optimizer, steps: int, warmup: int, decay: float) -> LambdaLR:
    """Returns a schedule: linear from 0 over `warmup` steps, constant, then linear to 0 over the last fraction `decay`
    of `steps`. Raises ValueError if `decay` is not in [0, 1]."""
    if not 0 <= decay <= 1:
        raise ValueError(f"lr_schedule.decay={decay} is a fraction of the training and must lie in [0, 1]")

    def factor(step: int) -> float:
        rise = min((step + 1) / max(warmup, 1), 1.0)
        fall = (steps - step) / (steps * decay) if decay and steps > 0 else 1.0
        return max(min(rise, fall, 1.0), 0.0)

    return LambdaLR(optimizer, factor)
