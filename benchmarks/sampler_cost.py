"""What a sampler costs besides its network: `python benchmarks/sampler_cost.py`.

Each sampler takes 20 steps with a network that answers at once; the time of a call, arithmetic of sampler, prediction
and guidance together, is set against one call of a DiT-S/2 (33 M parameters) on 4 x 32 x 32 latents. The table has the
median of several rounds, in which both are timed in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.backbones.dit import DiT
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.noise import Noise
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.time import UniformTime
from dit.types import Condition

CONF = Path(__file__).parents[1] / "conf" / "sampler"
STEPS = 20


def seconds(work: Callable[..., object], *args: object) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    shape = (4, 32, 32)
    net = DiT(channels=4, token_dim=64, pooled_dim=64, width=384, depth=12, heads=6, patch=2, text_depth=0).eval()
    x, noise = torch.randn(options.batch, *shape), Noise(range(options.batch), shape)
    text = Condition(
        torch.randn(options.batch, 8, 64),
        torch.ones(options.batch, 8, dtype=torch.bool),
        torch.randn(options.batch, 64),
    )
    points = UniformTime(0.99)(Linear(), STEPS)
    samplers = {
        f.stem: instantiate(OmegaConf.load(f))[f.stem]
        for f in sorted(CONF.glob("*.yaml"))
        if f.stem not in ("all", "dopri5")
    }

    def call() -> None:
        net(x, torch.full((options.batch,), 500.0), text)

    call()
    network: list[float] = []
    own: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(options.rounds):
        network.append(seconds(call))
        for name, sampler in samplers.items():
            denoiser = Denoiser(lambda x, t, c: x, Linear(), Flow())
            denoise = ClassifierFree(1.0)(denoiser, text, None)
            took = seconds(sampler, denoise, x, points, noise)
            own[name].append(took / (denoiser.rows / options.batch))
    whole = statistics.median(network)
    print(f"one call of DiT-S/2, batch {options.batch}: {1000 * whole:.1f} ms ({torch.get_num_threads()} threads)")
    print(f"{'sampler':18}{'ms a call':>10}{'share':>9}")
    for name, times in own.items():
        middle = statistics.median(times)
        print(f"{name:18}{1000 * middle:10.3f}{100 * middle / whole:8.2f}%")


if __name__ == "__main__":
    main()
