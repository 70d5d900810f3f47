"""The values of recent steps, and whether those of a new step are far from them."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping

FLOOR = 0.01  # the smallest deviation that is assumed, as a share of the median


class Window:
    """The last `size` values of each of several quantities, all of them finite.

    deviations: a value is an outlier if it exceeds the median by more than so many standard deviations, which are
    estimated by 1.4826 times the median absolute deviation. None: only a value that is not finite is. A quantity has no
    outliers until half of its window is full.
    """

    def __init__(self, size: int, deviations: float | None) -> None:
        self.size, self.deviations = size, deviations
        self.values: dict[str, deque[float]] = {}

    def limit(self, name: str) -> float:
        """Returns the value above which a quantity is an outlier."""
        recent = self.values.get(name, ())
        if self.deviations is None or len(recent) < max(self.size // 2, 2):
            return math.inf
        median = statistics.median(recent)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in recent)
        return median + self.deviations * max(deviation, FLOOR * abs(median))

    def fault(self, values: Mapping[str, float]) -> str | None:
        """Returns the first value that is not finite or an outlier, in words; None if there is none."""
        for name, value in values.items():
            if not math.isfinite(value):
                return f"the {name} is not finite"
        for name, value in values.items():
            if value > (limit := self.limit(name)):
                return f"the {name} {value:.4g} exceeds {limit:.4g}, {self.deviations:g} deviations above the median"
        return None

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.values.setdefault(name, deque(maxlen=self.size)).append(value)

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(recent) for name, recent in self.values.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self.values = {name: deque(recent, maxlen=self.size) for name, recent in state.items()}
