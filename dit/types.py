"""The typed objects that walk between the floors, and the protocols of what is exchanged by config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
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


def expand_like(values: Tensor, x: Tensor, axis: int = 0) -> Tensor:
    """(N,) numbers as a tensor that broadcasts against x with N along one axis: a number for each sample (axis 0) or
    for each channel (axis 1), whatever the number of axes of x."""
    return values.view([-1 if place == axis else 1 for place in range(x.dim())])


NAMES = ("tokens", "mask", "pooled", "label")


@dataclass(frozen=True)
class Condition:
    """What a backbone is conditioned on, for B samples. Absent parts are None.

    tokens: (B, L, D) float, one state per text token.
    mask: (B, L) bool, True where a token is real and False where it is padding; None if all tokens are real.
    pooled: (B, P) float, one vector for the whole text.
    label: (B,) int64, a class.
    extra: further parts by name, each (B, ...), such as a second time or a guidance scale that the network reads.
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    label: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Every part that is there, by its name, those of `extra` too."""
        own = {name: getattr(self, name) for name in NAMES}
        return {name: part for name, part in own.items() if part is not None} | dict(self.extra)

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> Condition:
        parts = {name: change(name, part) for name, part in self.parts.items()}
        extra = {name: parts.pop(name) for name in self.extra}
        return Condition(**parts, extra=extra)

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    @property
    def device(self) -> torch.device:
        return next(iter(self.parts.values())).device

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

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
        """Replaces the rows where `rows` (B,) is True by the null condition: caption dropout in training. An extra part
        that the null condition lacks stays as it is."""
        condition, null = pad_alike([self, null])
        absent = null.parts

        def change(name: str, value: Tensor) -> Tensor:
            return torch.where(expand_like(rows, value), absent[name], value) if name in absent else value

        return condition._map(change)

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """All rows, one after the other; shorter texts are padded."""
        parts = pad_alike(parts)
        return parts[0]._map(lambda name, _: torch.cat([part.parts[name] for part in parts]))

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


# (x (B, *S), time (B,) float32, condition of B rows) -> the network's output (B, ...)
Network = Callable[[Tensor, Tensor, Condition], Tensor]


class Batch:
    """x0: (B, *S) float32, latents or pictures in [-1, 1]; index: (B,) int64, the sample's place in the data set;
    epoch: (B,) int64, how many passes over the data set were complete. The last two key random numbers and stay on the
    CPU. features: (B, ...) float32, what a frozen encoder says of the clean pictures, or None.

    Not a dataclass, because Lightning would cast the tensors of one to the precision of training. Here the network
    alone is cast; noise is added and the loss is taken in float32.
    """

    def __init__(
        self, x0: Tensor, condition: Condition, index: Tensor, epoch: Tensor, features: Tensor | None = None
    ) -> None:
        self.x0, self.condition, self.index, self.epoch, self.features = x0, condition, index, epoch, features

    def to(self, device: torch.device | str) -> Batch:
        features = None if self.features is None else to_device(self.features, device)
        return Batch(to_device(self.x0, device), self.condition.to(device), self.index, self.epoch, features)

    def pin_memory(self) -> Batch:
        """What DataLoader calls, so that `to` does not wait for the copy."""
        features = None if self.features is None else self.features.pin_memory()
        return Batch(self.x0.pin_memory(), self.condition.pin_memory(), self.index, self.epoch, features)


@dataclass(frozen=True)
class Draw:
    """One training draw of B samples: the data and all random numbers of one loss. An objective is a function of the
    network and a draw, so that a loss depends on nothing else.

    x0: (B, *S) float32 data. condition: of the B samples, some of them replaced by the null condition (caption
    dropout). null: the null condition, one row, or None if the model has none.
    noise: (B, *S), what `Process.corrupt` takes; standard normal on a Gaussian path.
    u, u2: (B,) float64 on the CPU, uniform in (0, 1): for the time, and for a second time or any other choice.
    stratified: u moved so that each sample of a step's whole batch has its own equal share of (0, 1); None in
    validation. step: the number of optimizer steps made before. epoch: (B,) int64 on the CPU.
    teacher: another network that takes the same arguments, or None. features: (B, ...) of the clean data, or None.
    """

    x0: Tensor
    condition: Condition
    noise: Tensor
    u: Tensor
    null: Condition | None = None
    u2: Tensor | None = None
    stratified: Tensor | None = None
    step: int = 0
    epoch: Tensor | None = None
    teacher: Network | None = None
    features: Tensor | None = None


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
    """A frozen autoencoder between images in [-1, 1] and latents of about unit variance, with `channels` channels, and
    sides that are shorter by `factor`. It alone knows the axes of a latent."""

    channels: int
    factor: int
    shift: Tensor  # (C, 1, 1) float32: latents are (raw - shift) * scale, where raw is the output of the network
    scale: Tensor
    fingerprint: str

    @property
    def posterior(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """Images -> mean and standard deviation of their latents, each as from `encode`; None where it has but one
        latent for a picture."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of one picture's latent, (C, h, w). Raises ValueError unless both sides are multiples of
        `factor`."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, C, h, w) float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float -> (B, 3, H, W) float32."""
        ...

    def to(self, device: torch.device | str) -> Autoencoder: ...


class Adapter(Protocol):
    """Changes a network after it has its initial weights and before those of a checkpoint: low-rank updates, frozen
    parts, further inputs. New parameters are made on the network's device."""

    def __call__(self, network: nn.Module) -> nn.Module: ...

    def merge(self, network: nn.Module) -> nn.Module:
        """The adapted network as one of the original architecture, for export. Raises ValueError if there is none."""
        ...


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
