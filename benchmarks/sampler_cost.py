"""What a sampler costs besides its network: `python benchmarks/sampler_cost.py`.

Each sampler takes 20 guided steps with a network that answers at once; the time of a call, arithmetic of sampler,
prediction, guidance and noise together, is set against two calls of a DiT-S/2 (33 M parameters) on 4 x 32 x 32 latents,
which guidance costs. The table has the median of several rounds, in which all are timed in turn, on the linear path and
on 1000 betas.
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
from dit.backbones.text_dit import TextDiT
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.noise import Noise
from dit.diffusion.path import DiscreteBetas, Linear, linear_betas
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
    net = TextDiT(channels=4, token_dim=64, pooled_dim=64, width=384, depth=12, heads=6, patch=2, text_depth=0).eval()
    x = torch.randn(options.batch, *shape)
    text = Condition(
        torch.randn(options.batch, 8, 64),
        torch.ones(options.batch, 8, dtype=torch.bool),
        torch.randn(options.batch, 64),
    )
    paths = {"linear": Linear(), "ddpm": DiscreteBetas(linear_betas(1000))}
    samplers = {
        f.stem: instantiate(OmegaConf.load(f))[f.stem]
        for f in sorted(CONF.glob("*.yaml"))
        if f.stem not in ("all", "dopri5", "ddpm_learned")
    }

    def call() -> None:
        net(x, torch.full((options.batch,), 500.0), text)

    call()
    network: list[float] = []
    own: dict[tuple[str, str], list[float]] = {(name, path): [] for name in samplers for path in paths}
    for _ in range(options.rounds):
        network.append(2 * seconds(call))
        for name, on in own:
            denoiser = Denoiser(lambda x, t, c: x, paths[on], Flow())
            denoise = ClassifierFree(2.0)(denoiser, text, text[:1])
            noise = Noise(range(options.batch), shape)
            took = seconds(samplers[name], denoise, x, UniformTime(0.99)(paths[on], STEPS), noise)
            own[name, on].append(took / (denoiser.rows / (2 * options.batch)))
    whole = statistics.median(network)
    print(f"two calls of DiT-S/2, batch {options.batch}: {1000 * whole:.1f} ms ({torch.get_num_threads()} threads)")
    print(f"{'sampler':18}" + "".join(f"{on + ', ms':>12}{'share':>9}" for on in paths))
    for name in samplers:
        middle = [statistics.median(own[name, on]) for on in paths]
        print(f"{name:18}" + "".join(f"{1000 * took:12.3f}{100 * took / whole:8.2f}%" for took in middle))


if __name__ == "__main__":
    main()
