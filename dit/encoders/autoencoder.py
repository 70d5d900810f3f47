"""Frozen autoencoders between images in [-1, 1] and latents of about unit variance (`dit.types.Autoencoder`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dit.encoders.autoencoder_weights import load_network
from dit.tensors import dtype_of, fingerprint
from dit.types import Autoencoder, expand_like

DTYPES = ("float32", "bfloat16")  # float16 overflows in the decoder of SDXL
RAW: dict[str, Callable[[Any], Tensor]] = {  # class: output of its `encode` -> raw latents
    "AutoencoderKL": lambda output: output.latent_dist.mode(),
    "AutoencoderTiny": lambda output: output.latents,
    "AutoencoderDC": lambda output: output.latent,
}


def latent_shape(autoencoder: Autoencoder, height: int, width: int) -> tuple[int, ...]:
    """Returns (C, height / factor, width / factor). Raises ValueError unless both sides are multiples of the factor."""
    factor = autoencoder.factor
    if min(height, width) < factor or height % factor or width % factor:
        raise ValueError(
            f"pictures of {width}x{height} pixels: each side must be a multiple of the autoencoder's factor {factor}"
        )
    return autoencoder.channels, height // factor, width // factor


class Identity:
    """Pixel space: the latent is the image."""

    channels, factor = 3, 1
    shift, scale = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    fingerprint = "identity"
    posterior = None

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return latent_shape(self, height, width)

    def encode(self, images: Tensor) -> Tensor:
        return images.float()

    def decode(self, latents: Tensor) -> Tensor:
        return latents.float()

    def to(self, device: torch.device | str) -> Identity:
        return self


class PretrainedAutoencoder:
    """An autoencoder of diffusers: `AutoencoderKL` (Rombach et al. 2022, arXiv:2112.10752: SD, SDXL, SD3, FLUX),
    `AutoencoderTiny` (TAESD), or `AutoencoderDC` (Chen et al. 2024, arXiv:2410.10733).

    z = (raw - shift) * scale; raw is the output of the network's encoder (the mode of a posterior). Shift and scale are
    (C, 1, 1) float32. They come from the network's config (`scaling_factor`, `shift_factor`, `latents_mean`,
    `latents_std`), or from the arguments `shift` and `scale`, or `mean` and `std` = 1 / scale. Each argument is one
    number or one number per channel; `python -m dit.cli.latents` measures them.

    path: a folder, a file or a name on the hub, see `dit.encoders.autoencoder_weights.find`. config: for a file with no
    config.json beside it. dtype: float32 or bfloat16, of the network only; inputs and outputs are float32. slice_size:
    the number of pictures per forward pass. tile: pictures with a side longer than this are processed in overlapping
    square tiles of this side (pixels), which diffusers blends. Both bound the memory. Slices do not change the result;
    tiles change it a little, because no layer then covers the whole picture.
    """

    def __init__(
        self,
        path: str,
        config: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        slice_size: int = 8,
        tile: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        shift: float | Sequence[float] | None = None,
        scale: float | Sequence[float] | None = None,
    ) -> None:
        network_dtype = dtype_of("autoencoder.dtype", dtype, DTYPES)
        if slice_size < 1:
            raise ValueError(f"autoencoder.slice_size={slice_size} must be at least 1")
        self.net = load_network(path, config, network_dtype)
        self.raw, network_config = RAW[type(self.net).__name__], self.net.config
        stages = network_config.get("encoder_block_out_channels") or network_config["block_out_channels"]
        self.channels, self.factor = int(network_config["latent_channels"]), 2 ** (len(stages) - 1)
        self.slice_size, self.tile = slice_size, tile
        if tile is not None:
            self._set_tile(tile)
        self._set_statistics({"mean": mean, "std": std, "shift": shift, "scale": scale})
        settings = sorted((name, value) for name, value in network_config.items() if not name.startswith("_"))
        statistics = self.shift.flatten().tolist(), self.scale.flatten().tolist()
        self.fingerprint = fingerprint(self.net, type(self.net).__name__, settings, statistics, tile)

    def _set_tile(self, tile: int) -> None:
        if tile < 1 or tile % (8 * self.factor):  # the overlap is a quarter: at least two whole latents
            raise ValueError(f"autoencoder.tile={tile} must be a multiple of 8 x the factor {self.factor}")
        if type(self.net).__name__ == "AutoencoderTiny" and self.channels != 4:
            raise ValueError(f"autoencoder.tile={tile}: diffusers tiles an AutoencoderTiny only if it has 4 channels")
        net, small = self.net, tile // self.factor  # each class reads its own attribute names
        net.tile_overlap_factor, net.spatial_scale_factor = 0.25, self.factor
        net.tile_sample_min_size = net.tile_sample_min_height = net.tile_sample_min_width = tile
        net.tile_latent_min_size = net.tile_latent_min_height = net.tile_latent_min_width = small
        net.tile_sample_stride_height = net.tile_sample_stride_width = tile * 3 // 4

    def _set_statistics(self, given: dict[str, float | Sequence[float] | None]) -> None:
        for one, other in (("mean", "shift"), ("std", "scale")):
            if given[one] is not None and given[other] is not None:
                raise ValueError(f"autoencoder.{one} and autoencoder.{other} set the same value; give one of them")
        values = {name: self._per_channel(name, value) for name, value in given.items() if value is not None}
        config = self.net.config
        scaling = self._per_channel("scaling_factor", config["scaling_factor"])
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            shift = self._per_channel("latents_mean", config["latents_mean"])
            scale = scaling / self._per_channel("latents_std", config["latents_std"])  # as in diffusers' pipelines
        else:
            shift, scale = self._per_channel("shift_factor", config.get("shift_factor") or 0.0), scaling
        shift = values.get("mean", values.get("shift", shift))
        scale = 1 / values["std"] if "std" in values else values.get("scale", scale)
        axes = torch.empty(self.channels, 1, 1)  # of a latent without its batch
        self.shift, self.scale = expand_like(shift.float(), axes), expand_like(scale.float(), axes)

    def _per_channel(self, name: str, value: float | Sequence[float]) -> Tensor:
        """Returns (C,) float64. Raises ValueError for a wrong number of values, or values out of range."""
        values = list(value) if isinstance(value, Sequence) else [value] * self.channels
        if len(values) != self.channels:
            raise ValueError(f"autoencoder.{name} holds {len(values)} numbers for {self.channels} channels")
        low = 0.0 if name in ("std", "scale", "latents_std", "scaling_factor") else -math.inf
        if not all(low < float(v) < math.inf for v in values):
            raise ValueError(f"autoencoder.{name}={value} must be {'positive' if low == 0 else 'finite'}")
        return torch.tensor([float(v) for v in values], dtype=torch.float64)

    def _in_slices(self, work: Callable[[Tensor], Tensor], x: Tensor, pixels: int) -> Tensor:
        """Applies `work` to `slice_size` rows of x at a time. pixels: the longer side of the pictures."""
        self.net.use_tiling = self.tile is not None and pixels > self.tile
        return torch.cat([work(part.to(self.net.device, self.net.dtype)).float() for part in x.split(self.slice_size)])

    def _encode(self, images: Tensor, read: Callable[[Any], Tensor]) -> Tensor:
        """Encodes pictures; `read` selects a tensor from each output of the network's encoder."""
        height, width = images.shape[2:]
        if images.shape[1] != 3 or height % self.factor or width % self.factor:
            raise ValueError(
                f"pictures of {' x '.join(map(str, images.shape[1:]))}: the autoencoder takes 3 channels and sides "
                f"that are multiples of {self.factor}; crop or resize them"
            )
        return self._in_slices(lambda part: read(self.net.encode(part)), images, max(height, width))

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Returns the shape of a picture's latent. Raises ValueError unless both sides are multiples of the factor."""
        return latent_shape(self, height, width)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1] -> (B, C, H / factor, W / factor) float32, on the network's device.

        Raises ValueError if H or W is not a multiple of the factor.
        """
        return (self._encode(images, self.raw) - self.shift) * self.scale

    @property
    def posterior(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """A function of pictures (as for `encode`) that returns the mean and standard deviation of the normal
        distribution of their latents, each scaled and shaped like the output of `encode`. None except for
        AutoencoderKL."""
        return self._posterior if type(self.net).__name__ == "AutoencoderKL" else None

    @torch.no_grad()
    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        both = self._encode(images, lambda output: torch.cat([output.latent_dist.mean, output.latent_dist.std], dim=1))
        mean, std = both.chunk(2, dim=1)
        return (mean - self.shift) * self.scale, std * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float -> (B, 3, h * factor, w * factor) float32, about [-1, 1], on the network's device.
        Gradients flow back to the latents."""
        if latents.shape[1] != self.channels:
            raise ValueError(f"latents of {latents.shape[1]} channels: this autoencoder has {self.channels}")
        raw = latents.to(self.shift) / self.scale + self.shift
        return self._in_slices(lambda part: self.net.decode(part).sample, raw, max(raw.shape[2:]) * self.factor)

    def to(self, device: torch.device | str) -> PretrainedAutoencoder:
        self.net.to(device)
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)
        return self
