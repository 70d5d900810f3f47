"""A training step of DiT-S/2 against diffusers' class of the same size: `python benchmarks/backbone.py`.

Batch 8 of 4 x 32 x 32 latents: forward, squared error, backward. Both are timed in turn for several rounds, in float32
and in bf16 autocast. The table has the median seconds, the ratio theirs / ours (above 1 ours is faster), the share of
the machine's own rate of matrix products in that type, and the peak memory of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.backbones.dit import DiT
from dit.types import Condition

WIDTH, DEPTH, HEADS, PATCH, SIDE = 384, 12, 6, 2, 32
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[], object]


def ours() -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    net = DiT(4, 1000, patch=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS)
    return net, lambda x, t, y: net(x, t, Condition(label=y))


def theirs() -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    from diffusers import DiTTransformer2DModel

    net: Any = DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=4, out_channels=4, num_layers=DEPTH,
        sample_size=SIDE, patch_size=PATCH, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return net, lambda x, t, y: net(x, timestep=t, class_labels=y).sample


def step_of(make: Callable[[], tuple[nn.Module, Callable[..., Tensor]]], kind: str, batch: int) -> Step:
    """One training step without the optimizer, which is the same for both."""
    torch.manual_seed(0)
    net, forward = make()
    x, noise = torch.randn(2, batch, 4, SIDE, SIDE)
    t, y = torch.randint(0, 1000, (batch,)), torch.randint(0, 1000, (batch,))

    def step() -> None:
        net.zero_grad()
        with torch.autocast("cpu", TYPES[kind], enabled=kind != "float32"):
            loss = (forward(x, t.float() if make is ours else t, y).float() - noise).square().mean()
        loss.backward()

    return step


def seconds(work: Step) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matrix_rate(kind: str) -> float:
    """GFLOP/s of products of 2048 x 2048 matrices, the best of several."""
    a = torch.randn(2048, 2048).to(TYPES[kind])
    return 2 * 2048**3 / min(seconds(lambda: a @ a) for _ in range(6)) / 1e9


def highest_memory() -> float:
    """MiB that this process has held at most (Linux)."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak_memory(name: str, kind: str, batch: int) -> float:
    """MiB that two steps add to a fresh process, over what it holds with its libraries alone."""
    command = [sys.executable, __file__, "--memory", name, "--kind", kind, "--batch", str(batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="float32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    makers = {"ours": ours, "theirs": theirs}
    if options.memory:
        import diffusers  # noqa: F401  both processes hold it

        before = highest_memory()
        step = step_of(makers[options.memory], options.kind, options.batch)
        step(), step()
        print(highest_memory() - before)
        return
    with FlopCounterMode(display=False) as counter:
        step_of(ours, "float32", options.batch)()
    flops = counter.get_total_flops()
    print(f"{flops / 1e9:.0f} GFLOP a step, {torch.get_num_threads()} threads")
    print(
        f"{'type':9}{'ours, s':>9}{'theirs, s':>11}{'theirs / ours':>18}{'of matrix rate':>16}{'MiB':>6}{'theirs':>8}"
    )
    for kind in TYPES:
        steps = {name: step_of(make, kind, options.batch) for name, make in makers.items()}
        for step in steps.values():
            step()
        took: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                took[name].append(seconds(step))
        middle = {name: statistics.median(times) for name, times in took.items()}
        ratios = sorted(b / a for a, b in zip(took["ours"], took["theirs"], strict=True))
        share = flops / middle["ours"] / 1e9 / matrix_rate(kind)
        memory = [peak_memory(name, kind, options.batch) for name in makers]
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(
            f"{kind:9}{middle['ours']:9.3f}{middle['theirs']:11.3f}{ratio:>18}{share:16.0%}{memory[0]:6.0f}{memory[1]:8.0f}"
        )


if __name__ == "__main__":
    main()
