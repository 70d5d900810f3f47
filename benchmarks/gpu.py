"""The figures of one GPU, in under ten minutes: `python benchmarks/gpu.py`.

Three tables, all on random weights: training steps (forward, backward, clipping, AdamW) of DiT on 4 x 32 x 32 latents
by precision, with and without torch.compile; sampling with guidance by precision, and how far its latents lie from
float32's; and the networks around the backbone. Rates are the median of several rounds. `--small` tries all of it in
miniature, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.backbones.dit import DiT
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.objective import Objective
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import LogitNormal, UniformTime
from dit.encoders.autoencoder import Identity
from dit.encoders.classes import ClassEncoder
from dit.pipeline import Pipeline, Recipe
from dit.precision import float32_products
from dit.training.optimizer import adamw
from dit.types import Condition, Draw

SIZES = {"S/2": (384, 12, 6), "B/2": (768, 12, 12), "XL/2": (1152, 28, 16)}
TINY = {"tiny": (64, 2, 2)}
SHAPE, CLASSES = (4, 32, 32), 1000
CONF = Path(__file__).parents[1] / "conf"


def backbone(size: tuple[int, int, int], device: str) -> DiT:
    """A DiT whose modulations and head are not zero, so that what it computes depends on its input."""
    torch.manual_seed(0)
    width, depth, heads = size
    with torch.device(device):
        net = DiT(SHAPE[0], CLASSES, width=width, depth=depth, heads=heads)
        for parameter in net.parameters():
            if device != "meta" and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return net


def products(precision: str, device: str) -> AbstractContextManager[None]:
    """float32 products in TF32 inside, where precision says so."""
    return float32_products(torch.device(device), precision)


def kinds(device: str) -> list[tuple[str, bool]]:
    """Precisions, with and without torch.compile; TF32 is CUDA's alone."""
    every = [("32", False), ("tf32", False), ("bf16", False), ("bf16", True)]
    return every if device == "cuda" else [kind for kind in every if kind[0] != "tf32"]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """The median of several rounds, after two that do not count."""
    took = []
    for number in range(rounds + 2):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        if number > 1:
            took.append(time.perf_counter() - start)
    return statistics.median(took)


def matrix_rate(precision: str, device: str) -> float:
    """FLOP/s of products of large square matrices."""
    side = 8192 if device == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    with products(precision, device):
        return 2 * side**3 / seconds(lambda: a @ a, device, 5)


def training(size: tuple[int, int, int], precision: str, compiled: bool, batch: int, device: str, rounds: int) -> str:
    """images/s, the share of the matrix rate, and the peak memory."""
    net = backbone(size, device).train()
    objective = Objective(Linear(), Flow(), LogitNormal())
    optimizer = adamw(net.named_parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    x0, eps = torch.randn(2, batch, *SHAPE, device=device)
    condition = Condition(label=torch.randint(CLASSES, (batch,), device=device))
    u = torch.linspace(0.01, 0.99, batch, dtype=torch.float64)
    if compiled:
        net.compile()

    def loss() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return objective(net, Draw(x0, condition, eps, u)).mean()

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        backbone(size, "meta")(
            torch.empty(batch, *SHAPE, device="meta"), torch.empty(batch, device="meta"),
            Condition(label=torch.zeros(batch, dtype=torch.long, device="meta")),
        )  # fmt: skip
    flops = 3 * counter.get_total_flops()  # the backward pass takes twice the forward's
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with products(precision, device):
        took = seconds(step, device, rounds)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else float("nan")
    return f"{batch / took:12.1f}{flops / took / matrix_rate(precision, device):10.0%}{memory:12.0f}"


def sampling(size: tuple[int, int, int], batch: int, steps: int, device: str, rounds: int) -> Iterator[str]:
    """A row for each precision: images/s, and the distance of its latents to float32's in standard deviations."""
    net = backbone(size, device).eval()
    names = [str(number) for number in range(CLASSES)]
    recipe = Recipe(ddim, UniformTime(), steps, ClassifierFree(4.0))
    exact: Tensor | None = None
    for precision, compiled in kinds(device):
        pipeline = Pipeline(net, Linear(), Flow(), ClassEncoder(names), Identity(), SHAPE)
        pipeline.sample_in(precision, compiled)
        made: list[Tensor] = []
        took = seconds(
            lambda pipeline=pipeline, made=made: made.append(  # type: ignore[misc]
                pipeline(names[:batch], range(batch), recipe, batch).images
            ),
            device,
            rounds,
        )
        exact = made[-1] if exact is None else exact
        off = (made[-1] - exact) / exact.std()
        word = f"{precision}{' compiled' if compiled else ''}"
        yield f"{word:16}{batch / took:12.2f}{off.abs().max():12.2e}{off.abs().mean():12.2e}"


def around(batch: int, device: str, rounds: int, small: bool) -> Iterator[str]:
    """A row for each precision and direction of Stable Diffusion's autoencoder at 256 pixels: images/s."""
    from diffusers import AutoencoderKL

    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / "autoencoder" / "sd.yaml").config)
    if small:
        config |= {"block_out_channels": [32] * 4}
    coder: Any = AutoencoderKL(**{k: v for k, v in config.items() if not k.startswith("_")})
    coder.to(device).eval()
    side = 64 if small else 256
    images = torch.randn(batch, 3, side, side, device=device)
    latents = torch.randn(batch, 4, side // 8, side // 8, device=device)
    for name, work in (("encode", lambda: coder.encode(images)), ("decode", lambda: coder.decode(latents))):
        for precision in dict.fromkeys(precision for precision, _ in kinds(device)):
            autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
            with torch.inference_mode(), products(precision, device), autocast:
                took = seconds(work, device, rounds)
            yield f"{f'SD autoencoder, {name}':28}{precision:8}{batch / took:12.1f}"


def freed(device: str) -> None:
    """Gives back what the row before has held."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--small", action="store_true", help="a tiny network, few rounds, on any machine")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.small:
        sys.exit("there is no CUDA device; --small tries the benchmark in miniature on the CPU")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes, batch, rounds = (TINY, 4, 1) if options.small else (SIZES, options.batch, options.rounds)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, batch {batch}\n")
    print(f"{'training':24}{'images/s':>12}{'of rate':>10}{'peak, MiB':>12}")
    for name, size in sizes.items():
        for precision, compiled in kinds(device):
            label = f"DiT-{name} {precision}{' compiled' if compiled else ''}"
            try:
                row = training(size, precision, compiled, batch, device, rounds)
            except torch.OutOfMemoryError:
                row = f"{'out of memory':>34}"
            print(f"{label:24}{row}", flush=True)
            freed(device)
    name, size = list(sizes.items())[-1]
    print(f"\nDiT-{name}, 20 Euler steps, guidance 4 {'images/s':>12}{'max off':>12}{'mean off':>12}")
    for row in sampling(size, batch // 2, 2 if options.small else 20, device, max(rounds // 2, 1)):
        print(f"{'':20}{row}", flush=True)
        freed(device)
    print(f"\n{'around it':36}{'images/s':>12}")
    for row in around(batch // 2, device, rounds, options.small):
        print(row, flush=True)


if __name__ == "__main__":
    main()
