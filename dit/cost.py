"""What pictures cost: network calls, seconds, energy where the machine tells it, and the user's price."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")  # where Linux has the counters of RAPL
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cost:
    """calls: network calls for one row. seconds: of the machine. joules: None if they are unknown."""

    calls: float = 0.0
    seconds: float = 0.0
    joules: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        known = self.joules is not None and other.joules is not None
        joules = self.joules + other.joules if known else None  # type: ignore[operator]
        return Cost(self.calls + other.calls, self.seconds + other.seconds, joules)

    def __mul__(self, share: float) -> Cost:
        joules = None if self.joules is None else self.joules * share
        return Cost(self.calls * share, self.seconds * share, joules)

    def __sub__(self, other: Cost) -> Cost:
        return self + other * -1


@dataclass(frozen=True)
class Price:
    """price_per_hour: of a machine, or None. currency: three capital letters. Raises ValueError for a price without a
    currency, and for another form of it."""

    price_per_hour: float | None = None
    currency: str | None = None

    def __post_init__(self) -> None:
        if self.price_per_hour is not None and self.currency is None:
            raise ValueError(f"cost.price_per_hour={self.price_per_hour:g} has no currency; add one, cost.currency=EUR")
        if self.currency is not None and re.fullmatch("[A-Z]{3}", self.currency) is None:
            raise ValueError(f"cost.currency={self.currency} must be three capital letters, such as EUR")

    def of(self, seconds: float) -> float:
        """Returns the price of some seconds; there must be one."""
        assert self.price_per_hour is not None
        return self.price_per_hour * seconds / 3600


class Meter:
    """Reads the clock and the energy counter of a device; several threads may use it.

    method: how the energy is measured: `nvml` is that of the GPU, `rapl` that of all processor packages, without
    memory; both have the work of other programs too. `unknown`: there is no counter that this process may read.
    processes: of this machine that do the same work. They share its price and the energy of its processors, and, if
    they compute on the `same_gpu`, that of the GPU.
    """

    def __init__(
        self, device: torch.device, price: Price | None = None, processes: int | None = None, same_gpu: bool = False
    ) -> None:
        self.price = price or Price()
        self.processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if processes is None else processes
        self._lock = threading.Lock()
        counter = nvml(device) if device.type == "cuda" else rapl(POWERCAP)
        self.method = UNKNOWN if counter is None else "nvml" if device.type == "cuda" else "rapl"
        self._counter, self._shared = counter, self.processes if self.method == "rapl" or same_gpu else 1

    def now(self) -> Cost:
        """Returns seconds and joules since some time in the past; the difference of two of them is what passed. The
        joules are None where the counter cannot be read, also for a moment."""
        with self._lock:
            joules = None if self._counter is None else self._counter()
        return Cost(0.0, time.perf_counter(), None if joules is None else joules / self._shared)

    def since(self, start: Cost, calls: float = 0.0) -> Cost:
        """Returns what passed since a value of `now`, with network calls."""
        return self.now() - start + Cost(calls)

    def described(self, cost: Cost) -> dict[str, Any]:
        """Returns a cost as it is recorded, with the method of its energy and, if there is one, the price."""
        calls = int(cost.calls) if cost.calls == int(cost.calls) else round(cost.calls, 3)
        joules = None if cost.joules is None else round(cost.joules, 6)
        found: dict[str, Any] = {"network_calls": calls, "seconds": round(cost.seconds, 6)}
        found |= {"energy_joules": joules, "energy_method": self.method}
        if self.price.price_per_hour is None:
            return found
        price = self.price.of(cost.seconds) / self.processes
        return found | {"price": float(f"{price:.6g}"), "currency": self.price.currency}

    def in_words(self, cost: Cost, pictures: int) -> str:
        """Returns the energy of a picture and the price of a thousand in words."""
        joules = "unknown" if cost.joules is None else f"{cost.joules / pictures:.4g} J a picture ({self.method})"
        if self.price.price_per_hour is None:
            return f"energy {joules}"
        price = self.price.of(cost.seconds) / self.processes / pictures * 1000
        return f"energy {joules}, {price:.4g} {self.price.currency} for 1000 pictures"


def nvml(device: torch.device) -> Callable[[], float | None] | None:
    """Returns a function that returns the joules of a GPU since its driver was loaded, or None if a reading fails; None
    without pynvml, and for a GPU that does not count them."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None

    def joules() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # it counts millijoules
        except pynvml.NVMLError:
            return None

    return joules


def rapl(root: Path) -> Callable[[], float | None] | None:
    """Returns a function that returns the joules of all processor packages since it was made, or None if a reading
    fails; None if there are no counters, or if this process may not read them. root: the folder of the counters."""
    try:
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if content_of(zone, "name").startswith("package")]
        ranges = [int(content_of(zone, "max_energy_range_uj")) for zone in zones]
        last = [int(content_of(zone, "energy_uj")) for zone in zones]
    except (OSError, ValueError):
        return None
    if not zones:
        return None
    total = 0

    def joules() -> float | None:
        nonlocal total
        try:
            values = [int(content_of(zone, "energy_uj")) for zone in zones]
        except (OSError, ValueError):
            return None
        for place, value in enumerate(values):
            total += (value - last[place]) % ranges[place]  # a counter begins again at 0
            last[place] = value
        return total / 1e6

    return joules


def content_of(zone: Path, name: str) -> str:
    return (zone / name).read_text().strip()
