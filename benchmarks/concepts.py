"""What a rule in words reaches on shapes: `python benchmarks/concepts.py [--run RUN]` calibrates "no star" with the
CLIP that ships with dit on pictures without a star, and prints which share of further pictures it refuses, with and
without a star by the exact checker. The pictures are drawn, or samples of a run with --run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project runs from its own folder

from dit.data.shapes import BACKGROUNDS, COLOURS, SIZES, Shapes
from dit.data.shapes_checker import detect_objects
from dit.evaluation.statistics import text_with_interval, wilson
from dit.generation.concepts import calibrate, encoded, similarity
from dit.metrics.extractors import open_clip_model
from dit.runs import load_run

TEXTS = {
    "a star": ["a star"],
    "48 captions": [f"a {s} {c} star on a {b} background" for s in SIZES for c in COLOURS for b in BACKGROUNDS],
}


def pictures(count: int, run: str | None) -> Tensor:
    """Returns pictures (N, 3, 32, 32) uint8: drawn, or samples of the same captions."""
    source = Shapes("val", count)
    if run is None:
        return torch.from_numpy(source.images(np.arange(count)))
    return load_run(run).sample(source.captions, steps=4, batch_size=250).pixels


def has_star(images: Tensor) -> np.ndarray:
    """Returns which pictures have a star, (N,) bool."""
    return np.array([any(o.shape == "star" for o in detect_objects(i.permute(1, 2, 0).numpy())[0]) for i in images])


def share(right: np.ndarray) -> str:
    return text_with_interval(right.mean(), wilson(int(right.sum()), len(right)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", help="a run of the default experiment, whose samples are checked")
    parser.add_argument("--count", type=int, default=6000, help="half of them are for calibration")
    options = parser.parse_args()
    images, clip = pictures(options.count, options.run), open_clip_model("shapes_clip")
    stars, first = has_star(images), np.arange(len(images)) < len(images) // 2
    print("| texts | stated rate, its interval | refused without a star | recall: refused with a star | precision |")
    print("|---|---|---|---|---|")
    for name, texts in TEXTS.items():
        scores = similarity(clip, images, encoded(clip, texts))
        for rate in (0.001, 0.01, 0.05):
            found = calibrate(scores[torch.from_numpy(first & ~stars)], rate)
            refused = (scores > found.threshold).numpy()
            columns = [refused[~first & ~stars], refused[~first & stars], stars[~first & refused]]
            stated = text_with_interval(found.false_alarm_rate, found.interval)
            print(f"| {name} | {stated} | {' | '.join(map(share, columns))} |", flush=True)


if __name__ == "__main__":
    main()
