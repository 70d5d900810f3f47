"""How many bits a model needs for held-out pictures: a score of the model itself, whatever sampler it is used with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from dit.data.order import subset
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.likelihood import Hutchinson, bits_per_dim, log_likelihood
from dit.diffusion.noise import Noise, generator
from dit.diffusion.time import Grid, check_steps
from dit.encoders.autoencoder import Identity
from dit.pipeline import Pipeline
from dit.precision import float32_products
from dit.types import CaptionedImages, from_pixels

PIXEL = 1 / 127.5  # the distance of two neighbouring 8-bit values in [-1, 1]


class BitsPerDim:
    """Negative log-likelihood of `count` held-out pictures, chosen by `dit.data.order.subset`, under their captions,
    unguided, by the probability-flow ODE with Hutchinson's estimator (`dit.diffusion.likelihood`), in float32.

    In pixel space it is bits_per_dim of the 8-bit values, made continuous by uniform noise. With an autoencoder it is
    bits_per_latent_dim, of the latents' density: comparable for one autoencoder alone, and it may be negative.
    Beside it stands its standard error over the pictures.
    """

    def __init__(self, grid: Grid, steps: int = 50, count: int = 64) -> None:
        check_steps(steps)
        if count < 2:
            raise ValueError(f"bits_per_dim: count={count} pictures have no standard error; ask for 2 or more")
        self.grid, self.steps, self.count = grid, steps, count

    def __call__(self, pipeline: Pipeline, real: CaptionedImages, seed: int, batch_size: int) -> dict[str, float]:
        """The score and its standard error. The noise of a picture is a function of (seed, its index)."""
        pixels = isinstance(pipeline.autoencoder, Identity)
        points = self.grid(pipeline.path, self.steps)
        denoiser = Denoiser(pipeline.backbone, pipeline.path, pipeline.prediction)
        every = subset(len(real), self.count).tolist()
        bits: list[torch.Tensor] = []
        with float32_products(pipeline.device, "32"):
            for first in tqdm(range(0, len(every), batch_size), desc="likelihood", unit="batch", leave=False):
                index = every[first : first + batch_size]
                x = from_pixels(torch.from_numpy(real.images(np.array(index))))
                if pixels:
                    x = x + PIXEL * (uniform(index, x.shape[1:], seed) - 0.5)
                else:
                    x = pipeline.autoencoder.to(pipeline.device).encode(x.to(pipeline.device))
                condition = pipeline.encode([real.captions[i] for i in index]).to(pipeline.device)
                signs = Hutchinson(Noise([seed + i for i in index], x.shape[1:], pipeline.device).start())
                log_p = log_likelihood(
                    lambda x, point, condition=condition: denoiser(x, point, condition),  # type: ignore[misc]
                    x.to(pipeline.device),
                    points,
                    signs,
                )
                bits.append(bits_per_dim(log_p, x[0].numel(), PIXEL if pixels else 0.0).cpu())
        each, name = torch.cat(bits), "bits_per_dim" if pixels else "bits_per_latent_dim"
        return {name: each.mean().item(), f"{name}_error": each.std().item() / len(each) ** 0.5}


def uniform(index: Sequence[int], shape: Sequence[int], seed: int) -> torch.Tensor:
    """(N, *shape) float32 in [0, 1), a row for each index."""
    return torch.stack([torch.rand(tuple(shape), generator=generator(seed, i, 1), dtype=torch.float32) for i in index])
