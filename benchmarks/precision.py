"""What sampling in another precision changes: `python benchmarks/precision.py RUN [--n 64] [--device auto]`.

Draws the same prompts from the same seeds by the run's own recipe in float32 and in every other precision that the
device has, and prints how far the pictures in [-1, 1] are from those in float32 (largest and mean absolute deviation),
the share of 8-bit values that differ, and the seconds that the second of two passes took.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from hydra.utils import instantiate
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.pipeline import Pipeline, Recipe
from dit.precision import PRECISIONS
from dit.runs import load_run
from dit.scoring.prompts import held_out_prompts
from dit.types import to_pixels


def drawn(pipeline: Pipeline, prompts: list[str], recipe: Recipe, batch_size: int) -> tuple[Tensor, float]:
    """(N, 3, H, W) on the CPU, and the seconds that they took once all was warm."""
    seeds = range(len(prompts))
    pipeline(prompts[:batch_size], seeds[:batch_size], recipe, batch_size)
    start = time.perf_counter()
    images = pipeline(prompts, seeds, recipe, batch_size).images
    return images, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=64, help="pictures")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the network")
    args = parser.parse_args()
    run = load_run(args.run, device=args.device)
    pipeline, cfg, path, step = run.pipeline, run.config, run.path, run.step
    prompts = held_out_prompts(instantiate(cfg.data.module.val).captions, args.n)
    recipe = instantiate(cfg.recipe)
    print(f"{path}, step {step}: {args.n} pictures of {recipe.steps} steps on {pipeline.device}")
    print(f"{'precision':10}{'largest':>10}{'mean':>10}{'8-bit':>8}{'seconds':>9}")
    plain, seconds = drawn(pipeline.sample_in("32", args.compile), prompts, recipe, args.batch_size)
    print(f"{'32':10}{0:10.4f}{0:10.5f}{0:8.1%}{seconds:9.2f}")
    for precision in PRECISIONS[2:]:
        try:
            images, seconds = drawn(pipeline.sample_in(precision, args.compile), prompts, recipe, args.batch_size)
        except ValueError as error:
            print(f"{precision:10} {error}")
            continue
        apart = (images - plain).abs()
        changed = (to_pixels(images) != to_pixels(plain)).double().mean()
        print(f"{precision:10}{apart.max():10.4f}{apart.mean():10.5f}{changed:8.1%}{seconds:9.2f}")


if __name__ == "__main__":
    main()
