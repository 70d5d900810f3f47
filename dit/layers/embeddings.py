"""Embeddings of time, position and class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dit.layers.constants import cached_tensor
from dit.types import Condition, has_float64

Scale = float | tuple[float, float]  # one scale for both axes, or those of y and x


@cached_tensor
def frequencies(count: int, longest: float, shift: float, device: torch.device) -> Tensor:
    """Returns (count,) float32 frequencies in geometric progression, descending from 1."""
    steps = torch.arange(count, dtype=torch.float32, device=device) / (count - shift)
    return torch.exp(-math.log(longest) * steps)


def sinusoid(position: Tensor, dim: int, longest: float = 10_000.0, shift: float = 0.0) -> Tensor:
    """Returns (..., dim) float32: cosines, then sines, of positions (...) float at geometric frequencies from 1 to 1 /
    longest. shift: subtracted from the number of frequencies in the exponents: 0 excludes the last frequency, 1
    includes it."""
    angle = position.float()[..., None] * frequencies(dim // 2, longest, shift, position.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def positions(height: int, width: int, scale: Scale, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Returns x and y of each grid cell in row-major order, times scale: two tensors (height * width,) float32."""
    along_y, along_x = scale if isinstance(scale, tuple) else (scale, scale)
    y, x = torch.meshgrid(
        along_y * torch.arange(height, dtype=torch.float32, device=device),
        along_x * torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return x.flatten(), y.flatten()


def grid_sinusoid(height: int, width: int, dim: int, scale: Scale = 1.0, device: torch.device | str = "cpu") -> Tensor:
    """Returns DiT's fixed 2-D position embedding (height * width, dim): half for x and half for y, each sines, then
    cosines.

    scale: the factor of positions; below 1 it interpolates those of a larger grid into the range of training. Raises
    ValueError unless dim is a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"width={dim} must be a multiple of 4 for a position embedding in two dimensions")
    halves = (sinusoid(position, dim // 2).roll(dim // 4, -1) for position in positions(height, width, scale, device))
    return torch.cat(list(halves), dim=-1)


def grid_rotary(height: int, width: int, dim: int, scale: Scale = 1.0, device: torch.device | str = "cpu") -> Tensor:
    """Returns the angles of 2-D rotary embeddings (height * width, dim) for heads of width dim (Su et al. 2021,
    arXiv:2104.09864): half of the pairs rotate with x, half with y. Raises ValueError unless dim is a multiple of 4."""
    if dim % 4:
        raise ValueError(f"the width of a head is {dim}: it must be a multiple of 4 for rotary embeddings in 2-D")
    frequency = 100.0 ** -(torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))
    angle = torch.cat([position[:, None] * frequency for position in positions(height, width, scale, device)], dim=1)
    return torch.cat([angle, angle], dim=1)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotates the pairs (x_i, x_(i + D/2)) of x (..., N, D) by angles with cosines and sines `rotary`, (2, N, D)."""
    half = x.shape[-1] // 2
    swapped = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    cos, sin = rotary.to(x.dtype)
    return x * cos + swapped * sin


def axis_widths(head: int, widths: Sequence[int] | None, usual: Sequence[int]) -> tuple[int, ...]:
    """Returns the widths of the parts of a head that rotate with each axis: `usual` if they are None. Raises ValueError
    unless there are as many as usual, all even, that add up to the head."""
    widths = tuple(usual if widths is None else widths)
    if len(widths) != len(usual) or sum(widths) != head or any(width % 2 for width in widths):
        raise ValueError(
            f"axes={list(widths)} must be {len(usual)} even numbers that add up to the width of a head, "
            f"width / heads = {head}"
        )
    return widths


def axial_rotary(positions: Tensor, widths: Sequence[int], longest: float) -> Tensor:
    """Returns cosines and sines (2, N, sum(widths)) float32 for `rotate_neighbours`, of positions (N, A) on A axes.

    widths: of the part of a head that rotates with each axis, even. longest: the base of the frequencies, which are
    longest^(-2 i / width). Angles are in float64 where the device has it.
    """
    dtype = torch.float64 if has_float64(positions.device) else torch.float32
    angles = []
    for position, width in zip(positions.to(dtype).unbind(1), widths, strict=True):
        frequency = longest ** -(torch.arange(0, width, 2, dtype=dtype, device=positions.device) / width)
        angles.append((position[:, None] * frequency).repeat_interleave(2, dim=1, output_size=width))
    angle = torch.cat(angles, dim=1)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate_neighbours(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotates the pairs (x_2i, x_2i+1) of x (..., N, D) by angles with cosines and sines `rotary`, (2, N, D)."""
    swapped = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    cos, sin = rotary.to(x.dtype)
    return x * cos + swapped * sin


class TimeEmbedding(nn.Module):
    """The embedding of the time conditioning, (B,) float of about 0 to 1000 -> (B, dim): sinusoids, linear, SiLU,
    linear (DiT).

    shift: as in `sinusoid`: 0 in the original DiT, 1 in diffusers' DiT. extra: embeddings of further numbers, by their
    names in `Condition.extra`, which are added; `dit.adapters.extra.ExtraConditions` adds them. absent: their values
    where the condition has none. factors: of the embeddings that belong to a low-rank adapter, its scale; at 0 an
    embedding is not computed. rate: the time conditioning is multiplied by it. fit_error: of a refit for another rate
    (`dit.adapters.extra.slow_clock`) that was just made, else None. Raises ValueError if the condition does
    not have an entry that has no absent value.
    """

    def __init__(self, dim: int, frequencies: int = 256, shift: float = 0.0) -> None:
        super().__init__()
        self.frequencies, self.shift, self.rate = frequencies, shift, 1.0
        self.up, self.down = nn.Linear(frequencies, dim), nn.Linear(dim, dim)
        self.extra, self.absent = nn.ModuleDict(), dict[str, float]()
        self.factors = dict[str, float]()
        self.fit_error: float | None = None

    def forward(self, time: Tensor, condition: Condition | None = None) -> Tensor:
        sinusoids = sinusoid(self.rate * time, self.frequencies, shift=self.shift).to(self.up.weight.dtype)
        vector = self.down(nn.functional.silu(self.up(sinusoids)))
        for name in self.read:
            if condition is not None and name in condition.extra:
                number = condition.extra[name]
            elif name in self.absent:
                number = torch.full_like(time, self.absent[name])
            else:
                raise ValueError(f"the network reads {name!r} of Condition.extra, and the condition does not have it")
            vector = vector + self.factors.get(name, 1.0) * self.extra[name](number)
        return vector

    @property
    def read(self) -> list[str]:
        """The names of the further numbers that are embedded."""
        return [name for name in self.extra if self.factors.get(name, 1.0) != 0]


class LabelEmbedding(nn.Module):
    """A learned vector for each of `classes` classes and, last, one for the null condition: (B,) int64 -> (B, dim)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, label: Tensor) -> Tensor:
        return self.table(label)


def time_embeddings(network: nn.Module) -> Iterator[tuple[str, TimeEmbedding]]:
    """Yields the name and the module of every time embedding."""
    for name, module in network.named_modules():
        if isinstance(module, TimeEmbedding):
            yield name, module


def added_inputs(network: nn.Module) -> list[str]:
    """Returns the names of the further numbers that a network has embeddings of, also of those with the factor 0."""
    return [name for _, time in time_embeddings(network) for name in time.extra]


def extra_inputs(network: nn.Module) -> list[str]:
    """Returns the names of the entries of `Condition.extra` that a network reads. A network that is trained with a
    guidance scale as an input has the attribute `guidance_scale`, the scale it uses if the condition has none."""
    own = [] if getattr(network, "guidance_scale", None) is None else ["guidance_scale"]
    return own + [name for _, time in time_embeddings(network) for name in time.read]
