"""Throughput of batching at the network call: 40 mixed requests at once against the same requests one at a time.

    python benchmarks/serve.py --run RUN

Every request has one picture and its own sampler, number of steps, guidance scale, prompt and seed."""

import argparse
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from dit.components import component
from dit.generation.batching import Batcher, shared
from dit.pipeline import Pipeline, Recipe
from dit.runs import Run, load_run
from dit.types import to_pixels

SAMPLERS = ("euler", "heun", "dpmpp_2m", "unipc_2", "ddpm")
Asked = tuple[str, int, Recipe]  # prompt, seed, recipe
STEPS, SCALES = (4, 8, 12, 16, 24), (1.0, 2.0, 4.0)


def requests_of(run: Run, count: int) -> list[Asked]:
    draw = random.Random(0)
    prompts = list(run.config.data.prompts)
    return [
        (
            draw.choice(prompts),
            seed,
            run.recipe(draw.choice(STEPS), component("sampler", draw.choice(SAMPLERS)), guidance=draw.choice(SCALES)),
        )
        for seed in range(count)
    ]


def alone(pipeline: Pipeline, requests: list[Asked]) -> list[torch.Tensor]:
    return [pipeline([prompt], [seed], recipe).images for prompt, seed, recipe in requests]


def together(pipeline: Pipeline, batcher: Batcher, requests: list[Asked]) -> list[torch.Tensor]:
    def sample(request: Asked) -> torch.Tensor:
        prompt, seed, recipe = request
        with batcher.sampling():
            return pipeline([prompt], [seed], recipe).images

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(sample, requests))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--run", required=True)
    words.add_argument("--count", type=int, default=40)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--max-rows", type=int, default=64)
    args = words.parse_args()
    run = load_run(args.run, device="cpu")
    requests = requests_of(run, args.count)
    pipeline, batcher = shared(run.pipeline, args.max_rows)
    times: dict[str, list[float]] = {"one at a time": [], "together": []}
    for _ in range(args.rounds):  # alternating, so that other work on the machine slows both
        start = time.perf_counter()
        expected = alone(run.pipeline, requests)
        middle = time.perf_counter()
        made = together(pipeline, batcher, requests)
        times["one at a time"].append(middle - start)
        times["together"].append(time.perf_counter() - middle)
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, made, strict=True))
    pixels = max(
        int((to_pixels(a).int() - to_pixels(b).int()).abs().max()) for a, b in zip(expected, made, strict=True)
    )
    for name, seconds in times.items():
        print(f"{name:>14}: {statistics.median(seconds):.2f} s ({', '.join(f'{s:.2f}' for s in seconds)})")
    ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
    print(f"{args.count} requests, {ratio:.2f} times as fast, {batcher.rows / batcher.calls:.1f} rows a call")
    print(f"largest difference of a picture in [-1, 1]: {difference:.1e}; of a pixel: {pixels} of 255")
    batcher.close()


if __name__ == "__main__":
    main()
