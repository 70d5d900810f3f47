"""Training of a small AutoencoderKL on pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from dit.diffusion.noise import generator
from dit.encoders.autoencoder_weights import load_network
from dit.training.module import SampleLosses, TrainedModule
from dit.types import CaptionedBatch, Checker, from_pixels, to_device, to_pixels


def copy_matching_weights(net: Any, start: str) -> None:
    """Copies every weight of the AutoencoderKL `start` whose name and shape occur in `net`. Raises ValueError if they
    share no convolution."""
    own, other = net.state_dict(), load_network(start).state_dict()
    shared = {name: value for name, value in other.items() if name in own and own[name].shape == value.shape}
    if not any(name.endswith("weight") and value.dim() == 4 for name, value in shared.items()):
        raise ValueError(f"start={start} has no convolution of the same shape as `net`; choose another start, or null")
    net.load_state_dict(shared, strict=False)


class AutoencoderModule(TrainedModule):
    """Trains an AutoencoderKL with L1 + MSE + `kl_weight` * KL (per latent value).

    net: arguments of diffusers' AutoencoderKL. start: name or folder of the AutoencoderKL to initialise from, as for
    `autoencoder.path`. Every weight whose shape is the same in both is copied; if the number of latent channels
    differs, only the layers next to the latents are new.

    At the end of the fit, writes the weights to RUN/autoencoder in diffusers' layout and float16, with the shift and
    the scale that give the latents zero mean and unit variance over all channels.
    """

    net: Any

    headlines = MappingProxyType({"val/psnr": True, "val/reconstruction_accuracy": True})

    def __init__(
        self,
        net: dict[str, Any],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        seed: int,
        kl_weight: float = 1e-4,
        checker: Checker | None = None,
        start: str | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, seed)
        from diffusers import AutoencoderKL

        self.net = AutoencoderKL(**net)
        with torch.no_grad():  # the initial posterior std is exp(-4 / 2): training is faster than from 1
            self.net.quant_conv.bias[net["latent_channels"] :] = -4.0
        if start is not None:
            copy_matching_weights(self.net, start)
        self.kl_weight, self.checker = kl_weight, checker

    def encode(self, batch: CaptionedBatch) -> tuple[Tensor, Any]:
        """Returns the pictures (B, 3, H, W) in [-1, 1], float32, and their posterior, in the network's precision."""
        x = from_pixels(batch.images.to(self.device))
        return x, self.net.encode(x.to(self.dtype)).latent_dist

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Returns the pictures (B, 3, H, W) uint8 after encoding, to the posterior's mean, and decoding, on the CPU."""
        x = from_pixels(images.to(self.device)).to(self.dtype)
        return to_pixels(self.net.decode(self.net.encode(x).latent_dist.mode()).sample.float()).cpu()

    def training_step(self, batches: list[CaptionedBatch], part: int) -> Tensor:
        loss = torch.stack([self.loss(batch, source) for source, batch in enumerate(batches)]).mean()
        return self.log_loss(loss, part, [SampleLosses(batch.index, batch.epoch) for batch in batches])

    def loss(self, batch: CaptionedBatch, source: int) -> Tensor:
        """Returns the loss, a scalar. The posterior's noise is keyed by (seed, epoch, index of the picture, source)."""
        x, posterior = self.encode(batch)
        visits = zip(batch.epoch.tolist(), batch.index.tolist(), strict=True)
        draws = [generator(self.seed, epoch, index, 1 + source) for epoch, index in visits]  # 0: latents of the cache
        noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=d, dtype=torch.float32) for d in draws])
        z = posterior.mean + posterior.std * to_device(noise, x.device)
        error = self.net.decode(z.to(self.dtype)).sample.float() - x
        return error.abs().mean() + error.square().mean() + self.kl_weight * posterior.kl().mean() / z[0].numel()

    def validation_step(self, batch: CaptionedBatch, _: int) -> None:
        x, posterior = self.encode(batch)
        reconstruction = self.net.decode(posterior.mode()).sample.float()
        mse = F.mse_loss(reconstruction, x)
        self.log_mean("val/psnr", 10 * torch.log10(4 / mse), len(x))
        if self.checker is not None:
            right = np.stack(list(self.checker(to_pixels(reconstruction), batch.captions).values())).all(0)
            self.log_mean("val/reconstruction_accuracy", right.mean(), len(x))

    @torch.no_grad()
    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        held_out = self.trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        latents = torch.cat([self.encode(batch)[1].mode().cpu().double() for batch in held_out])
        shift, scale = round(latents.mean().item(), 5), round(1 / latents.std().item(), 5)
        self.net.register_to_config(shift_factor=shift, scaling_factor=scale)
        self.net.half().save_pretrained(Path(self.trainer.default_root_dir) / "autoencoder")
