"""Several processes of one command on one machine, each with its own device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def run_processes(module: str, count: int, device: str) -> None:
    """Runs the command of this module `count` times at once with the words of this command line, each process on its
    own device. device: that of the config. SIGTERM ends all of them. Raises SystemExit if one fails, and ValueError for
    more processes than GPUs."""
    import torch

    if device == "auto" and 0 < torch.cuda.device_count() < count:
        gpus = torch.cuda.device_count()
        raise ValueError(f"devices={count}: this machine has {gpus} GPUs; give at most {gpus}")
    words, started = [sys.executable, "-m", module, *sys.argv[1:], "devices=1"], list[subprocess.Popen[bytes]]()
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that `finally` runs
    try:
        for rank in range(count):
            own = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
            started.append(subprocess.Popen(words, env=os.environ | own))
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.terminate()
        signal.signal(signal.SIGTERM, before)
    if any(codes):
        sys.exit(next(code for code in codes if code))


def is_first() -> bool:
    """Returns whether this process is the first of its machine, which prints."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def own_device(name: str) -> torch.device:
    """Returns the device of the config; if it is auto, the GPU of this process's number."""
    import torch

    from dit.devices import device_of

    device = torch.device(device_of(name))
    if name == "auto" and device.type == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return device
