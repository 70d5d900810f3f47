"""A watermark in the initial noise: keyed by a secret, and found by inverting the sampler.

The noise of a picture is drawn from a generator whose key is a pseudorandom function of the secret and the picture's
seed, so that it is exactly normal and says nothing without the secret. The test inverts the probability-flow ODE and
correlates what it finds with the noise of the seeds that are tried, as in Tree-Ring (Wen et al. 2023, arXiv:2305.20030)
and Gaussian Shading (Yang et al. 2024, arXiv:2404.04956), but with the whole noise in place of a pattern or signs.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from dit.diffusion.denoiser import Denoiser
from dit.diffusion.editing import invert
from dit.diffusion.guidance import unguided
from dit.diffusion.resolution import at_shape
from dit.generation.marks import Mark, Origin
from dit.generation.watermark import FLIPS, Detection, corrected, resized
from dit.types import from_pixels

STEPS = 32  # of Heun's method


class NoiseMark(Mark):
    """The mark in the initial noise. The seed of a picture is its nonce: it may be public, the key must not."""

    kind = "noise"
    in_noise = True

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        digests = [hmac.digest(self.key, f"dit noise mark 1 {seed}".encode(), "sha256") for seed in seeds]
        return [int.from_bytes(digest[:16], "big") for digest in digests]

    def detect(
        self, picture: np.ndarray, size: tuple[int, int] | None = None, origin: Origin | None = None
    ) -> Detection:
        """Tests a picture (H, W, 3) uint8 for the noise of each seed of its origin, also mirrored: the correlation of
        normal noise with anything that does not depend on it, divided by the norm of that, is standard normal."""
        if origin is None or not origin.seeds:
            raise ValueError(
                "marks=noise is tested through the model: say ckpt=RUN and the seeds to try, seeds=FIRST-LAST, and if "
                "it is known the prompt"
            )
        whole = size is None or size == (picture.shape[1], picture.shape[0])
        given = picture if whole or size is None else resized(picture, size)
        found = recovered(origin, np.stack([np.flip(given, axes) if axes else given for axes in FLIPS.values()]))
        units = (found / found.norm(dim=1, keepdim=True)).double()
        path, shape = origin.pipeline.path, origin.pipeline.shape_of((given.shape[1], given.shape[0]))
        best, where = -math.inf, ""
        for seed in self.seeds(origin.seeds):
            noise = path.sampling_noise([seed], shape).start().flatten().double()
            for flip, unit in zip(FLIPS, units, strict=True):
                if (score := float(noise @ unit)) > best:
                    best, where = score, flip
        tests = len(origin.seeds) * len(FLIPS)
        return Detection(corrected(float(ndtr(-best)), tests), tests, where, resized=not whole)


@torch.inference_mode()
def recovered(origin: Origin, pictures: np.ndarray) -> Tensor:
    """Returns the noise, up to a factor, that pictures (N, H, W, 3) uint8 of a model were sampled from: (N, D) float32
    on the CPU. It is found without guidance, under the prompt, or under the null condition if the prompt is not known.
    Raises ValueError if the model cannot make pictures of this size."""
    pipeline = origin.pipeline
    pipeline.shape_of((pictures.shape[2], pictures.shape[1]))  # raises for such a size
    images = from_pixels(torch.from_numpy(pictures).permute(0, 3, 1, 2)).to(pipeline.device)
    latents = pipeline.autoencoder.to(pipeline.device).encode(images)
    text = pipeline.null_condition() if origin.prompt is None else pipeline.encode([origin.prompt])
    condition = pipeline.sized(text, latents.shape[1:]).expand(len(latents)).to(pipeline.device)
    points = at_shape(origin.grid, latents.shape[1:])(pipeline.path, STEPS)
    denoiser = Denoiser(pipeline.backbone, pipeline.path, pipeline.prediction)
    noise, _ = invert(unguided(denoiser, condition), latents, points)
    return noise.flatten(1).float().cpu()
