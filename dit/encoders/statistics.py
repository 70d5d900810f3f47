"""Statistics of latents: mean and standard deviation per channel, and the PSNR of reconstructions. Values within one
picture are correlated, so standard errors are computed over pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dit.encoders.reconstruction import Quality, errors_of
from dit.types import Autoencoder, from_pixels, to_pixels


def standard_error(values: Tensor) -> Tensor:
    """Returns the standard error (K,) of the mean over the rows of (N, K)."""
    return values.std(0) / len(values) ** 0.5


def mean_and_std(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Returns mean and standard deviation over all pictures, with their standard errors, each (K,).

    first, second: (N, K) float64, mean and mean square of each picture. The standard error of std is to first order
    (the delta method): std**2 is the mean over pictures of `about`, the mean square deviation from the common mean.
    """
    mean = first.mean(0)
    about = second - 2 * mean * first + mean**2
    std = about.mean(0).clamp_min(0).sqrt()
    std_se = standard_error(about) / (2 * std).clamp_min(1e-30)  # 0 for a constant channel
    return {"mean": mean, "mean_se": standard_error(first), "std": std, "std_se": std_se}


def measure(autoencoder: Autoencoder, batches: Iterable[Tensor]) -> dict[str, Any]:
    """Returns statistics of the raw latents of pictures. batches: (B, 3, H, W) uint8, at least two pictures in all.

    mean, std: lists with one number per channel. shift, scale: one pair of numbers that gives zero mean and unit
    variance over all channels together. psnr: in dB, of reconstructed uint8 pictures, from the mean square error over
    all pictures (None if that is 0). psnr_halved: that of the same pictures at half their resolution. verdict: what the
    two mean for samples, in words. All but the last two have their standard error as NAME_se. Raises ValueError for
    fewer than two pictures, or if all latents are equal.
    """
    rows = []
    for pixels in batches:
        latents = autoencoder.encode(from_pixels(pixels))
        raw = latents.cpu().double() / autoencoder.scale.cpu() + autoencoder.shift.cpu()
        errors = errors_of(pixels, to_pixels(autoencoder.decode(latents)))
        rows.append((raw.mean((2, 3)), raw.square().mean((2, 3)), *errors))
    first, second, squared, of_halved = (torch.cat(column) for column in zip(*rows, strict=True))
    if len(first) < 2:
        raise ValueError(f"{len(first)} picture: a standard deviation needs more; take at least 2, e.g. n=1000")
    channels = {name: value.tolist() for name, value in mean_and_std(first, second).items()}
    whole = {name: value.item() for name, value in mean_and_std(first.mean(1, True), second.mean(1, True)).items()}
    if not whole["std"]:
        raise ValueError(f"all latents of these {len(first)} pictures are the same number; measure other pictures")
    quality = Quality.of(squared, of_halved)
    return {
        "pictures": len(first),
        **channels,
        "shift": whole["mean"],
        "shift_se": whole["mean_se"],
        "scale": 1 / whole["std"],
        "scale_se": whole["std_se"] / whole["std"] ** 2,
        "psnr": quality.psnr,
        "psnr_se": quality.se,
        "psnr_halved": quality.halved,
        "verdict": quality.verdict(),
    }
