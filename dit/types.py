"""The typed objects that walk between the floors, and the protocols of what is exchanged by config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device. Towards CUDA it goes through pinned memory and nothing waits for the copy; in every other
    direction the copy is complete when this returns, for the CPU reads memory as it is and not as it will be."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def has_float64(device: torch.device | str) -> bool:
    """Whether a device can hold float64 tensors. Apple's GPUs cannot: what needs it is computed on the CPU then."""
    return torch.device(device).type != "mps"


@dataclass(frozen=True)
class Condition:
    """What a backbone is told about each of B samples. Absent parts are None.

    tokens: (B, L, D) float, one state per text token.
    mask: (B, L) bool, True where a token is real and False where it is padding; None where all tokens are real.
    pooled: (B, P) float, one vector for the whole text.
    label: (B,) int64, a class.
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    label: Tensor | None = None

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> Condition:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Condition(**{k: None if v is None else change(k, v) for k, v in parts.items()})

    def __len__(self) -> int:
        return next(len(v) for v in (self.tokens, self.pooled, self.label) if v is not None)

    @property
    def device(self) -> torch.device:
        return next(v.device for v in (self.tokens, self.pooled, self.label) if v is not None)

    @property
    def nbytes(self) -> int:
        return sum(v.nbytes for v in (self.tokens, self.mask, self.pooled, self.label) if v is not None)

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return self._map(lambda _, v: v[rows])

    def to(self, device: torch.device | str) -> Condition:
        return self._map(lambda _, v: to_device(v, device))

    def pin_memory(self) -> Condition:
        return self._map(lambda _, v: v.pin_memory())

    def expand(self, batch: int) -> Condition:
        """Repeats a single row `batch` times."""
        return self._map(lambda _, v: v.expand(batch, *v.shape[1:]))

    def drop(self, rows: Tensor, null: Condition) -> Condition:
        """Replaces the rows where `rows` (B,) is True by the null condition: caption dropout in training."""
        condition, null = pad_alike([self, null])

        def change(name: str, value: Tensor) -> Tensor:
            where = rows.view(-1, *[1] * (value.dim() - 1))
            return torch.where(where, getattr(null, name), value)

        return condition._map(change)

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """All rows, one after the other; shorter texts are padded."""
        parts = pad_alike(parts)
        return parts[0]._map(lambda name, _: torch.cat([getattr(p, name) for p in parts]))

    def unmasked(self) -> Condition:
        """Without the mask where it hides nothing, so that attention takes its fastest kernel. Waits for the device
        where the mask lies on an accelerator."""
        return replace(self, mask=None) if self.mask is not None and bool(self.mask.all()) else self

    def trim(self) -> Condition:
        """Without the padding that follows the last real token of every row, for networks that read no padding (their
        `reads_padding` is False). Waits as `unmasked` does: once for a batch, before its steps."""
        if self.tokens is None or self.mask is None:
            return self
        real = self.mask.cpu().any(0).nonzero().flatten()
        length = int(real[-1]) + 1 if len(real) else 1
        return replace(self, tokens=self.tokens[:, :length], mask=self.mask[:, :length]).unmasked()


def pad_alike(parts: Sequence[Condition]) -> list[Condition]:
    """The conditions with tokens of one length, and with a mask all or none. Nothing is read from the device."""
    if any(part.tokens is None for part in parts):
        return list(parts)
    longest = max(part.tokens.shape[1] for part in parts if part.tokens is not None)
    masked = any(part.mask is not None or part.tokens.shape[1] < longest for part in parts if part.tokens is not None)

    def padded(part: Condition) -> Condition:
        assert part.tokens is not None
        if not masked:
            return part
        mask = part.tokens.new_ones(part.tokens.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
        extra = longest - part.tokens.shape[1]
        return replace(part, tokens=F.pad(part.tokens, (0, 0, 0, extra)), mask=F.pad(mask, (0, extra)))

    return [padded(part) for part in parts]


class Batch:
    """x0: (B, C, H, W) float32 latents or images in [-1, 1]; index: (B,) int64, place in the data set; epoch: (B,)
    int64, how often the data set was gone through before. The last two key random numbers and stay on the CPU.

    Not a dataclass, for Lightning would look inside one and cast it to the precision of training; here the network
    alone is cast, so that noise is added and the loss is taken in float32.
    """

    def __init__(self, x0: Tensor, condition: Condition, index: Tensor, epoch: Tensor) -> None:
        self.x0, self.condition, self.index, self.epoch = x0, condition, index, epoch

    def to(self, device: torch.device | str) -> Batch:
        return Batch(to_device(self.x0, device), self.condition.to(device), self.index, self.epoch)

    def pin_memory(self) -> Batch:
        """What DataLoader asks for, so that `to` need not wait."""
        return Batch(self.x0.pin_memory(), self.condition.pin_memory(), self.index, self.epoch)


class CaptionedBatch:
    """images: (B, 3, H, W) uint8 with their captions; index and epoch as in Batch."""

    def __init__(self, images: Tensor, captions: list[str], index: Tensor, epoch: Tensor) -> None:
        self.images, self.captions, self.index, self.epoch = images, captions, index, epoch

    def to(self, device: torch.device | str) -> CaptionedBatch:
        return CaptionedBatch(to_device(self.images, device), self.captions, self.index, self.epoch)

    def pin_memory(self) -> CaptionedBatch:
        return CaptionedBatch(self.images.pin_memory(), self.captions, self.index, self.epoch)


class CaptionedImages(Protocol):
    """A source of pictures with captions; an index always gives the same pair."""

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever any picture or caption does."""
        ...

    def __len__(self) -> int: ...

    def images(self, index: np.ndarray) -> np.ndarray:
        """index: (N,) int64 -> (N, 3, H, W) uint8."""
        ...


class TextEncoder(Protocol):
    """A frozen encoder of captions. `length` is the number of tokens that every condition is padded to, 0 where there
    are none. `sizes` is what a backbone is told of the conditions by name: token_dim and pooled_dim, or classes."""

    length: int
    sizes: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """Changes whenever the weights or the settings do."""
        ...

    def encode(self, prompts: Sequence[str]) -> Condition: ...

    def fit(self, prompts: Sequence[str]) -> list[str]:
        """The prompts for `encode`: those that it cannot read whole are counted in one line on stderr, once each."""
        ...

    def null(self) -> Condition:
        """The condition of no text at all, one row."""
        ...

    def to(self, device: torch.device | str) -> TextEncoder: ...


class Autoencoder(Protocol):
    """A frozen autoencoder between images in [-1, 1] and latents of about unit variance: `channels` deep, and smaller
    by `factor` on each side."""

    channels: int
    factor: int
    shift: Tensor  # (C, 1, 1) float32: latents are (raw - shift) * scale, raw what the network itself gives
    scale: Tensor
    fingerprint: str

    @property
    def posterior(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """Images -> mean and standard deviation of their latents, each as from `encode`; None where it has but one
        latent for a picture."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, C, h, w) float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float -> (B, 3, H, W) float32."""
        ...

    def to(self, device: torch.device | str) -> Autoencoder: ...


class Checker(Protocol):
    """Says for every picture, attribute by attribute, whether it shows what its caption says."""

    def __call__(self, images: Tensor, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """(N, 3, H, W) uint8 and N captions -> for each attribute an (N,) bool array."""
        ...


def to_pixels(images: Tensor) -> Tensor:
    """[-1, 1] float -> uint8, rounded to nearest: the one rule for every picture that dit writes or scores."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_pixels(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1] float32."""
    return images.float() / 127.5 - 1
