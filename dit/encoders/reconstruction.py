"""How well an autoencoder reconstructs pictures: PSNR, and a verdict in words beside that of halved pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MARGIN = 3.0  # dB above halved pictures: half of their squared error


def shrunk(pixels: Tensor, share: float) -> Tensor:
    """Returns pictures (N, 3, H, W) uint8, scaled down to a share of their sides and back."""
    sides = [max(1, round(side * share)) for side in pixels.shape[-2:]]
    small = F.interpolate(pixels.float(), sides, mode="bilinear", antialias=True)
    back = F.interpolate(small, pixels.shape[-2:], mode="bilinear")
    return back.round().clamp(0, 255).to(torch.uint8)


def squared_errors(one: Tensor, other: Tensor) -> Tensor:
    """Returns the mean square difference of each pair of pictures, (N,) float64, from (N, 3, H, W) uint8."""
    return (one.double() - other.double()).square().mean((1, 2, 3))


def errors_of(pixels: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean square errors of reconstructions, and those of the same pictures at half their resolution, each
    (N,) float64 on the CPU."""
    pixels = pixels.cpu()
    return squared_errors(made.cpu(), pixels), squared_errors(shrunk(pixels, 0.5), pixels)


def psnr(squared: Tensor) -> float | None:
    """Returns the PSNR in dB from the mean square errors (N,) of uint8 pictures; None if all of them are 0."""
    mse = squared.mean().item()
    return 10 * math.log10(255**2 / mse) if mse else None


@dataclass(frozen=True)
class Quality:
    """The PSNR of reconstructions of n pictures, and that of the same pictures halved and enlarged again, in dB; None
    without an error. se: the standard error of the first."""

    n: int
    psnr: float | None
    se: float | None
    halved: float | None

    @classmethod
    def of(cls, errors: Tensor, of_halved: Tensor) -> Quality:
        """From the mean square errors (N,) of reconstructions and of halved pictures."""
        mse, spread = errors.mean().item(), (errors.std(0) / len(errors) ** 0.5).item()
        se = 10 / math.log(10) * spread / mse if mse else None
        return cls(len(errors), psnr(errors), se, psnr(of_halved))

    def verdict(self) -> str:
        """Returns one line: whether the reconstructions are sharp enough to train on, as samples cannot be sharper."""
        if self.psnr is None or self.halved is None:
            return "enough: pictures are reconstructed without an error that can be measured"
        pictures = f"{self.psnr:.1f} dB on {self.n} pictures"
        half = f"the same pictures at half their resolution have {self.halved:.1f} dB"
        if self.psnr < self.halved:
            return (
                f"too little: {pictures}, and {half}; below that samples cannot be sharp: train longer, use more "
                f"pictures, or more latent channels"
            )
        if self.psnr < self.halved + MARGIN:
            return f"soft: {pictures}, and {half}; fine details are lost, which longer training may bring back"
        return f"enough: {pictures}, and {half}"
