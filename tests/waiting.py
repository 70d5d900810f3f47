"""Counts what makes a program wait for a device, on a machine that has none.

On the meta device no tensor has values, so what reads one raises or is counted. Besides there are copies between
devices, and tensors that are made of Python numbers: these lie on the CPU first and are copied from there, which waits.
"""

from contextlib import ExitStack, contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = {"_to_copy", "copy_"}
READS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_unique2"}
OF_PYTHON_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


class Waiting(ExitStack):
    """copies: between devices. reads: of values that are not on the CPU. made: of Python numbers, and not on the CPU."""

    def __init__(self):
        super().__init__()
        self.copies, self.reads, self.made = [], [], []

    @property
    def found(self):
        return [*self.copies, *self.reads, *self.made]

    def __enter__(self):
        self.enter_context(_Operations(self))
        self.enter_context(_Functions(self))
        return self


class _Operations(TorchDispatchMode):
    def __init__(self, waiting):
        super().__init__()
        self.waiting = waiting

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        devices = {a.device.type for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)}
        if devices - {"cpu"} and name in READS:
            self.waiting.reads.append(name)
        result = func(*args, **kwargs)
        if name in COPIES and devices - {result.device.type}:
            self.waiting.copies.append(name)
        return result


class _Functions(TorchFunctionMode):
    def __init__(self, waiting):
        super().__init__()
        self.waiting = waiting

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in OF_PYTHON_NUMBERS and result.device.type != "cpu":
            self.waiting.made.append(func.__name__)
        return result


@contextmanager
def no_waiting_on_cuda():
    """Raises where the CPU waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
