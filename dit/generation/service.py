"""Sampling for many requests: admission by network calls, one thread for each request, cancellation and draining."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from dit.cost import Cost
from dit.errors import first_line
from dit.generation.asking import Ask, Menu, Refused
from dit.generation.batching import Batcher, Cancelled, Request
from dit.generation.delivery import Delivery, refusal_text
from dit.generation.encoding import png_of
from dit.generation.model import finite_pixels
from dit.generation.picture_cache import PictureCache
from dit.generation.policy import Decision, refusal
from dit.generation.rows import row_of
from dit.generation.work import Job
from dit.pipeline import Pipeline, Recipe
from dit.types import Condition

CANCELLED = "the request was cancelled"


@dataclass(frozen=True)
class Made:
    """What a request is answered with. pictures: PNG files, of these seeds. calls: network calls for one row that it
    took. seconds: since admission. cost: what it cost (`dit.cost.Meter.described`), and the number of cache hits."""

    pictures: Sequence[bytes]
    seeds: Sequence[int]
    calls: int
    seconds: float
    cost: Mapping[str, Any]


@dataclass(eq=False)
class Admitted:
    """A request that is admitted by its `cost`, its network calls. calls: of one picture. charge: called with what is
    added to the cost. decisions: about its prompts. origin: what the log says of where it came from. seeds: with which
    its pictures are sampled. keys: of these in the cache; none without a cache. found: its pictures in the cache, by
    their places, once they are read. result: a Made, or Cancelled, Refused or another error. queued: its place among
    the threads."""

    ask: Ask
    request: Request
    calls: int
    charge: Callable[[int], object]
    cost: int = 0
    decisions: Sequence[Decision] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    keys: Sequence[str] = ()
    found: Mapping[int, Tensor] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    result: Future[Made] = field(default_factory=Future)
    queued: Future[None] | None = None

    def __post_init__(self) -> None:
        self.result.set_running_or_notify_cancel()  # who waits for it cannot cancel it; `Service.cancel` does

    @property
    def calls_left(self) -> int:
        return max(0, self.cost - self.request.rows)


def jobs_of(ask: Ask) -> list[Job]:
    """Returns the pictures of a request, for the delivery."""
    return [Job(i, f"seed_{seed}", 0, ask.size, ask.prompt, seed) for i, seed in enumerate(ask.seeds)]


class Service:
    """Samples requests on one pipeline whose network calls are batched (`dit.generation.batching.shared`).

    A request is admitted if the unfinished requests and their network calls stay within the limits. `requests` of the
    limits sample at the same time; others wait in the order of their arrival.

    delivery: checks, marks, signs and logs what is delivered; its methods are called by one thread at a time. A request
    of which the prompt, the negative prompt or a picture is refused gets no picture, and its rows in the log say why.
    about: what the rows say of the model. cache: of pictures that were made before, or None. A hit passes the delivery
    like a new picture, and takes no network calls.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        batcher: Batcher,
        menu: Menu,
        delivery: Delivery | None = None,
        about: Mapping[str, Any] | None = None,
        cache: PictureCache | None = None,
    ) -> None:
        self.pipeline, self.batcher, self.menu, self.cache = pipeline, batcher, menu, cache
        self.delivery, self.about, self.limits = delivery or Delivery(), about or {}, menu.limits
        self._delivering = threading.Lock()
        self.ready, self.draining = False, False
        self._lock, self._jobs = threading.Lock(), set[Admitted]()
        self._threads = ThreadPoolExecutor(self.limits.requests, thread_name_prefix="request")

    def warm_up(self) -> None:
        """Samples a picture, which measures the speed of the network. The service is ready afterwards."""
        menu = self.menu
        recipe = Recipe(next(iter(menu.samplers.values())), menu.grid, menu.steps, menu.guidance(menu.scale))
        self.pipeline.check(recipe)
        with self.batcher.sampling():
            self.pipeline(self.pipeline.null_condition(), [0], recipe, shape=menu.shapes[menu.sizes[0]])
        self.ready = True

    @property
    def pending_calls(self) -> int:
        """The network calls that the unfinished requests still need."""
        with self._lock:
            return sum(job.calls_left for job in self._jobs)

    @property
    def active(self) -> int:
        """The number of unfinished requests."""
        return len(self._jobs)

    @property
    def calls_per_second(self) -> float:
        return self.batcher.rows / self.batcher.seconds if self.batcher.seconds else 1.0

    def submit(
        self,
        ask: Ask,
        charge: Callable[[int], object] = lambda calls: None,
        origin: Mapping[str, Any] | None = None,
    ) -> Admitted:
        """Admits a request. charge: called with its network calls before it is admitted, and with their negative if it
        is not. origin: for the log, its endpoint and the name of its key. Raises Refused for one that cannot be served,
        or not now."""
        if self.draining or not self.ready:
            what = "is shutting down" if self.draining else "is starting"
            raise Refused(f"the server {what}; try again later", 503, "unavailable", retry=5)
        recipe, condition, cost = self.menu.order(ask)
        decisions = self._check_prompts(ask, origin or {})
        with self._delivering:
            seeds = [job.seed for job in self.delivery.seeded(jobs_of(ask))]
        keys = [] if self.cache is None else [self.cache.key(ask, seed) for seed in seeds]
        job = Admitted(ask, Request(self.batcher), cost // ask.n, charge, 0, decisions, origin or {}, seeds, keys)
        self._add(job, ask.n - sum(self.cache is not None and self.cache.has(key) for key in keys))
        job.queued = self._threads.submit(self._run, job, recipe, condition)
        return job

    def _add(self, job: Admitted, pictures: int) -> None:
        """Adds a job to the unfinished ones, and the calls of pictures to its cost. Raises Refused beyond the limits
        and beyond the quota of its key."""
        cost, limits = pictures * job.calls, self.limits
        job.charge(cost)
        try:
            with self._lock:
                if len(self._jobs | {job}) > limits.pending_requests:
                    reason = f"the server is busy: it has {limits.pending_requests} unfinished requests"
                    raise Refused(f"{reason}; try again after 1 s", 429, "overloaded", retry=1)
                excess = sum(one.calls_left for one in self._jobs) + cost - limits.pending_calls
                if excess > 0 and cost and self._jobs - {job}:
                    retry = max(1, math.ceil(excess / self.calls_per_second))
                    reason = f"the server is busy: its requests need more than {limits.pending_calls} network calls"
                    raise Refused(f"{reason}; try again after {retry} s", 429, "overloaded", retry=retry)
                job.cost += cost
                self._jobs.add(job)
        except Refused:
            job.charge(-cost)
            raise

    def cancel(self, job: Admitted) -> None:
        """Ends a job: at once if it has not begun, else at its next network call."""
        job.request.cancel()
        if job.queued is not None and job.queued.cancel():  # true again for a second cancel
            self._finish(job)
            if not job.result.done():
                job.result.set_exception(Cancelled())
                self._threads.submit(self._log_failure, job, CANCELLED)  # the caller does not wait for the log

    def _run(self, job: Admitted, recipe: Recipe, condition: Condition) -> None:
        try:
            made = self._made(job, recipe, condition)
        except BaseException as error:
            if not isinstance(error, Refused):
                self._log_failure(job, CANCELLED if isinstance(error, Cancelled) else first_line(error))
            self._finish(job)
            job.result.set_exception(error)
        else:
            self._finish(job)
            job.result.set_result(made)

    def _log_failure(self, admitted: Admitted, why: str) -> None:
        """Appends an entry for each picture that was not made, unless the log is what fails: the request ends with
        its own error in any case."""
        with self._delivering, suppress(Exception):
            for job in jobs_of(admitted.ask):
                row = row_of(job, self._about(admitted.ask)) | {"failed": why}
                self.delivery.log(row, admitted.decisions, None, admitted.origin)

    def _finish(self, job: Admitted) -> None:
        with self._lock:
            self._jobs.discard(job)

    def _made(self, job: Admitted, recipe: Recipe, condition: Condition) -> Made:
        ask, shape = job.ask, self.menu.shapes[job.ask.size]
        if job.request.cancelled:
            raise Cancelled
        if self.cache is not None:
            hits = {place: self.cache.get(key) for place, key in enumerate(job.keys)}
            job.found = {place: picture for place, picture in hits.items() if picture is not None}
        pictures, missing = dict(job.found), [place for place in range(ask.n) if place not in job.found]
        lost = len(missing) - job.cost // job.calls  # in the cache at admission, and no longer
        if lost > 0:
            self._add(job, lost)
        if missing:
            seeds = [job.seeds[place] for place in missing]
            with self.batcher.sampling(job.request):
                samples = self.pipeline(condition[: len(seeds)], seeds, recipe, len(seeds), shape=shape)
            pictures |= dict(zip(missing, finite_pixels(samples.images, seeds), strict=True))
        files = self._delivered(job, torch.stack([pictures[place] for place in range(ask.n)]))
        cost = self.batcher.meter.described(job.request.cost) | {"cache_hits": len(job.found)}
        return Made(files, ask.seeds, job.request.rows, time.monotonic() - job.started, cost)

    def _check_prompts(self, ask: Ask, origin: Mapping[str, Any]) -> list[Decision]:
        """Returns the decisions about the prompt and the negative prompt. Raises Refused if one of them refuses."""
        jobs = jobs_of(ask)[:1]
        texts = [*jobs, *(replace(jobs[0], prompt=text) for text in [ask.negative] if text)]
        with self._delivering:
            self.delivery.check_user(origin.get("key"))
            decisions = list(chain.from_iterable(self.delivery.check_prompts(texts)))
            self._refuse(ask, jobs, [decisions], [origin], "prompt")
        return decisions

    def _delivered(self, admitted: Admitted, pixels: Tensor) -> list[bytes]:
        """Returns the files of the pictures (n, 3, H, W) uint8, marked, signed and logged. Raises Refused if any is
        refused, and if they are held for a review."""
        jobs, about, held = jobs_of(admitted.ask), self._about(admitted.ask), list[str]()
        with self._delivering:
            decisions = [[*admitted.decisions, *own] for own in self.delivery.check_pictures(jobs, pixels)]
        self._keep(admitted, pixels, decisions)
        facts = self._facts(admitted)
        with self._delivering:
            self._refuse(admitted.ask, jobs, decisions, facts, None)
            rows, files = [], []
            for job, picture in zip(jobs, self.delivery.mark(jobs, pixels), strict=True):
                rows.append(row_of(job, about, picture) | self.delivery.describe(picture))
                files.append(self.delivery.sign(rows[-1], png_of(picture, rows[-1])))
            # Only now, so that no picture is logged as delivered whose request cannot be signed.
            for row, file, own, known in zip(rows, files, decisions, facts, strict=True):
                if self.delivery.holds:
                    held.append(uuid4().hex)
                    known["file"] = f"{held[-1]}.png"
                self.delivery.log(row, own, file, known)
        if held:
            reason = f"held for review; once approved, GET /held/ID gives it: {', '.join(held)}"
            raise Refused(reason, 403, "pending_review")  # not 409, which clients try again
        return files

    def _facts(self, job: Admitted) -> list[dict[str, Any]]:
        """Returns what the log says of the making of each picture; those that were made share the cost equally."""
        new = job.ask.n - len(job.found)
        costs = [Cost() if place in job.found else job.request.cost * (1 / new) for place in range(job.ask.n)]
        described = map(self.batcher.meter.described, costs)
        hits = [{"cost": cost, "cache_hit": place in job.found} for place, cost in enumerate(described)]
        return [{**job.origin, **known} for known in hits]

    def _keep(self, admitted: Admitted, pixels: Tensor, decisions: Sequence[list[Decision]]) -> None:
        """Adds new pictures to the cache, and removes from it what is refused."""
        if self.cache is None:
            return
        for place, (key, picture, own) in enumerate(zip(admitted.keys, pixels, decisions, strict=True)):
            hit = place in admitted.found
            if refusal(own) is None and not hit:
                self.cache.put(key, picture)
            elif refusal(own) is not None and hit:
                self.cache.drop(key)

    def pick_up(self, id: str, key: str | None) -> bytes:
        """Returns the file of a picture that was held, as `Delivery.pick_up`."""
        return self.delivery.pick_up(f"{id}.png", key)

    def _refuse(
        self,
        ask: Ask,
        jobs: Sequence[Job],
        found: Sequence[list[Decision]],
        facts: Sequence[Mapping[str, Any]],
        parameter: str | None,
    ) -> None:
        """Raises Refused with the first reason, if any decision refuses, after an entry in the log for each job that is
        refused. found, facts: the decisions about each job, and what the log says of its making."""
        refused = [(job, refusal_text(own), own, known) for job, own, known in zip(jobs, found, facts, strict=True)]
        refused = [one for one in refused if one[1]]
        for job, why, own, known in refused:
            self.delivery.log(row_of(job, self._about(ask)) | {"refused": why}, own, None, known)
        if refused:
            job, why, *_ = refused[0]
            which = "" if parameter else f"the picture of seed {job.seed}: "
            raise Refused(f"{which}{why}", 400, "content_policy_violation", parameter)

    def _about(self, ask: Ask) -> dict[str, Any]:
        recipe = {"sampler": ask.sampler, "steps": ask.steps, "guidance": ask.scale, "negative": ask.negative}
        return {**self.about, "recipe": recipe}

    def close(self, seconds: float = 30.0) -> None:
        """Refuses new requests, waits for the others at most this long, then cancels them."""
        self.draining = True
        end = time.monotonic() + seconds
        while self._jobs and time.monotonic() < end:
            time.sleep(0.02)
        with self._lock:
            left = list(self._jobs)
        for job in left:
            self.cancel(job)
        self._threads.shutdown(wait=True)
        self.batcher.close()
