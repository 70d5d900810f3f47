"""How well two reviewers agree beyond chance: Cohen's kappa with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 4000


@dataclass(frozen=True)
class Agreement:
    """count: pictures that both judged. share: of equal verdicts. kappa: nan if both gave one and the same verdict
    everywhere, where nothing can be said beyond chance. interval: of kappa, 95 %."""

    count: int
    share: float
    kappa: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        kappa = "not defined" if math.isnan(self.kappa) else f"{self.kappa:.2f}"
        return f"{self.share:.1%} of {self.count} verdicts are equal, kappa {kappa} [{low:.2f}, {high:.2f}]"


def kappa_of(table: np.ndarray) -> np.ndarray:
    """Returns Cohen's kappa (Cohen 1960, Educ. Psychol. Meas. 20, p. 37) of tables of shares (..., 2, 2): what the
    first reviewer said by what the second one said."""
    expected = (table.sum(-1) * table.sum(-2)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((table[..., 0, 0] + table[..., 1, 1] - expected) / (1 - expected))


def agreement_of(pairs: Sequence[tuple[bool, bool]]) -> Agreement:
    """Returns the agreement of two reviewers, from both verdicts about each picture. Raises ValueError without any.

    The interval is that of the posterior of the four shares under Jeffreys' prior, a Dirichlet distribution, from which
    it draws with a fixed seed: it stays wide for few pictures, also if all verdicts are equal."""
    if not pairs:
        raise ValueError("there is no picture that two reviewers judged")
    counts = np.zeros((2, 2))
    for first, second in pairs:
        counts[int(first), int(second)] += 1
    draws = np.random.default_rng(0).dirichlet(counts.reshape(-1) + 0.5, DRAWS).reshape(-1, 2, 2)
    low, high = np.quantile(kappa_of(draws), (0.025, 0.975))
    shares = counts / counts.sum()
    return Agreement(len(pairs), float(np.trace(shares)), float(kappa_of(shares)), (float(low), float(high)))
