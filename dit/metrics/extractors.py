"""Networks that turn pictures into feature vectors. Each is frozen: (N, 3, H, W) uint8 -> (N, dim) float32,
on the device that the network was moved to."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable
from typing import Protocol
from urllib.error import URLError

import torch
from torch import Tensor, nn

from dit.errors import first_line


class Extractor(Protocol):
    dim: int

    def __call__(self, images: Tensor) -> Tensor: ...


def in_slices(network: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    with torch.inference_mode():
        return torch.cat([network(part).float() for part in images.split(size)])


class Inception(nn.Module):
    """torch-fidelity's InceptionV3, 2048 pool features: the network that FID is defined by.

    weights: a local state dict; None lets torch-fidelity download its own. Raises ValueError when neither is to be had.
    """

    dim = 2048

    def __init__(self, weights: str | None = None, slice_size: int = 32) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        remedy = "give the file with metric.fid.extractor.weights=PATH, or leave fid out"
        if weights is not None:
            try:  # torch-fidelity would unpickle anything; what loads here holds tensors alone
                torch.load(weights, map_location="cpu", weights_only=True)
            except FileNotFoundError:
                raise ValueError(f"Inception weights {weights} do not exist; {remedy}") from None
            except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
                raise ValueError(f"Inception weights {weights} cannot be read safely: {error}") from None
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                self.net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
        except (URLError, OSError, TimeoutError) as error:
            raise ValueError(f"the Inception weights cannot be downloaded ({error}); {remedy}") from None
        except RuntimeError as error:
            raise ValueError(f"{weights} holds no InceptionV3 of torch-fidelity: {first_line(error)}") from None
        self.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.slice_size = slice_size

    def forward(self, images: Tensor) -> Tensor:
        device = next(self.net.parameters()).device
        return in_slices(lambda part: self.net(part.to(device))[0], images, self.slice_size)


class ClipImage(nn.Module):
    """The image tower of an open_clip model, named as in `dit.metrics.clip.load_clip`."""

    def __init__(self, model: str, pretrained: str | None = None, slice_size: int = 256) -> None:
        super().__init__()
        from dit.metrics.clip import load_clip

        self.clip = load_clip(model, pretrained)
        self.dim, self.slice_size = self.clip.dim, slice_size

    def forward(self, images: Tensor) -> Tensor:
        return in_slices(self.clip.image_features, images, self.slice_size)
