"""Which share of slightly changed copies of training pictures is found, by each measure of `dit.generation.duplicates`
at its own threshold: `python benchmarks/duplicates.py [FOLDER_OF_PHOTOGRAPHS --size 32]`."""

from __future__ import annotations

import argparse
import io

import numpy as np
from PIL import Image

from dit.data.digits import Digits
from dit.data.order import subset
from dit.data.picture_folder import PictureFolder
from dit.data.shapes import Shapes
from dit.generation.duplicates import MEASURES, Duplicates, by_caption
from dit.types import CaptionedImages

COUNT = 1000  # pictures of each kind


def noisy(images: np.ndarray) -> np.ndarray:
    draw = np.random.default_rng(0).normal(0, 4, images.shape).round()
    return np.clip(images + draw, 0, 255).astype(np.uint8)


def brighter(images: np.ndarray) -> np.ndarray:
    return np.clip(images.astype(int) + 6, 0, 255).astype(np.uint8)


def compressed(images: np.ndarray) -> np.ndarray:
    found = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "JPEG", quality=75)
        found.append(np.asarray(Image.open(buffer)).transpose(2, 0, 1))
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", nargs="?")
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    sources: dict[str, CaptionedImages] = {"digits": Digits("train"), "shapes": Shapes("train", COUNT)}
    if args.photographs:
        sources["photographs"] = PictureFolder(args.photographs, args.size)
    print("| pictures | measure | threshold | noise of 4 | 6 brighter | JPEG 75 |\n|---|---|---|---|---|---|")
    for name, source in sources.items():
        rows = np.sort(subset(len(source), COUNT))
        images = source.images(rows)
        captions = [source.captions[row] for row in rows] if name != "photographs" else [""] * len(rows)
        for label, build in MEASURES.items():
            measure = build()
            found = Duplicates(measure, by_caption(captions, measure.describe(images)))
            shares = []
            for change in (noisy, brighter, compressed):
                pairs = zip(measure.describe(images), measure.describe(change(images)), strict=True)
                shares.append(
                    np.mean([measure.distances(one, copy[None])[0] <= found.threshold for one, copy in pairs])
                )
            cells = " | ".join(f"{share:.2f}" for share in shares)
            print(f"| {name} | {label} | {found.threshold:.3g} {measure.unit} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
