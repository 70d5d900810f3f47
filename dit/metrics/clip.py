"""How well pictures agree with their prompts, by the cosine of an open_clip model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.hub import load_open_clip
from dit.metrics.base import ImageMetric


class Clip(nn.Module):
    """An open_clip model with its tokenizer and its picture preprocessing."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, tokenizer: object, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.net, self.tokenizer, self.size = model, tokenizer, size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.dim = self.image_features(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, dim) float32, before normalisation. Other sizes are resized, bicubic."""
        x = images.to(self.mean.device).float() / 255
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.net.encode_image((x - self.mean) / self.std).float()  # type: ignore[operator]

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, dim) float32, before normalisation."""
        tokens = self.tokenizer(list(texts)).to(self.mean.device)  # type: ignore[operator]
        return self.net.encode_text(tokens).float()  # type: ignore[operator]


@cache
def load_clip(model: str, pretrained: str | None = None) -> Clip:
    """model: an open_clip name with its `pretrained` tag or file, `local-dir:FOLDER`, or the name of a model that
    ships with dit. Raises ValueError when the weights are not to be had."""
    remedy = "give a local file or a known tag as `pretrained` of the metric, or leave the metric out"
    net, tokenizer = load_open_clip(model, pretrained, remedy)
    config = net.visual.preprocess_cfg
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]
    return Clip(net, tokenizer, size, config["mean"], config["std"])


class ClipScore(ImageMetric):
    """100 times the mean cosine of picture and prompt, in a column called `name`.

    This is torchmetrics' scale without its clamp; Hessel et al. 2021 (arXiv:2104.08718) take 2.5 max(cos, 0).
    """

    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, name: str, model: str, pretrained: str | None = None) -> None:
        super().__init__()
        self.label, self.clip = name, load_clip(model, pretrained)
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N,) float64, on the network's device."""
        pictures = F.normalize(torch.cat([self.clip.image_features(part) for part in images.split(64)]).double())
        distinct = sorted(set(prompts))
        texts = F.normalize(self.clip.text_features(distinct).double())
        return (pictures * texts[[distinct.index(p) for p in prompts]]).sum(1)

    def reference(self, images: Tensor, captions: Sequence[str]) -> None:
        """The self-test: on real pictures the true caption must beat another picture's in at least three of four."""
        others = [*captions[1:], captions[0]]
        differ = torch.tensor([a != b for a, b in zip(captions, others, strict=True)])
        wins = (self.cosines(images, captions) > self.cosines(images, others)).cpu()[differ].double()
        if differ.any() and wins.mean() < 0.75:
            raise ValueError(
                f"{self.label} prefers the true caption in only {float(wins.mean()):.0%} of {len(wins)} real pictures, "
                f"where chance is 50%: this model cannot judge this data; leave {self.label} out of metric"
            )

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        self.total += self.cosines(images, prompts).sum()
        self.count += len(images)

    def compute(self) -> dict[str, float]:
        return {self.label: float(100 * self.total / self.count)}
