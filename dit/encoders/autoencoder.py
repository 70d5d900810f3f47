"""Autoencoders between images in [-1, 1] and latents of about unit variance. Frozen, behind `dit.types.Autoencoder`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from dit.files import ASSETS


class Identity:
    """Pixel space: the latent is the image."""

    channels, factor = 3, 1
    fingerprint = "identity"

    def encode(self, images: Tensor) -> Tensor:
        return images.float()

    def decode(self, latents: Tensor) -> Tensor:
        return latents.float()

    def to(self, device: torch.device | str) -> Identity:
        return self


def find_folder(path: str) -> Path:
    """A folder with `config.json` and `diffusion_pytorch_model.safetensors`, or the name of one that ships with dit."""
    for folder in (Path(path), ASSETS / path):
        if (folder / "config.json").is_file():
            if not (folder / "diffusion_pytorch_model.safetensors").is_file():
                raise ValueError(f"autoencoder folder {folder} lacks diffusion_pytorch_model.safetensors")
            return folder
    shipped = sorted(f.parent.name for f in ASSETS.glob("*/diffusion_pytorch_model.safetensors"))
    raise ValueError(
        f"autoencoder.path={path}: no folder with a config.json there; give a folder in diffusers' layout, "
        f"or one that ships with dit: {', '.join(shipped)}"
    )


class KLAutoencoder:
    """diffusers' `AutoencoderKL`. z = (mode - shift) * scale, with the two numbers of its config.

    Pictures are worked on `slice_size` at a time, so that memory stays bounded.
    """

    def __init__(self, path: str, slice_size: int = 128) -> None:
        from diffusers import AutoencoderKL

        folder = find_folder(path)
        self.net = AutoencoderKL.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
        )
        self.net.eval().requires_grad_(False)
        self.channels = int(self.net.config.latent_channels)
        self.factor = 2 ** (len(self.net.config.block_out_channels) - 1)
        self.scale = float(self.net.config.scaling_factor)
        self.shift = float(self.net.config.shift_factor or 0.0)
        self.slice_size = slice_size
        digest = hashlib.sha256((folder / "config.json").read_bytes())
        digest.update((folder / "diffusion_pytorch_model.safetensors").read_bytes())
        self.fingerprint = digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        raw = [self.net.encode(part).latent_dist.mode() for part in images.float().split(self.slice_size)]
        return (torch.cat(raw) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        raw = latents.float() / self.scale + self.shift
        return torch.cat([self.net.decode(part).sample for part in raw.split(self.slice_size)])

    def to(self, device: torch.device | str) -> KLAutoencoder:
        self.net.to(device)
        return self
