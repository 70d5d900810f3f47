"""Frozen networks that compute feature vectors of pictures, once per batch for all metrics that share them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Self
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.errors import first_line
from dit.hub import load_open_clip
from dit.tensors import fingerprint, load_tensors
from dit.types import CaptionedImages


class Extractor(nn.Module):
    """Maps pictures (N, 3, H, W) uint8, on any device, to named features (N, dim) float32 on the network's device.

    dims: the width of each named feature. protocol: everything besides the pictures that changes the features: the
    network, a hash of its weights, and the resize. The features of the last batch are cached, so that metrics with the
    same extractor need one forward pass. Subclasses implement `extract`.
    """

    dims: Mapping[str, int]
    protocol: Mapping[str, str]
    is_fitted_on_data = False  # True: `fit` must be called before the first picture

    def __init__(self, slice_size: int) -> None:
        super().__init__()
        self.training = False
        self.slice_size = slice_size
        self._last: tuple[Tensor, int, dict[str, Tensor]] | None = None

    @property
    def fingerprint(self) -> str:
        return " ".join(self.protocol.values())

    def train(self, mode: bool = True) -> Self:
        """Keeps the network in eval mode when the surrounding module trains, so that norm statistics do not change."""
        return super().train(False)

    def fit(self, source: CaptionedImages, cache_dir: Path) -> None:
        """Fits an extractor with `is_fitted_on_data` on pictures, or reads it from the cache."""

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the features of a slice of pictures."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self._last is None or self._last[0] is not images or self._last[1] != images._version:
            with torch.inference_mode():
                parts = [self.extract(part) for part in images.split(self.slice_size)]
            features = {name: torch.cat([part[name].float() for part in parts]) for name in self.dims}
            self._last = (images, images._version, features)
        return self._last[2]


class Inception(Extractor):
    """torch-fidelity's InceptionV3, the network of FID, with the resize of TensorFlow 1.

    pool: 2048 features after the final average pooling (FID, KID). logits: 1008, without bias (Inception score).
    spatial: 7 channels of 17 x 17 positions, as in ADM's sFID. weights: a local state dict; None downloads those of
    torch-fidelity. Raises ValueError if the weights cannot be loaded.
    """

    def __init__(self, weights: str | None = None, slice_size: int = 32) -> None:
        super().__init__(slice_size)
        self.dims = {"pool": 2048, "logits": 1008, "spatial": 2023}
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        remedy = "give the file with metric.NAME.extractor.weights=PATH, or leave these metrics out"
        if weights is not None:
            if not Path(weights).is_file():
                raise ValueError(f"Inception weights {weights} do not exist; {remedy}")
            try:
                load_tensors(Path(weights))  # torch-fidelity unpickles any object; this load accepts only tensors
            except ValueError as error:
                raise ValueError(f"Inception weights {error}") from None
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                self.net = FeatureExtractorInceptionV3(
                    "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights
                )
        except (URLError, OSError, TimeoutError) as error:
            raise ValueError(f"the Inception weights cannot be downloaded ({error}); {remedy}") from None
        except RuntimeError as error:
            raise ValueError(f"{weights} is not an InceptionV3 of torch-fidelity: {first_line(error)}") from None
        self.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        resize = "bilinear as TensorFlow 1, 299"
        self.protocol = {"network": "InceptionV3 of torch-fidelity", "weights": fingerprint(self.net), "resize": resize}

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        spatial: list[Tensor] = []
        branch = self.net.Mixed_6d.branch1x1  # mixed_6/conv in TensorFlow's graph
        hook = branch.register_forward_hook(lambda module, inputs, output: spatial.append(output[:, :7]))
        try:
            pool, logits = self.net(images.to(next(self.net.parameters()).device))
        finally:
            hook.remove()
        return {"pool": pool, "logits": logits, "spatial": spatial[0].permute(0, 2, 3, 1).flatten(1)}


@cache
def inception(weights: str | None = None) -> Inception:
    """Returns a cached network, shared by all metrics with the same arguments."""
    return Inception(weights)


class OpenClip(Extractor):
    """An open_clip model with its tokenizer. pool: the features of the image tower before normalisation. Pictures are
    resized to the model's input size, bicubic with antialiasing.

    model: an open_clip name with its `pretrained` tag or file, `local-dir:FOLDER`, or the name of a model that ships
    with dit. antialias: False for the resize of CMMD's own code. Raises ValueError if the weights cannot be loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: str, pretrained: str | None = None, antialias: bool = True, slice_size: int = 256
    ) -> None:
        super().__init__(slice_size)
        self.antialias = antialias
        remedy = "give a local file or a known tag as `pretrained` of the metric, or leave the metric out"
        self.net, self.tokenizer = load_open_clip(model, pretrained, remedy)
        config = self.net.visual.preprocess_cfg
        self.size = config["size"] if isinstance(config["size"], int) else config["size"][0]
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1))
        with torch.inference_mode():
            self.dims = {"pool": self.extract(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))["pool"].shape[1]}
        resize = f"bicubic, {'antialiased, ' if antialias else ''}{self.size}"
        name = f"{Path(model).name} of open_clip"
        self.protocol = {"network": name, "weights": fingerprint(self.net), "resize": resize}

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        x = resized(images.to(self.mean.device), self.size, self.antialias)
        return {"pool": self.net.encode_image((x - self.mean) / self.std)}

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Returns the features (N, dim) float32 of N texts, before normalisation."""
        tokens = self.tokenizer(list(texts)).to(self.mean.device)
        return self.net.encode_text(tokens).float()


@cache
def open_clip_model(model: str, pretrained: str | None = None, antialias: bool = True) -> OpenClip:
    """Returns a cached network, shared by all metrics with the same arguments."""
    return OpenClip(model, pretrained, antialias)


def resized(images: Tensor, size: int, antialias: bool = True) -> Tensor:
    """Resizes (N, 3, H, W) uint8 to (N, 3, size, size) float32 in [0, 1], bicubic if the size differs."""
    x = images.float() / 255
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=antialias).clamp(0, 1)
    return x
