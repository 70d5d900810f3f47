"""Sampling of images from prompts, for training previews, evaluation and generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.diffusion.denoiser import Denoiser, SampledDenoiser, Watch, watched
from dit.diffusion.editing import Edit, outpaint
from dit.diffusion.guidance import Embedded, Guidance, unguided
from dit.diffusion.process import NetworkOutput, Process
from dit.diffusion.resolution import at_shape
from dit.diffusion.sampler.flow_map import flow_map
from dit.diffusion.sampler.transition import Sampler, innermost, per_sample
from dit.diffusion.time import Grid, check_steps
from dit.layers.embeddings import extra_inputs
from dit.layers.step_cache import FirstBlockCache, StepCache, check_cacheable
from dit.precision import check_precision, float32_products, network_autocast, precision_on
from dit.sample_grid import Samples
from dit.types import Autoencoder, Condition, Network, TextEncoder, size_conditions

MAX_NULLS = 64  # cached conditions of negative prompts


@dataclass(frozen=True)
class Recipe:
    """How to sample: the sampler, the time grid, the number of steps, the guidance, a negative prompt that replaces the
    null condition, or None, and the rule of a step cache, or None. Raises ValueError for a combination that does not
    work."""

    sampler: Sampler
    grid: Grid
    steps: int
    guidance: Guidance
    negative: str | None = None
    cache: FirstBlockCache | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not self.guidance.supports(self.sampler):
            raise ValueError(
                f"{type(self.guidance).__name__} guidance works only with ddim, ddpm and consistency: choose one of "
                f"these samplers, or guidance=classifier_free"
            )
        if self.negative is not None and not self.guidance.uses_null:
            raise ValueError(
                f"negative={self.negative!r} has no effect with this guidance: choose guidance=classifier_free and a "
                f"guidance.scale above 1"
            )

    @classmethod
    def from_config(
        cls,
        sampler: Mapping[str, Sampler],
        grid: Grid,
        steps: int,
        guidance: Guidance,
        negative: str | None = None,
        cache: FirstBlockCache | None = None,
    ) -> Recipe:
        """Returns the recipe of a config, whose sampler group is a dict of one sampler. Raises ValueError for more."""
        if len(sampler) != 1:
            raise ValueError(f"sampler={','.join(sampler)}: choose one; evaluate.py compares several")
        return cls(next(iter(sampler.values())), grid, steps, guidance, negative, cache)


class Pipeline:
    """A backbone with its path, prediction and frozen encoders. latent_shape: (C, h, w) of one sample.
    trained_with_null: whether the backbone was trained with the null condition. size_conditions: whether it was trained
    with the sizes of `dit.types.size_conditions`; samples are images of their own size, not cropped. largest_scale: the
    largest guidance scale that the backbone was trained with as an input, or None if it is not known. `sample_in` sets
    precision and compilation."""

    def __init__(
        self,
        backbone: nn.Module,
        path: Process,
        prediction: NetworkOutput,
        text_encoder: TextEncoder,
        autoencoder: Autoencoder,
        latent_shape: Sequence[int],
        trained_with_null: bool = True,
        size_conditions: bool = False,
        largest_scale: float | None = None,
    ) -> None:
        self.backbone, self.path, self.prediction = backbone, path, prediction
        self.text_encoder, self.autoencoder = text_encoder, autoencoder
        self.latent_shape, self.trained_with_null = tuple(latent_shape), trained_with_null
        self.size_conditions, self.largest_scale = size_conditions, largest_scale
        self._null_conditions: dict[str | None, Condition] = {}  # the cache of `null_condition`
        self.requested_precision, self.compile = "auto", False
        self._compiled: dict[Network, Network] = {}

    def shape_of(self, size: tuple[int, int] | None) -> tuple[int, ...]:
        """Returns the shape of the latent of a picture of a size (width, height) in pixels, None for that of training.
        Raises ValueError unless both sides are multiples of the autoencoder's factor."""
        if size is None:
            return self.latent_shape
        width, height = size
        return self.autoencoder.latent_shape(height, width)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def sample_in(self, precision: str | int = "auto", compile: bool = False) -> Pipeline:
        """Sets how networks are called during sampling, and returns self. precision: auto, 32, tf32 or bf16
        (`dit.precision`), for the network only: the sampler's state and all conversions stay float32. compile: use
        torch.compile for the networks. Raises ValueError for another precision."""
        self.requested_precision, self.compile = check_precision(precision), compile
        return self

    @property
    def precision(self) -> str:
        """The precision used on the backbone's device: 32, tf32 or bf16."""
        return precision_on(self.device, self.requested_precision)

    def _wrap(self, network: Network, precision: str, cache: StepCache | None = None) -> Network:
        """Returns a network that is called with the precision and compilation of `sample_in`, and with a step cache."""
        called, device = network, self.device
        if self.compile:
            if network not in self._compiled:
                self._compiled[network] = torch.compile(network)
            called = self._compiled[network]

        def call(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
            with network_autocast(device, precision):
                return called(x, time, condition) if cache is None else cache.call(network, x, time, condition)

        return call

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Returns the condition of the prompts, one row each. Raises ValueError if there are none."""
        if not prompts:
            raise ValueError("the list of prompts is empty; give at least one, e.g. prompts='[a large red star]'")
        return self.text_encoder.encode(prompts)

    def sized(self, condition: Condition, shape: Sequence[int]) -> Condition:
        """Returns the condition with the size of images of a latent shape (C, h, w), which are not cropped, if the
        backbone was trained with sizes."""
        if not self.size_conditions:
            return condition
        height, width = (side * self.autoencoder.factor for side in shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=condition.device)
        return replace(condition, extra=dict(condition.extra) | size_conditions(sizes.expand(len(condition), -1)))

    def check(self, recipe: Recipe) -> None:
        """Samples with a blank network output, so that an error of the grid, the sampler or the prediction on this path
        occurs before the network is called. Raises ValueError if the recipe does not work."""
        if innermost(recipe.sampler) is flow_map and "duration" not in extra_inputs(self.backbone):
            raise ValueError(
                "sampler=flow_map needs a network that was trained as a flow map, and this one was not, or is at "
                "adapter_scale=0: choose another sampler, or distil the run with experiment=distill"
            )
        if isinstance(recipe.guidance, Embedded):
            self.check_scale(recipe.guidance.scale)
        self.check_cache(recipe)
        text, shape = self.null_condition(), [1] * len(self.latent_shape)
        points, noise = (
            at_shape(recipe.grid, self.latent_shape)(self.path, recipe.steps),
            self.path.sampling_noise([0], shape),
        )
        blank = Denoiser(lambda x, time, condition: self.prediction.blank_output(x), self.path, self.prediction)
        recipe.guidance(blank, text, self.null(recipe))
        recipe.sampler(unguided(blank, text), 0 * self.path.prior(points[0], noise), points, noise)

    def check_cache(self, recipe: Recipe) -> None:
        """Raises ValueError if the recipe has a step cache that a network cannot be called with."""
        if recipe.cache is None:
            return
        if self.compile:
            raise ValueError("cache and compile=true: a step cache chooses blocks at each call; leave one of them out")
        second = getattr(recipe.guidance, "network", None)
        for network in (self.backbone, *([] if second is None else [second])):
            check_cacheable(network)

    def check_scale(self, scale: float) -> None:
        """Raises ValueError for a guidance scale that the backbone was not trained with as an input."""
        if "guidance_scale" not in extra_inputs(self.backbone):
            raise ValueError(
                f"guidance=embedded needs a network that was trained with the scale as an input, and this "
                f"{type(self.backbone).__name__} was not, or is at adapter_scale=0: choose guidance=classifier_free, "
                f"or objective.largest_scale=8 in training"
            )
        if self.largest_scale is not None and not 1 <= scale <= self.largest_scale:
            raise ValueError(
                f"guidance.scale={scale:g}: the network was trained with scales from 1 to {self.largest_scale:g}; "
                f"choose one of these, or a larger objective.largest_scale in training"
            )

    def null(self, recipe: Recipe) -> Condition | None:
        """Returns the null condition of guidance, one row: that of the negative prompt if there is one, else that of no
        caption, or None if the model was not trained with it."""
        exists = self.trained_with_null or recipe.negative is not None
        return self.null_condition(recipe.negative) if exists else None

    def null_condition(self, negative: str | None = None) -> Condition:
        """Returns the condition of no caption, or of a negative prompt, one row. Each is encoded once and cached,
        because a text encoder may be slow; the cache is emptied when it has MAX_NULLS."""
        found = self._null_conditions.get(negative)
        if found is None:
            found = self.text_encoder.null() if negative is None else self.encode([negative])
            if len(self._null_conditions) >= MAX_NULLS:
                self._null_conditions.clear()
            self._null_conditions[negative] = found
        return found

    def trimmed(self, condition: Condition) -> Condition:
        """Returns the condition without padding if the backbone does not read it; unchanged if the backbone is
        compiled, because each new length would compile it again."""
        keeps = self.compile or getattr(self.backbone, "reads_padding", True)
        return condition if keeps else condition.trim()

    @torch.inference_mode()
    def edit(
        self,
        image: Tensor,
        strength: float = 1.0,
        mask: Tensor | None = None,
        border: tuple[int, int, int, int] = (0, 0, 0, 0),
        source: str | None = None,
    ) -> Edit:
        """Returns the edit of an image, with its latents, for `__call__`.

        image: (3, H, W) in [-1, 1]. strength: that of `Edit`. mask: (H, W) in [0, 1], 1 where the image is generated.
        border: pixels to add on the left, top, right and bottom. source: a prompt that describes the image, for
        inversion. Raises ValueError if a length is not a multiple of the autoencoder's factor, or if more than one of
        mask, border and source is given.
        """
        factor, sides = self.autoencoder.factor, (*image.shape[1:], *border)
        if any(side % factor for side in sides):
            raise ValueError(f"image and border of {sides} pixels: each must be a multiple of {factor}")
        latents = self.autoencoder.to(self.device).encode(image[None].to(self.device))
        if sum([any(border), mask is not None, source is not None]) > 1:
            raise ValueError("mask, border and source cannot be combined: apply one edit after the other")
        if any(border):
            left, top, right, bottom = (side // factor for side in border)
            return outpaint(latents, (left, top, right, bottom), strength)
        if mask is None:
            text = None if source is None else self.encode([source]).to(self.device)
            return Edit(latents, strength, source=text)
        if mask.shape != image.shape[1:]:
            raise ValueError(f"mask of {tuple(mask.shape)} pixels does not fit an image of {tuple(image.shape[1:])}")
        return Edit(latents, strength, F.max_pool2d(mask[None, None].to(self.device), factor))

    def __call__(
        self,
        prompts: Sequence[str] | Condition,
        seeds: Sequence[int],
        recipe: Recipe,
        batch_size: int = 64,
        done: Callable[[int], object] = lambda images: None,
        edit: Edit | None = None,
        shape: Sequence[int] | None = None,
        watch: Watch | None = None,
        gradients: bool = False,
    ) -> Samples:
        """Samples one image for each prompt (or row of an encoded condition) and seed, from noise or from the latents
        of an edit.

        An image depends only on its prompt and its seed, up to rounding, and not on its batch.

        done: a callback with the number of images after each batch, for a progress bar. shape: that of one latent, if
        not `latent_shape`. watch: a callback with (point, x, estimate) after every evaluation of the guided network,
        for the trajectory; first-order and multistep samplers evaluate it once per step. gradients: keep the graph, so
        that gradients flow from the images to the network's parameters and to an encoded condition; memory grows with
        every evaluation. Raises ValueError if the numbers of seeds and prompts differ.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.set_grad_enabled(True) if gradients else torch.inference_mode():
                return self._sample(prompts, seeds, recipe, batch_size, done, edit, shape, watch)
        finally:
            self.backbone.train(training)

    def _sample(
        self,
        prompts: Sequence[str] | Condition,
        seeds: Sequence[int],
        recipe: Recipe,
        batch_size: int,
        done: Callable[[int], object],
        edit: Edit | None,
        shape: Sequence[int] | None,
        watch: Watch | None,
    ) -> Samples:
        condition = prompts if isinstance(prompts, Condition) else self.encode(prompts)
        if len(condition) != len(seeds):
            raise ValueError(f"{len(condition)} prompts but {len(seeds)} seeds; give one seed for each prompt")
        shape = edit.x0.shape[1:] if edit is not None else self.latent_shape if shape is None else shape
        condition = self.sized(condition, shape)
        points, precision = at_shape(recipe.grid, shape)(self.path, recipe.steps), self.precision
        self.check_cache(recipe)
        cache = None if recipe.cache is None else StepCache(recipe.cache)
        denoiser = SampledDenoiser(
            self.backbone, self.path, self.prediction, lambda network: self._wrap(network, precision, cache)
        )
        batch_size = 1 if per_sample(recipe.sampler) else batch_size
        null = self.null(recipe)
        null = None if null is None else self.trimmed(null).to(self.device)
        self.autoencoder.to(self.device)
        images = []
        with float32_products(self.device, precision):
            for first in range(0, len(seeds), batch_size):
                rows = slice(first, first + batch_size)
                fresh(cache)
                noise = self.path.sampling_noise(seeds[rows], shape, self.device)
                denoise = recipe.guidance(denoiser, self.trimmed(condition[rows]).to(self.device), null)
                x, remaining = self.path.prior(points[0], noise), points
                if edit is not None:
                    x, remaining = edit[rows].start(points, noise.start(), denoiser)
                    fresh(cache)  # the inversion of an edit has other conditions
                    denoise = edit[rows].keep(denoise)
                denoise = denoise if watch is None else watched(denoise, watch)
                latents = recipe.sampler(denoise, x, remaining, noise) if len(remaining) > 1 else x
                images.append(self.autoencoder.decode(latents).cpu())
                done(len(images[-1]))
        texts = () if isinstance(prompts, Condition) else tuple(prompts)
        use = None if cache is None else cache.use(len(seeds))
        return Samples(torch.cat(images), denoiser.rows / len(seeds), texts, use)


def fresh(cache: StepCache | None) -> None:
    """Empties a step cache, if there is one."""
    if cache is not None:
        cache.start_batch()
