"""Export of an autoencoder to diffusers' pipelines, which scale latents by one number and shift them by at most one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.types import Autoencoder


def to_diffusers(autoencoder: Autoencoder, shifts: bool) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Returns config and state dict of an AutoencoderKL whose latents, scaled by a pipeline, equal those of ours.

    shifts: whether the pipeline also shifts latents. Scales and shifts that the pipeline lacks are folded into the
    convolutions next to the latents. Returns None for another class, or if these convolutions are needed and missing.
    """
    if not isinstance(autoencoder, PretrainedAutoencoder) or type(autoencoder.net).__name__ != "AutoencoderKL":
        return None
    net, state = autoencoder.net, autoencoder.net.state_dict()
    shift, scale = autoencoder.shift.flatten(), autoencoder.scale.flatten()
    if bool((shift != shift[0]).any() | (scale != scale[0]).any()) or (bool(shift[0] != 0) and not shifts):
        if not {"quant_conv.weight", "post_quant_conv.weight"} <= state.keys():
            return None
        state |= folded(state, shift, scale)
        shift, scale = torch.zeros(1), torch.ones(1)
    config = {name: value for name, value in net.config.items() if not name.startswith("_")}
    statistics = {name: float(str(value[0].numpy())) for name, value in (("scaling", scale), ("shift", shift))}
    config |= {f"{name}_factor": value for name, value in statistics.items()}
    return {"_class_name": "AutoencoderKL", **config, "latents_mean": None, "latents_std": None}, state


def folded(state: Mapping[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Returns the last convolution of the encoder, (2 C, 2 C, 1, 1), and the first of the decoder, (C, C, 1, 1), for
    latents (raw - shift) * scale. The former outputs the mean and the logarithm of the variance."""
    twice, half = torch.cat([scale, torch.ones_like(scale)]), torch.zeros_like(scale)
    weight, bias = state["quant_conv.weight"], state["quant_conv.bias"]
    after = {
        "quant_conv.weight": weight * twice[:, None, None, None],
        "quant_conv.bias": (bias - torch.cat([shift, half])) * twice + torch.cat([half, 2 * scale.log()]),
    }
    weight, bias = state["post_quant_conv.weight"], state["post_quant_conv.bias"]
    before = {
        "post_quant_conv.weight": weight / scale[:, None, None],
        "post_quant_conv.bias": bias + weight.flatten(1) @ shift.to(weight.dtype),
    }
    return {name: value.to(weight.dtype) for name, value in (after | before).items()}
