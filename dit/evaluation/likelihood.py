"""Bits per dimension of held-out pictures: a score of the model itself, independent of the sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from dit.data.order import subset
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.likelihood import Hutchinson, bits_per_dim, log_likelihood
from dit.diffusion.noise import Noise, generator
from dit.diffusion.resolution import at_shape
from dit.diffusion.time import Grid, check_steps
from dit.encoders.autoencoder import Identity
from dit.pipeline import Pipeline
from dit.precision import float32_products
from dit.types import CaptionedImages, from_pixels

PIXEL = 1 / 127.5  # the distance of two neighbouring 8-bit values in [-1, 1]


class BitsPerDim:
    """Negative log-likelihood of `count` held-out pictures (`dit.data.order.subset`) given their captions, without
    guidance, by the probability-flow ODE with Hutchinson's estimator (`dit.diffusion.likelihood`), in float32.

    In pixel space it is bits_per_dim, of the 8-bit values dequantized by uniform noise. With an autoencoder it is
    bits_per_latent_dim, of the density of the latents: it can be negative, and only models with the same autoencoder
    can be compared by it.
    """

    def __init__(self, grid: Grid, steps: int = 50, count: int = 64) -> None:
        check_steps(steps)
        if count < 2:
            raise ValueError(f"bits_per_dim: count={count} pictures have no standard error; use 2 or more")
        self.grid, self.steps, self.count = grid, steps, count

    def __call__(self, pipeline: Pipeline, real: CaptionedImages, seed: int, batch_size: int) -> dict[str, float]:
        """Returns the score and its standard error over the pictures (NAME_error). A picture's noise depends on (seed,
        its index) only."""
        pixels = isinstance(pipeline.autoencoder, Identity)
        points = at_shape(self.grid, pipeline.latent_shape)(pipeline.path, self.steps)
        denoiser = Denoiser(pipeline.backbone, pipeline.path, pipeline.prediction)
        indices = subset(len(real), self.count).tolist()
        bits: list[torch.Tensor] = []
        with float32_products(pipeline.device, "32"):
            for first in tqdm(range(0, len(indices), batch_size), desc="likelihood", unit="batch", leave=False):
                index = indices[first : first + batch_size]
                x = from_pixels(torch.from_numpy(real.images(np.array(index))))
                if pixels:
                    x = x + PIXEL * (uniform(index, x.shape[1:], seed) - 0.5)
                else:
                    x = pipeline.autoencoder.to(pipeline.device).encode(x.to(pipeline.device))
                condition = pipeline.encode([real.captions[i] for i in index])
                condition = pipeline.sized(condition, x.shape[1:]).to(pipeline.device)
                probe = Hutchinson(Noise([seed + i for i in index], x.shape[1:], pipeline.device).start())
                log_p = log_likelihood(
                    lambda x, point, condition=condition: denoiser(x, point, condition),  # type: ignore[misc]
                    x.to(pipeline.device),
                    points,
                    probe,
                )
                bits.append(bits_per_dim(log_p, x[0].numel(), PIXEL if pixels else 0.0).cpu())
        values, name = torch.cat(bits), "bits_per_dim" if pixels else "bits_per_latent_dim"
        return {name: values.mean().item(), f"{name}_error": values.std().item() / len(values) ** 0.5}


def uniform(index: Sequence[int], shape: Sequence[int], seed: int) -> torch.Tensor:
    """Returns (N, *shape) float32 in [0, 1), one row for each index."""
    return torch.stack([torch.rand(tuple(shape), generator=generator(seed, i, 1), dtype=torch.float32) for i in index])
