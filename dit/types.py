"""The typed objects that the packages pass to each other, and the protocols of the parts that a config chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns the tensor on a device. A copy from the CPU to CUDA uses pinned memory and is asynchronous; every other
    copy is complete when this returns, because the CPU does not wait for pending copies before it reads."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def has_float64(device: torch.device | str) -> bool:
    """Returns whether a device supports float64 tensors. Apple GPUs do not; callers then compute on the CPU."""
    return torch.device(device).type != "mps"


def expand_like(values: Tensor, x: Tensor, axis: int = 0) -> Tensor:
    """Returns (N,) values as a tensor that broadcasts against x, with N along one axis: one value per sample (axis 0)
    or per channel (axis 1). x may have any number of axes."""
    return values.view([-1 if i == axis else 1 for i in range(x.dim())])


NAMES = ("tokens", "mask", "pooled", "label")


@dataclass(frozen=True)
class Condition:
    """The conditioning inputs of a backbone, for B samples. Absent parts are None.

    tokens: (B, L, D) float, one hidden state per text token.
    mask: (B, L) bool, True for a real token and False for padding; None if all tokens are real.
    pooled: (B, P) float, one vector for the whole text.
    label: (B,) int64, class labels.
    extra: further parts by name, each (B, ...), such as a second time or a guidance scale.
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    label: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Tensor]:
        """All parts that are not None by their names, including those of `extra`."""
        own = {name: getattr(self, name) for name in NAMES}
        return {name: part for name, part in own.items() if part is not None} | dict(self.extra)

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Condition:
        """Returns the condition of the parts `change(name, part)`, those of `extra` included."""
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
        return self.map(lambda _, v: v[rows])

    def to(self, device: torch.device | str) -> Condition:
        return self.map(lambda _, v: to_device(v, device))

    def pin_memory(self) -> Condition:
        return self.map(lambda _, v: v.pin_memory())

    def expand(self, batch: int) -> Condition:
        """Returns a single row repeated `batch` times."""
        return self.map(lambda _, v: v.expand(batch, *v.shape[1:]))

    def drop(self, rows: Tensor, null: Condition) -> Condition:
        """Returns the condition with the null condition in the rows where `rows` (B,) is True: caption dropout in
        training. An extra part that the null condition does not have is unchanged."""
        condition, null = pad_to_longest([self, null])
        null_parts = null.parts

        def change(name: str, value: Tensor) -> Tensor:
            return torch.where(expand_like(rows, value), null_parts[name], value) if name in null_parts else value

        return condition.map(change)

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Returns the rows of all conditions in order; shorter texts are padded."""
        parts = pad_to_longest(parts)
        return parts[0].map(lambda name, _: torch.cat([part.parts[name] for part in parts]))

    def unmasked(self) -> Condition:
        """Returns the condition without its mask if the mask is all True, so that attention uses its fastest kernel.
        Synchronizes with the device if the mask is on an accelerator."""
        return replace(self, mask=None) if self.mask is not None and bool(self.mask.all()) else self

    def trim(self) -> Condition:
        """Returns the condition without the padding that follows the last real token of the longest row, for networks
        that do not read padding (`reads_padding` is False). Synchronizes like `unmasked`: call it once per batch."""
        if self.tokens is None or self.mask is None:
            return self
        real = self.mask.cpu().any(0).nonzero().flatten()
        length = int(real[-1]) + 1 if len(real) else 1
        return replace(self, tokens=self.tokens[:, :length], mask=self.mask[:, :length]).unmasked()


SIZES = ("original_height", "original_width", "crop_top", "crop_left", "height", "width")


def size_conditions(sizes: Tensor) -> dict[str, Tensor]:
    """Returns entries of `Condition.extra` of pixels (B, 6): the original size, the crop in it, and the size of each
    image (SDXL, arXiv:2307.01952, section 2.2)."""
    return dict(zip(SIZES, sizes.unbind(1), strict=True))


def pad_to_longest(parts: Sequence[Condition]) -> list[Condition]:
    """Returns the conditions with tokens padded to one length; if one has a mask, all get one. Does not synchronize
    with the device."""
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
    """A batch of training data.

    x0: (B, *S) float32, latents or images in [-1, 1]; index: (B,) int64, the sample's index in the data set; epoch:
    (B,) int64, the number of completed passes over the data set. index and epoch are the keys of random numbers and
    stay on the CPU. features: (B, ...) float32, a frozen encoder's features of the clean images, or None. noise:
    (B, *S), as in `Draw`; uniform: (B, 4) float32 on the CPU, in [0, 1), for the time, for caption dropout (already
    applied to `condition`), and `u2` and `u3` of `Draw`. Both are None until `dit.data.draws.TrainingDraws` sets them.

    This is not a dataclass, because Lightning would cast a dataclass's tensors to the training precision. Only the
    network is cast; noise is added and the loss is computed in float32.
    """

    noise: Tensor | None = None
    uniform: Tensor | None = None

    def __init__(
        self, x0: Tensor, condition: Condition, index: Tensor, epoch: Tensor, features: Tensor | None = None
    ) -> None:
        self.x0, self.condition, self.index, self.epoch, self.features = x0, condition, index, epoch, features

    def to(self, device: torch.device | str) -> Batch:
        return self._map(lambda v: to_device(v, device), self.condition.to(device))

    def pin_memory(self) -> Batch:
        """Called by DataLoader, so that `to` copies asynchronously."""
        return self._map(lambda v: v.pin_memory(), self.condition.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor], condition: Condition) -> Batch:
        features, noise = (None if part is None else change(part) for part in (self.features, self.noise))
        changed = Batch(change(self.x0), condition, self.index, self.epoch, features)
        changed.noise, changed.uniform = noise, self.uniform
        return changed


@dataclass(frozen=True)
class Draw:
    """One training draw of B samples: the data and all random numbers of one loss. An objective is a function of the
    network and a draw, so that a loss depends on nothing else.

    x0: (B, *S) float32 data. condition: B rows, some of them replaced by the null condition (caption dropout).
    null: the null condition, one row, or None if the model has none.
    noise: (B, *S), the noise that `Process.corrupt` takes; standard normal on a Gaussian path.
    u, u2, u3: (B,) float64 on the CPU, uniform in (0, 1): for the time, and for further random choices.
    stratified: u moved so that each sample of a step's whole batch has its own equal interval of (0, 1); None in
    validation. step: the number of completed optimizer steps. epoch: (B,) int64 on the CPU.
    teacher: another network that takes the same arguments, or None. features: (B, ...) of the clean data, or None.
    start: (B, *S), the standard normal noise from which the network makes samples itself, and fake: a network that
    learns the score of these samples; both None unless an objective needs them.
    """

    x0: Tensor
    condition: Condition
    noise: Tensor
    u: Tensor
    null: Condition | None = None
    u2: Tensor | None = None
    u3: Tensor | None = None
    stratified: Tensor | None = None
    step: int = 0
    epoch: Tensor | None = None
    teacher: Network | None = None
    features: Tensor | None = None
    start: Tensor | None = None
    fake: Network | None = None


class CaptionedBatch:
    """A batch of images (B, 3, H, W) uint8 with their captions; index and epoch as in `Batch`."""

    def __init__(self, images: Tensor, captions: list[str], index: Tensor, epoch: Tensor) -> None:
        self.images, self.captions, self.index, self.epoch = images, captions, index, epoch

    def to(self, device: torch.device | str) -> CaptionedBatch:
        return CaptionedBatch(to_device(self.images, device), self.captions, self.index, self.epoch)

    def pin_memory(self) -> CaptionedBatch:
        return CaptionedBatch(self.images.pin_memory(), self.captions, self.index, self.epoch)


class CaptionedImages(Protocol):
    """A data set of images with captions; an index always returns the same pair."""

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str:
        """A digest of all images and captions."""
        ...

    def __len__(self) -> int: ...

    def images(self, index: np.ndarray) -> np.ndarray:
        """Returns the images at `index` (N,) int64 as (N, 3, H, W) uint8."""
        ...


class TextEncoder(Protocol):
    """A frozen encoder of captions. `length` is the number of tokens that every condition is padded to; 0 if there are
    no tokens. `sizes` are keyword arguments of a backbone: token_dim and pooled_dim, or classes."""

    length: int
    sizes: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """A digest of the weights and the settings."""
        ...

    def encode(self, prompts: Sequence[str]) -> Condition: ...

    def fit(self, prompts: Sequence[str]) -> list[str]:
        """Returns the prompts for `encode`. Reports on stderr, in one line, how many of them are too long; each prompt
        is counted once."""
        ...

    def null(self) -> Condition:
        """Returns the null condition (no caption), one row."""
        ...

    def to(self, device: torch.device | str) -> TextEncoder: ...


class Autoencoder(Protocol):
    """A frozen autoencoder between images in [-1, 1] and latents of about unit variance, with `channels` channels and
    height and width divided by `factor`. Other code does not depend on the axes of a latent."""

    channels: int
    factor: int
    shift: Tensor  # (C, 1, 1) float32: latents are (raw - shift) * scale, with raw the encoder network's output
    scale: Tensor
    fingerprint: str

    @property
    def posterior(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """A function from images to the mean and the standard deviation of their latents, each shaped as by `encode`;
        None if the encoder is deterministic."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Returns the shape of one image's latent, (C, h, w). Raises ValueError unless height and width are multiples
        of `factor`."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Returns the latents (B, C, h, w) float32 of images (B, 3, H, W) float."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Returns the images (B, 3, H, W) float32 of latents (B, C, h, w) float."""
        ...

    def to(self, device: torch.device | str) -> Autoencoder: ...


class Adapter(Protocol):
    """A change of a network after initialization and before checkpoint weights are loaded: low-rank updates, frozen
    parameters, further inputs. New parameters are created on the network's device."""

    def __call__(self, network: nn.Module) -> nn.Module: ...

    def merge(self, network: nn.Module) -> nn.Module:
        """Returns the adapted network in the original architecture, for export. Raises ValueError if that is
        impossible."""
        ...


class Checker(Protocol):
    """An exact test of images against their captions, one result per attribute."""

    def __call__(self, images: Tensor, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns for each attribute an (N,) bool array, from images (N, 3, H, W) uint8 and N captions."""
        ...


def to_pixels(images: Tensor) -> Tensor:
    """Returns images in [-1, 1] as uint8, rounded to nearest: used for every image that dit writes or scores."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_pixels(images: Tensor) -> Tensor:
    """Returns uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
