"""Which copies of training pictures each extractor finds, and how often it takes new real pictures for copies:
python benchmarks/copies.py DIR

DIR has pictures in any layout of data=folder; a quarter is held out. Of the others, all are training pictures, and some
are copied with a change. A picture is a copy if `metric=nearest_train` says so."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the project runs from its own folder

from dit.data.folder import Folder  # noqa: E402
from dit.data.order import subset  # noqa: E402
from dit.metrics.extractors import Extractor, open_clip_model  # noqa: E402
from dit.metrics.nearest_train import NearestTrain  # noqa: E402
from dit.metrics.own_features import OwnFeatures, Pixels  # noqa: E402


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Returns (N, 3, H, W) moved down and to the right by some pixels; the border is repeated."""
    sides = images.shape[-2:]
    return F.pad(images.float(), (pixels, 0, pixels, 0), mode="replicate").to(torch.uint8)[..., : sides[0], : sides[1]]


def noisy(images: Tensor, level: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + level * noise).round().clamp(0, 255).to(torch.uint8)


def kinds(copied: Tensor, new: Tensor) -> dict[str, Tensor]:
    return {
        "new pictures (false alarms)": new,
        "exact": copied,
        "noise of 12 levels": noisy(copied, 12),
        "shift of 2": shifted(copied, 2),
        "shift of 4": shifted(copied, 4),
        "mirror": copied.flip(-1),
        "mirror, shift of 2, noise": noisy(shifted(copied.flip(-1), 2), 12),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="DIR")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--count", type=int, default=300, help="copies of each kind")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    given = parser.parse_args()
    train, val = (Folder(given.path, given.size, s, captions="none", val_share=0.25) for s in ("train", "val"))
    own, start = OwnFeatures(), time.process_time()
    own.fit(train, given.cache_dir)
    fitting = time.process_time() - start
    real = torch.from_numpy(train.images(np.arange(len(train))))
    copied = real[torch.from_numpy(subset(len(real), given.count))]
    pictures = kinds(copied, torch.from_numpy(val.images(np.arange(len(val)))))
    extractors: dict[str, Extractor] = {"pixels": Pixels(), "own": own, "shapes_clip": open_clip_model("shapes_clip")}
    found: dict[str, list[float]] = {}
    for name, extractor in extractors.items():
        metric = NearestTrain("nearest", extractor)
        metric.update(real, real=True)
        found[name] = []
        for images in pictures.values():
            metric.reset()
            metric.update(images)
            found[name].append(metric.compute()["nearest_copies"])
    print(f"{len(real)} training pictures, {len(copied)} copies of each kind, {len(val)} new pictures; fitted in")
    print(f"{fitting:.0f} seconds of one core")
    print(f"| share taken for copies | {' | '.join(extractors)} |\n|---|{'---|' * len(extractors)}")
    for row, kind in enumerate(pictures):
        print(f"| {kind} | {' | '.join(f'{found[name][row]:.3f}' for name in extractors)} |")


if __name__ == "__main__":
    main()
