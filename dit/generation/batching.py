"""Batching at the network call: requests with different samplers, steps and guidance share the calls of one network.

Each request samples in a thread of its own, with an unchanged sampler. Its network is a proxy, which collects the rows
(x, time, condition) of all requests and calls the network once for them."""

from __future__ import annotations

import copy
import threading
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dit.cost import Cost, Meter, Price
from dit.layers.embeddings import added_inputs
from dit.pipeline import Pipeline
from dit.precision import network_autocast
from dit.types import Condition, Network


class Cancelled(Exception):
    """Raised in the thread of a request, at its next network call, after the request was cancelled."""


class Request:
    """A request that samples. rows: the samples that networks have evaluated for it. cost: its share of what the
    machine has spent."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.cancelled, self.rows, self.cost = False, 0, Cost()

    def cancel(self) -> None:
        """Ends the request at its next network call; one that waits for a call ends now."""
        self.cancelled = True
        self._batcher.drop_cancelled()


@dataclass(eq=False)
class Call:
    """Rows that wait for the network, of one request. made: the network output of these rows, or error."""

    request: Request
    x: Tensor
    time: Tensor
    condition: Condition
    arrived: float = field(default_factory=clock.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    made: Tensor | None = None
    error: Exception | None = None

    @property
    def group(self) -> Any:
        """Calls of one group can be joined: equal shapes of a sample, and equal parts of the condition, whose texts may
        have different lengths."""
        parts = self.condition.parts
        widths = {name: tuple(part.shape[2 if name == "tokens" else 1 :]) for name, part in parts.items()}
        return self.x.shape[1:], self.x.dtype, sorted((k, v) for k, v in widths.items() if k != "mask")


class Batcher:
    """Calls a network for several requests at once, from a thread of its own, until `close`.

    The next call begins when every request waits for the network, or after the network has waited `longest_wait`
    seconds for more rows. It takes the oldest rows, and then, in the order of their arrival, all other rows of their
    group, up to `max_rows`; a single request may have more. So no request waits for more calls than there are requests.

    All that the machine spends while any request samples is shared out: what passed since the network call before, by
    the rows of a call, and what follows the last call of all, to the request that ends last. So the costs of requests
    sum up to what was spent.

    precision: of the network, as in `dit.precision`. meter: of the device. calls, rows, seconds: what the network was
    called with so far, and how long that took.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        precision: str,
        max_rows: int = 64,
        longest_wait: float = 0.02,
        meter: Meter | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        self.network, self.device, self.precision = network, device, precision
        self.max_rows, self.longest_wait = max_rows, longest_wait
        self.calls, self.rows, self.seconds = 0, 0, 0.0
        self.meter = meter or Meter(device)
        self._shared_until = self.meter.now()
        self._current = threading.local()
        self._changed = threading.Condition()
        self._waiting: list[Call] = []
        self._active, self._closed, self._idle_since = 0, False, 0.0
        self._thread = threading.Thread(target=self._run, name="network calls", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Ends the thread. Requests that still wait fail with RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def drop_cancelled(self) -> None:
        """Removes the waiting calls of cancelled requests."""
        with self._changed:
            dropped = [call for call in self._waiting if call.request.cancelled]
            self._waiting = [call for call in self._waiting if not call.request.cancelled]
            self._changed.notify()
        for call in dropped:
            call.done.set()

    @contextmanager
    def sampling(self, request: Request | None = None) -> Iterator[Request]:
        """A block in which this thread samples for a request: network calls wait for its rows."""
        request = Request(self) if request is None else request
        with self._changed:
            if not self._active:
                self._shared_until = self.meter.now()
            self._active += 1
        self._current.request = request
        try:
            yield request
        finally:
            del self._current.request
            with self._changed:
                self._active -= 1
                if not self._active:
                    request.cost += self._passed()
                self._changed.notify()

    def __call__(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Returns the network output, as the network alone would up to rounding. Raises Cancelled."""
        request: Request = self._current.request
        call = Call(request, x, time, condition)
        with self._changed:
            if self._closed:
                raise RuntimeError("the network has stopped")
            if request.cancelled:
                raise Cancelled
            self._waiting.append(call)
            self._changed.notify()
        call.done.wait()
        if request.cancelled:
            raise Cancelled
        if call.error is not None:
            raise call.error
        assert call.made is not None
        return call.made

    def _run(self) -> None:
        try:
            while calls := self._next():
                self._answer(calls)
                self._idle_since = clock.monotonic()
                for call in calls:
                    call.done.set()
        finally:  # also if the thread fails, so that nobody waits for it
            with self._changed:
                self._closed = True
            for call in self._waiting:
                call.error = RuntimeError("the network has stopped")
                call.done.set()

    def _next(self) -> list[Call]:
        """Returns the calls to join, when it is time for them; none after `close`."""
        with self._changed:
            while not self._closed:
                if self._waiting:
                    since = max(self._waiting[0].arrived, self._idle_since)
                    left = since + self.longest_wait - clock.monotonic()
                    if len(self._waiting) >= self._active or left <= 0:
                        return self._oldest_group()
                    self._changed.wait(left)
                else:
                    self._changed.wait()
            return []

    def _oldest_group(self) -> list[Call]:
        """Removes the oldest call and those that can join it from the waiting ones, and returns them."""
        first, rows = self._waiting[0], 0
        chosen: list[Call] = []
        for call in [call for call in self._waiting if call.group == first.group]:
            if chosen and rows + len(call.x) > self.max_rows:
                break
            chosen.append(call)
            rows += len(call.x)
        self._waiting = [call for call in self._waiting if call not in chosen]
        return chosen

    @torch.inference_mode()
    def _answer(self, calls: Sequence[Call]) -> None:
        """Calls the network once for all rows. If that fails, each call is tried by itself, so that no request fails
        because of another."""
        try:
            made = self._evaluate(calls).split([len(call.x) for call in calls])
        except Exception as error:
            if len(calls) == 1:
                calls[0].error = error
                return
            for call in calls:
                self._answer([call])
            return
        for call, rows in zip(calls, made, strict=True):
            call.made = rows

    def _evaluate(self, calls: Sequence[Call]) -> Tensor:
        x, time = torch.cat([call.x for call in calls]), torch.cat([call.time for call in calls])
        condition = Condition.cat([call.condition for call in calls]) if len(calls) > 1 else calls[0].condition
        start = clock.monotonic()
        with network_autocast(self.device, self.precision):
            made = self.network(x, time, condition)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or the clock would not count the kernels
        # Only now: a call that fails is repeated with each request alone.
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        self.seconds += clock.monotonic() - start
        with self._changed:
            passed = self._passed()
        for call in calls:
            call.request.rows += len(call.x)
            call.request.cost += passed * (len(call.x) / len(x)) + Cost(len(call.x))
        return made

    def _passed(self) -> Cost:
        """Returns what was spent since it was shared out before."""
        before, self._shared_until = self._shared_until, self.meter.now()
        return self._shared_until - before


class SharedBackbone(nn.Module):
    """A backbone whose calls go through a batcher. The duration of jumps, which samplers give to every network, is left
    out for one that does not read it, so that its calls can be joined with those that have none."""

    def __init__(self, backbone: nn.Module, batcher: Batcher) -> None:
        super().__init__()
        self.backbone, self.batcher = backbone, batcher
        self.reads_padding = getattr(backbone, "reads_padding", True)
        self.guidance_scale = getattr(backbone, "guidance_scale", None)
        self.reads_duration = "duration" in added_inputs(backbone)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        if "duration" in condition.extra and not self.reads_duration:
            condition = replace(condition, extra={k: v for k, v in condition.extra.items() if k != "duration"})
        return self.batcher(x, time, condition)


def shared(pipeline: Pipeline, max_rows: int = 64, price: Price | None = None) -> tuple[Pipeline, Batcher]:
    """Returns a pipeline whose network calls are batched, for several threads, and its batcher. It has the parts of the
    given one, and samples only within `Batcher.sampling`. price: of the machine."""
    pipeline.backbone.eval()
    meter = Meter(pipeline.device, price)
    batcher = Batcher(pipeline.backbone, pipeline.device, pipeline.precision, max_rows, meter=meter)
    one = copy.copy(pipeline)
    one.backbone = SharedBackbone(pipeline.backbone, batcher).eval()
    return one, batcher
