"""Training of a small AutoencoderKL on pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from dit.diffusion.noise import generator
from dit.types import CaptionedBatch, Checker, from_pixels, to_pixels


class AutoencoderModule(L.LightningModule):
    """L1 + MSE + a little KL (per latent value).

    At the end of the fit the weights lie in RUN/autoencoder, in diffusers' layout and in float16, with the shift and
    the scale that bring the latents to zero mean and unit variance over all channels.
    """

    net: Any

    def __init__(
        self,
        net: dict[str, Any],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        seed: int,
        kl_weight: float = 1e-4,
        checker: Checker | None = None,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.net = AutoencoderKL(**net)
        with torch.no_grad():  # begin with little posterior noise, exp(-4 / 2): training is faster than from 1
            self.net.quant_conv.bias[net["latent_channels"] :] = -4.0
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.kl_weight, self.checker = kl_weight, checker
        self.moments = torch.zeros(3, dtype=torch.float64)  # count, sum and sum of squares of the latents

    def training_step(self, batches: list[CaptionedBatch], _: int) -> Tensor:
        losses = [self.loss(from_pixels(batch.images), place) for place, batch in enumerate(batches)]
        loss = torch.stack(losses).mean()
        self.log("train/loss", loss)
        return loss

    def loss(self, x: Tensor, *keys: int) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1]; `keys` name the noise of the posterior sample besides the seed and the step."""
        posterior = self.net.encode(x).latent_dist
        draw = generator(self.seed, self.global_step, self.global_rank, *keys)
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draw).to(x.device)
        error = self.net.decode(z).sample - x
        return error.abs().mean() + error.square().mean() + self.kl_weight * posterior.kl().mean() / z[0].numel()

    def on_validation_epoch_start(self) -> None:
        self.moments.zero_()

    def validation_step(self, batch: CaptionedBatch, _: int) -> None:
        x = from_pixels(batch.images)
        z = self.net.encode(x).latent_dist.mode()
        again = self.net.decode(z).sample.float()
        mse = F.mse_loss(again, x)
        self.log("val/psnr", 10 * torch.log10(4 / mse), sync_dist=True, batch_size=len(x))
        if self.checker is not None:
            right = torch.tensor(list(self.checker(to_pixels(again), batch.captions).values())).all(0)
            self.log("val/reconstruction_accuracy", right.float().mean(), sync_dist=True, batch_size=len(x))
        wide = z.double().cpu()
        self.moments += torch.stack([torch.tensor(wide.numel()).double(), wide.sum(), wide.square().sum()])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.named_parameters())
        schedule = self.schedule(optimizer, steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        count, total, squares = self.moments.tolist()
        if not self.trainer.is_global_zero or count == 0:
            return
        mean = total / count
        scale = (squares / count - mean**2) ** -0.5
        self.net.register_to_config(shift_factor=round(mean, 5), scaling_factor=round(scale, 5))
        self.net.half().save_pretrained(Path(self.trainer.default_root_dir) / "autoencoder")
