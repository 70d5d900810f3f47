"""What a request to the server may ask for, and what it is answered: independent of any contract."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dit.annotations import LARGEST_SEED
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import Guidance
from dit.diffusion.resolution import at_shape
from dit.diffusion.sampler.transition import Sampler, per_sample
from dit.diffusion.time import Grid
from dit.errors import nearest
from dit.picture_files import size_text
from dit.pipeline import Pipeline, Recipe
from dit.types import Condition

MAX_COSTS = 1024  # cached costs


class Refused(Exception):
    """A request that is not served. status: of HTTP. code: a word for programs. parameter: the name of the field at
    fault, or None. retry_after: seconds after which the request may be served, or None."""

    def __init__(
        self, reason: str, status: int = 400, code: str = "invalid_value", parameter: str | None = None, retry: int = 0
    ) -> None:
        super().__init__(reason)
        self.reason, self.status, self.code, self.parameter = reason, status, code, parameter
        self.retry_after = retry or None


@dataclass(frozen=True)
class Ask:
    """What is asked for: n pictures of one prompt; picture i has seed + i. negative: a negative prompt, or None."""

    prompt: str
    seed: int
    n: int
    steps: int
    scale: float
    sampler: str
    size: tuple[int, int]
    negative: str | None = None

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.n)


@dataclass(frozen=True)
class Limits:
    """Limits of the server. pictures, steps, prompt_characters, calls: of one request, calls in network calls for one
    row. pending_calls, pending_requests: of all that are not finished. requests: that sample at the same time.
    body_bytes: of an HTTP body; picture_bytes, picture_pixels: of a picture to verify."""

    pictures: int = 8
    steps: int = 100
    prompt_characters: int = 2000
    calls: int = 2000
    pending_calls: int = 20_000
    pending_requests: int = 1000
    requests: int = 32
    body_bytes: int = 100_000
    picture_bytes: int = 10_000_000
    picture_pixels: int = 4_194_304


class Menu:
    """The recipes that may be asked for: samplers by name, the first one the default; one grid; one kind of guidance at
    any scale; sizes (width, height), the first one the default. Raises ValueError for a sampler whose number of network
    calls is not known in advance."""

    def __init__(
        self,
        pipeline: Pipeline,
        samplers: Mapping[str, Sampler],
        grid: Grid,
        guidance: Callable[[float], Guidance],
        steps: int,
        scale: float,
        sizes: Sequence[tuple[int, int]],
        limits: Limits,
    ) -> None:
        for name, sampler in samplers.items():
            if per_sample(sampler):
                raise ValueError(f"sampler={name}: its number of network calls is not known in advance; leave it out")
        self.pipeline, self.samplers, self.grid, self.guidance = pipeline, samplers, grid, guidance
        self.steps, self.scale, self.sizes, self.limits = steps, scale, sizes, limits
        self.shapes = {size: pipeline.shape_of(size) for size in sizes}
        self._lock, self._costs = threading.Lock(), dict[Any, int]()

    def check(self, ask: Ask) -> None:
        """Raises Refused for a value outside of the limits."""
        limits = self.limits
        for name, value, most in (("n", ask.n, limits.pictures), ("steps", ask.steps, limits.steps)):
            if not 1 <= value <= most:
                raise Refused(f"{name}={value} must be from 1 to {most}", parameter=name)
        for name, text in (("prompt", ask.prompt), ("negative", ask.negative or "")):
            if len(text) > limits.prompt_characters:
                reason = f"{name} has {len(text)} characters; at most {limits.prompt_characters} are allowed"
                raise Refused(reason, parameter=name)
        most = LARGEST_SEED + 1 - ask.n  # the last picture has seed + n - 1
        if not 0 <= ask.seed <= most:
            raise Refused(f"seed={ask.seed} must be from 0 to {most}", parameter="seed")
        if not 0 <= ask.scale <= 100:
            raise Refused(f"scale={ask.scale:g}: the guidance scale must be from 0 to 100", parameter="scale")
        if ask.sampler not in self.samplers:
            known = f"; there are {', '.join(self.samplers)}.{nearest(ask.sampler, self.samplers)}"
            raise Refused(f"sampler={ask.sampler!r}: this server has no such sampler{known}", parameter="sampler")
        if ask.size not in self.shapes:
            known = ", ".join(map(size_text, self.sizes))
            raise Refused(f"size={size_text(ask.size)}: this server makes {known}", parameter="size")

    def order(self, ask: Ask) -> tuple[Recipe, Condition, int]:
        """Returns the recipe, the condition with a row for each picture, and the cost in network calls for one row.
        Raises Refused."""
        self.check(ask)
        try:
            recipe = Recipe(
                self.samplers[ask.sampler], self.grid, ask.steps, self.guidance(ask.scale), ask.negative or None
            )
            with self._lock:  # a text encoder serves one thread at a time
                condition = self.pipeline.encode([ask.prompt]).expand(ask.n)
                self.pipeline.null(recipe)
                cost = self._cost(recipe, (ask.sampler, ask.steps, ask.scale, bool(ask.negative)))
        except ValueError as error:
            raise Refused(str(error), parameter="prompt" if "prompt" in str(error) else None) from None
        if ask.n * cost > self.limits.calls:
            raise Refused(
                f"{ask.n} pictures of {cost} network calls are {ask.n * cost}; a request may have {self.limits.calls}: "
                f"ask for fewer pictures or steps",
                code="request_too_large",
            )
        return recipe, condition, ask.n * cost

    def _cost(self, recipe: Recipe, key: Any) -> int:
        """Returns the network evaluations of one picture, counted with a blank network. Raises ValueError for a recipe
        that does not work."""
        if key not in self._costs:
            self.pipeline.check(recipe)
            if len(self._costs) >= MAX_COSTS:
                self._costs.clear()
            self._costs[key] = network_evaluations(self.pipeline, recipe)
        return self._costs[key]


@torch.inference_mode()
def network_evaluations(pipeline: Pipeline, recipe: Recipe) -> int:
    """Returns the network evaluations of one picture, without calling the network: those of a blank one."""
    prediction, path = pipeline.prediction, pipeline.path
    counted = Denoiser(lambda x, time, condition: prediction.blank_output(x), path, prediction)
    points = at_shape(recipe.grid, pipeline.latent_shape)(path, recipe.steps)
    noise = path.sampling_noise([0], [1] * len(pipeline.latent_shape))
    denoise = recipe.guidance(counted, pipeline.null_condition(), pipeline.null(recipe))
    recipe.sampler(denoise, path.prior(points[0], noise), points, noise)
    return counted.rows
