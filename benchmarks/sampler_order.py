"""How fast each sampler's error falls, on a problem whose answer is known: `python benchmarks/sampler_order.py`.

The data is a ring of eight Gaussians in the plane, whose exact denoiser is a formula, on the linear path: wide ones for
the order, narrow ones for the distance. The table has

  order    the observed order of convergence, 64 to 256 steps uniform in log-SNR, against a solution of 512 RK4 steps
  @N       how far 8,192 samples are from the data at no more than N network calls: each sample's distance to the
           nearest centre, in standard deviations, against the law that the data has (Wasserstein-1)

and the plot both as curves. The distance has a floor, that of as many true data. Times are uniform in t for it, and the
noise is the same for all samplers. Every file in conf/sampler takes part but dopri5, whose steps are its own.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

mpl.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.diffusion.noise import Noise
from dit.diffusion.path import Linear, Point
from dit.diffusion.prediction import Estimate
from dit.diffusion.sampler.runge_kutta import rk4
from dit.diffusion.time import UniformTime, points_at

CONF = Path(__file__).parents[1] / "conf" / "sampler"
# dopri5 chooses its own steps, ddim is euler, and ddpm_learned needs a network that learns the variance
LEFT_OUT = {"all", "dopri5", "ddim", "ddpm_learned"}
BUDGETS = (8, 16, 32)
SAMPLES = 8192
WIDE, NARROW = 0.4, 0.05  # standard deviations: smooth enough to show an order, sharp enough to be hard


class Ring:
    """Eight Gaussians on a circle of radius 1.3; counts the calls of its denoiser."""

    def __init__(self, std: float) -> None:
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        self.means = 1.3 * torch.stack([angle.cos(), angle.sin()], dim=1)
        self.std, self.calls = std, 0

    def draw(self, count: int, seed: int) -> Tensor:
        """(count, 2) float64 data."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(8, (count,), generator=generator)
        return self.means[which] + self.std * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    def distance(self, x: Tensor) -> float:
        """How far the radii of x (N, 2) around their nearest centres are from their law, Rayleigh's."""
        radius = torch.cdist(x, self.means).min(1).values.sort().values / self.std
        u = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
        return float((radius - (-2 * torch.log1p(-u)).sqrt()).abs().mean())

    def __call__(self, x: Tensor, point: Point) -> Estimate:
        self.calls += 1
        variance = point.alpha**2 * self.std**2 + point.sigma**2
        off = x[:, None] - point.alpha * self.means  # (N, 8, 2)
        share = (-off.square().sum(-1) / (2 * variance)).softmax(1)[..., None]
        x0 = (share * (self.means + point.alpha * self.std**2 / variance * off)).sum(1)
        return Estimate.of_x0(x, x0, point)


def samplers() -> dict[str, Callable[..., Tensor]]:
    files = [f for f in sorted(CONF.glob("*.yaml")) if f.stem not in LEFT_OUT]
    return {f.stem: next(iter(instantiate(OmegaConf.load(f)).values())) for f in files}


class Stochastic(Exception):
    """The sampler draws noise."""


class NoNoise:
    def __call__(self, here: Point, there: Point) -> Tensor:
        raise Stochastic

    def fork(self, key: int) -> NoNoise:
        return self


def orders(sampler: Callable[..., Tensor], start: Tensor, exact: Tensor) -> tuple[float, list[tuple[int, float]]]:
    """(observed order, [(calls, largest error)]); nan and nothing for a sampler that draws noise."""
    curve = []
    for steps in (8, 16, 32, 64, 128, 256):
        ring = Ring(WIDE)
        try:
            made = sampler(ring, start, descent(steps), NoNoise())
        except Stochastic:
            return math.nan, []
        curve.append((ring.calls, float((made - exact).abs().max())))
    return math.log(curve[3][1] / curve[5][1], 4), curve


def descent(steps: int) -> list[Point]:
    return points_at(Linear(), Linear().time(torch.linspace(-3.5, 3.0, steps + 1, dtype=torch.float64)))


def quality(sampler: Callable[..., Tensor]) -> list[tuple[int, float]]:
    """[(calls, distance)] for 2 to 64 steps."""
    noise = Noise([0], (SAMPLES, 2))
    curve = []
    for steps in (2, 4, 8, 16, 32, 64):
        ring = Ring(NARROW)
        start = noise.start()[0].double()
        made = sampler(ring, start, UniformTime()(Linear(), steps), lambda *step: noise(*step)[0].double())
        curve.append((ring.calls, ring.distance(made)))
    return curve


def at_most(curve: list[tuple[int, float]], budget: int) -> float:
    return next(d for calls, d in reversed(curve) if calls <= budget)


def draw(rows: dict[str, Any], floor: float, file: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    colours = plt.get_cmap("tab20")
    for place, (name, row) in enumerate(rows.items()):
        style: dict[str, Any] = {"color": colours(place % 20), "marker": "os^Dv"[place % 5], "markersize": 4, "lw": 1.2}
        if row["errors"]:
            left.loglog(*zip(*row["errors"], strict=True), label=f"{name} ({row['order']:.1f})", base=2, **style)
        right.loglog(*zip(*row["quality"], strict=True), label=name, base=2, **style)
    left.set(title="Error of one trajectory", xlabel="network calls", ylabel="largest error")
    left.set_yscale("log", base=10)
    right.set_yscale("log", base=10)
    right.axhline(floor, color="black", ls=":", lw=1)
    right.text(64, floor, "the data itself", va="bottom", ha="right", fontsize=8)
    right.set(
        title="Distance of samples to the data",
        xlabel="network calls",
        ylabel="Wasserstein-1 of radii, in standard deviations",
    )
    right.set_xlim(1, 70)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    left.legend(fontsize=7, frameon=False, title="sampler (observed order)", title_fontsize=7)
    right.legend(fontsize=7, frameon=False, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sampler_order.png"), help="the plot")
    out = parser.parse_args().out
    narrow = Ring(NARROW)
    floor = narrow.distance(narrow.draw(SAMPLES, 0))
    start = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = rk4(Ring(WIDE), start, descent(512), NoNoise())
    rows: dict[str, Any] = {}
    print(f"{'sampler':18}{'order':>7}" + "".join(f"{f'@{b}':>8}" for b in BUDGETS) + f"    floor {floor:.3f}")
    for name, sampler in samplers().items():
        order, errors = orders(sampler, start, exact)
        rows[name] = {"order": order, "errors": errors, "quality": quality(sampler)}
        text = "  noise" if math.isnan(order) else f"{order:7.2f}"
        print(f"{name:18}{text}" + "".join(f"{at_most(rows[name]['quality'], b):8.3f}" for b in BUDGETS), flush=True)
    draw(rows, floor, out)
    print(out.absolute())


if __name__ == "__main__":
    main()
