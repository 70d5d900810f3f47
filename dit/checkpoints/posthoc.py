"""Post-hoc EMA (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
arXiv:2312.02696, section 3): averages of any width, reconstructed after training from snapshots of two.

The average of exponent gamma after t steps weights the weights of step tau in proportion to tau^gamma: its profile is
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. Its width is the standard deviation of the profile divided by
t (sigma_rel in the paper). A weighted sum of snapshots has the weighted sum of their profiles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dit.checkpoints.snapshots import Snapshot, file_name, snapshots_of, weighted_sum

NARROWEST, WIDEST = 0.03, 0.20  # widths that are reconstructed
MOST_ERROR = 0.05  # reconstructions with a larger relative error are refused
REMEDY = "train with more snapshots, callbacks.posthoc_ema.every=STEPS"
NAME = re.compile(r"posthoc_([0-9]*\.?[0-9]+)(?:@([0-9]{1,18}))?")


def gamma_of(width: float) -> float:
    """Returns the exponent of a width: the largest root of width^2 (gamma + 2)^2 (gamma + 3) = gamma + 1.

    Raises ValueError unless 0 < width < 12^(-1/2), the width of the uniform average, whose exponent is 0.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"width={width} of a power-function average must lie between 0 and 0.288")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


def width_of(gamma: float) -> float:
    """Returns the width of an exponent."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def inner_product(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> NDArray[np.float64]:
    """Returns the integral of the product of two profiles, with broadcasting, in float64."""
    t_a, gamma_a, t_b, gamma_b = (np.asarray(a, np.float64) for a in (t_a, gamma_a, t_b, gamma_b))
    later, of_later = np.maximum(t_a, t_b), np.where(t_a < t_b, gamma_b, gamma_a)
    ratio = np.minimum(t_a, t_b) / later
    return np.asarray((gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio**of_later / later)


def coefficients(snapshots: Sequence[Snapshot], width: float, step: int) -> tuple[NDArray[np.float64], float]:
    """Returns the coefficients of the snapshots (N,), of sum 1, whose sum of profiles is nearest to that of the width
    at a step, and its relative error ||p - sum_i x_i p_i|| / ||p||.

    The nearest sum solves A x + c = b, sum x = 1, with the inner products A of the snapshots' profiles, those of the
    profile with them, b, and a multiplier c. The constraint keeps a weight that never changes as it is.
    """
    t, gamma = np.array([s for s, _ in snapshots], np.float64), np.array([gamma_of(w) for _, w in snapshots])
    target = (float(step), gamma_of(width))
    norm = inner_product(*target, *target)
    a = inner_product(t[:, None], gamma[:, None], t, gamma) / norm
    b = inner_product(t, gamma, *target) / norm
    ones = np.ones((len(t), 1))
    system = np.block([[a, ones], [ones.T, np.zeros((1, 1))]])
    x = np.linalg.solve(system, np.append(b, 1.0))[:-1]
    return x, math.sqrt(max(1 - 2 * float(x @ b) + float(x @ a @ x), 0.0))


@dataclass(frozen=True)
class Reconstruction:
    """How an average was made. width, step: of the average; snapshots: those used; error: relative, of the profile."""

    width: float
    step: int
    snapshots: Sequence[Snapshot]
    error: float

    @property
    def description(self) -> dict[str, Any]:
        """The content of a card."""
        files = [file_name(*snapshot) for snapshot in self.snapshots]
        return {"width": self.width, "step": self.step, "snapshots": files, "relative_error": self.error}

    def __str__(self) -> str:
        return (
            f"width {self.width:g} at step {self.step}, from {len(self.snapshots)} snapshots, with an estimated "
            f"relative error of {100 * self.error:.2g} %"
        )


def is_posthoc(weights: str) -> bool:
    """Returns True if `weights` names a reconstruction: posthoc_WIDTH, or posthoc_WIDTH@STEP."""
    return weights.startswith("posthoc_")


def reconstruct(run: Path, weights: str, last: int) -> tuple[Reconstruction, dict[str, Tensor]]:
    """Reconstructs the average that `weights` names from RUN/snapshots: at its step, or at the newest snapshot that is
    not later than the step `last`. Returns how, and the float32 weights by parameter name.

    Raises ValueError for a width outside [0.03, 0.20], for a step without snapshots, if there are too few snapshots,
    and if one is broken.
    """
    width, step = parsed(weights)
    found = [s for s in snapshots_of(run) if s[0] <= (last if step is None else step)]
    step = max((s for s, _ in found), default=last) if step is None else step
    if step not in [s for s, _ in found]:
        held = ", ".join(map(str, sorted({s for s, _ in snapshots_of(run)}))) or "none"
        raise ValueError(f"weights={weights}: {run} has no snapshots of step {step} (it has: {held}); {REMEDY}")
    x, error = coefficients(found, width, step)
    if error > MOST_ERROR:
        tracked = ", ".join(f"{w:g}" for w in sorted(w for s, w in found if s == step))
        raise ValueError(
            f"weights={weights}: {len(found)} snapshots up to step {step} are too few: the estimated relative error is "
            f"{100 * error:.2g} %, the limit {100 * MOST_ERROR:g} %; {REMEDY}, or choose a width nearer to {tracked}"
        )
    files = [run / "snapshots" / file_name(*snapshot) for snapshot in found]
    return Reconstruction(width, step, found, error), weighted_sum(files, x.tolist())


def parsed(weights: str) -> tuple[float, int | None]:
    """Returns the width and the step, if one is given, of the name of a reconstruction."""
    match = NAME.fullmatch(weights)
    if match is None:
        raise ValueError(f"weights={weights!r}: write posthoc_WIDTH or posthoc_WIDTH@STEP, e.g. posthoc_0.1")
    width = float(match[1])
    if not NARROWEST <= width <= WIDEST:
        raise ValueError(f"weights={weights}: its width must lie in [{NARROWEST:g}, {WIDEST:g}]; choose one that does")
    return width, None if match[2] is None else int(match[2])
