"""DINOv2 as an extractor: semantic features, trained without the class labels of ImageNet."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.hub import load_foreign
from dit.metrics.extractors import Extractor, resized
from dit.tensors import fingerprint

PUBLISHED = "vit_large_patch14_dinov2.lvd142m"


class Dino(Extractor):
    """A vision transformer of timm. pool: its class token after the final norm. Pictures are resized to `size` pixels,
    a multiple of the patch size, bicubic with antialiasing (FD-DINOv2: Stein et al. 2023, arXiv:2306.04675).

    model: a name of timm. weights: a local file, from timm or DINOv2; None reads them from the hub's cache or the hub.
    Raises ValueError if the weights cannot be loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str = PUBLISHED,
        weights: str | None = None,
        size: int = 224,
        slice_size: int = 64,
    ) -> None:
        super().__init__(slice_size)
        import timm
        from timm.models import load_state_dict, load_state_dict_from_hf
        from timm.models.vision_transformer import checkpoint_filter_fn

        published = timm.get_pretrained_cfg(model)
        if published is None or published.hf_hub_id is None:
            raise ValueError(f"model={model}: timm has no weights of this name; choose for example {PUBLISHED}")

        def load() -> Any:
            # read before the network is built, so that missing weights fail at once
            state = load_state_dict(weights) if weights else load_state_dict_from_hf(str(published.hf_hub_id))
            net: Any = timm.create_model(model, pretrained=False, num_classes=0, global_pool="token")
            state = checkpoint_filter_fn(state, net)  # DINOv2's names to timm's
            net.load_state_dict({name: value for name, value in state.items() if not name.startswith("head.")})
            return net.eval().requires_grad_(False)

        remedy = "give the file with metric.NAME.extractor.weights=PATH, or leave the metric out"
        self.net = load_foreign(load, f"timm model {model!r} with weights {weights!r}", remedy, remote=weights is None)
        patch = self.net.patch_embed.patch_size[0]
        if size < patch or size % patch:
            raise ValueError(f"size={size} of {model} must be a multiple of its patch size of {patch} pixels")
        positions = resampled(self.net.pos_embed, self.net.num_prefix_tokens, size // patch)
        self.net.set_input_size(img_size=(size, size))
        self.net.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.size, self.dims = size, {"pool": self.net.num_features}
        self.register_buffer("mean", torch.tensor(self.net.pretrained_cfg["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.net.pretrained_cfg["std"]).view(1, 3, 1, 1))
        self.protocol = {
            "network": f"{model} of timm",
            "weights": fingerprint(self.net),
            "resize": f"bicubic, antialiased, {size}",
        }

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        x = resized(images.to(self.mean.device), self.size)
        return {"pool": self.net((x - self.mean) / self.std)}


def resampled(table: Tensor, prefix: int, side: int) -> Tensor:
    """Resizes position embeddings (1, prefix + S * S, D) to (1, prefix + side * side, D) as DINOv2's code does: bicubic
    without antialiasing, by the factor (side + 0.1) / S."""
    grid = table[:, prefix:]
    old = math.isqrt(grid.shape[1])
    if old == side:
        return table
    x = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    x = F.interpolate(x, scale_factor=(side + 0.1) / old, mode="bicubic")
    return torch.cat([table[:, :prefix], x.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@cache
def dino(model: str = PUBLISHED, weights: str | None = None, size: int = 224) -> Dino:
    """Returns a cached network, shared by all metrics with the same arguments."""
    return Dino(model, weights, size)
