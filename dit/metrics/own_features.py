"""Extractors without downloads: the pixels, and a small network that is fitted on the pictures at hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from dit.code_digest import code_digest
from dit.files import replacing
from dit.metrics.extractors import Extractor, resized
from dit.tensors import fingerprint, load_tensors
from dit.types import CaptionedImages

MIN_PICTURES, MAX_PICTURES = 16, 20_000  # pictures that the network is fitted on, a fixed random subset
BATCH, TEMPERATURE = 128, 0.1
SHIFT_DIVISOR, NOISE = 8, 24.0  # of views: an eighth of the side at most; the largest standard deviation in grey values


class Pixels(Extractor):
    """The pixels of pictures in [-1, 1], resized to `size`, bicubic with antialiasing. pool: (N, 3 size^2)."""

    def __init__(self, size: int = 16, slice_size: int = 1024) -> None:
        super().__init__(slice_size)
        self.size, self.dims = size, {"pool": 3 * size**2}
        self.protocol = {"network": "none, the pixels", "resize": f"bicubic, antialiased, {size}"}
        self.register_buffer("place", torch.empty(0))

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        return {"pool": 2 * resized(images.to(self.get_buffer("place").device), self.size).flatten(1) - 1}


class OwnFeatures(Extractor):
    """A small convolutional network that `fit` trains on pictures at hand, without labels: two random views of a
    picture (shifted, mirrored, with noise, brighter or darker) are to be alike, and views of different pictures are not
    (SimCLR: Chen et al. 2020, arXiv:2002.05709, eq. 1).

    pool: (N, 4 width), averages over the places. Pictures are resized to `size` pixels. steps: of the fit. Scores of
    networks that were fitted on different pictures are not comparable; the protocol names the pictures and the weights.
    """

    is_fitted_on_data = True

    def __init__(self, size: int = 32, width: int = 32, steps: int = 400, seed: int = 0, slice_size: int = 256) -> None:
        super().__init__(slice_size)
        self.size, self.width, self.steps, self.seed = size, width, steps, seed
        self.dims = {"pool": 4 * width}
        self.protocol = {"network": "self-supervised, not fitted yet"}
        with torch.random.fork_rng():
            self.net = network(width)
        self.is_fitted = False

    def fit(self, source: CaptionedImages, cache_dir: Path) -> None:
        """Fits the network on at most MAX_PICTURES pictures of `source`, or reads it from `cache_dir`, whose file is
        named by the pictures, the settings and the code. Raises ValueError for fewer than MIN_PICTURES pictures."""
        if len(source) < MIN_PICTURES:
            raise ValueError(
                f"the extractor `own` is fitted on pictures, and {len(source)} are fewer than {MIN_PICTURES}; choose "
                f"extractor=pixels"
            )
        settings = (self.size, self.width, self.steps, self.seed)
        key = repr((source.fingerprint, settings, code_digest("metrics/own_features", "metrics/extractors")))
        file = cache_dir / f"own_features_{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"
        device = next(self.net.parameters()).device
        if not file.is_file():
            from safetensors.torch import save_file

            with torch.random.fork_rng(), torch.inference_mode(False):
                torch.manual_seed(self.seed)
                fitted = fitted_network(source, self.size, self.width, self.steps, device)
            with replacing(file) as growing:
                save_file({name: value.cpu().contiguous() for name, value in fitted.state_dict().items()}, growing)
        self.net.load_state_dict(load_tensors(file))
        self.net.requires_grad_(False)
        self._last, self.is_fitted = None, True
        self.protocol = {
            "network": f"self-supervised on the pictures at hand, width {self.width}",
            "weights": fingerprint(self.net),
            "fitted_on": source.fingerprint,
            "resize": f"bicubic, antialiased, {self.size}",
        }

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        if not self.is_fitted:
            raise ValueError("the extractor `own` is not fitted; call its `fit` with pictures first")
        x = 2 * resized(images.to(next(self.net.parameters()).device), self.size) - 1
        return {"pool": self.net(x)}


def network(width: int) -> nn.Sequential:
    """Returns the network, (N, 3, H, W) in [-1, 1] -> (N, 4 width)."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def fitted_network(source: CaptionedImages, size: int, width: int, steps: int, device: torch.device) -> nn.Sequential:
    """Returns the network after `steps` steps of Adam on pairs of views. Draws from torch's global random numbers on
    the CPU."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    rows = np.sort(order[:MAX_PICTURES].numpy())
    parts = [torch.from_numpy(source.images(part)) for part in np.array_split(rows, -(-len(rows) // 256))]
    pictures = torch.cat([resized(part, size) for part in parts]) * 2 - 1
    net = network(width).to(device)
    head = nn.Sequential(nn.SiLU(), nn.Linear(4 * width, 2 * width)).to(device)  # only for the loss
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="fitting the extractor", unit="step", leave=False):
        batch = pictures[torch.randperm(len(pictures))[:BATCH]]
        pairs = torch.cat([views(batch), views(batch)]).to(device)
        loss = contrast(F.normalize(head(net(pairs))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def views(images: Tensor) -> Tensor:
    """Returns a random view of each picture (N, 3, H, W) in [-1, 1]."""
    n, _, height, width = images.shape
    largest = height // SHIFT_DIVISOR
    shifts = torch.randint(-largest, largest + 1, (2, n, 1))
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)  # (N, H); the border is repeated
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)  # mirrored
    moved = images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    gain, offset = 1 + 0.1 * torch.randn(n, 1, 1, 1), 0.1 * torch.randn(n, 1, 1, 1)
    noise = torch.rand(n, 1, 1, 1) * (NOISE / 127.5) * torch.randn_like(moved)
    return moved * gain + offset + noise


def contrast(features: Tensor) -> Tensor:
    """Returns SimCLR's loss (eq. 1) of unit features (2N, D), in which rows i and N + i are views of one picture."""
    n = len(features) // 2
    similar = features @ features.T / TEMPERATURE
    similar.fill_diagonal_(-torch.inf)
    return F.cross_entropy(similar, torch.arange(2 * n, device=features.device).roll(n))
