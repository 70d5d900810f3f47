"""Makes all pictures of a work list, by any number of processes, and goes on where a killed one stopped.

A process takes a shard by locking a file; a lock ends with its process. A finished shard is not made again. The batches
of a shard are those of its rows alone, so that all files are equal for any number of processes and after any
interruption.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from dit.cost import Cost, Meter
from dit.files import POLL, locked, take, write_atomic
from dit.generation.delivery import Delivery, refusal_text
from dit.generation.output import LOCK, Output
from dit.generation.policy import Decision, refusal
from dit.generation.rows import Row, json_of, row_of
from dit.generation.work import Job, Work

# A row, the content of its file, or None if there is none, and the decisions about its prompt and its picture.
Delivered = tuple[Row, bytes | None, Sequence[Decision]]


class Painter(Protocol):
    """A model that makes pictures. about: what is recorded of each of its pictures."""

    @property
    def about(self) -> Mapping[str, Any]: ...

    def sample(self, jobs: Sequence[Job]) -> tuple[Tensor, float]:
        """Returns a picture for each job, which have one size: (N, 3, H, W) uint8, and the mean number of network calls
        of one."""


@dataclass
class Bulk:
    """Makes the pictures of an output. model: returns a model by its number. meter: of the device of the models. cost,
    sampled: what the sampler has cost in this process, and the number of pictures that it made. costs: of pictures that
    are not written yet, by index; each has an equal share of the cost of its batch."""

    output: Output
    model: Callable[[int], Painter]
    delivery: Delivery
    meter: Meter = field(default_factory=lambda: Meter(torch.device("cpu")))
    cost: Cost = field(default_factory=Cost)
    sampled: int = 0
    costs: dict[int, Cost] = field(default_factory=dict)

    def run(self, bar: tqdm, last: Callable[[Output], None] = lambda output: None) -> None:
        """Makes all pictures that are missing. Returns when all processes of the output are finished. last: is called
        by one of them with the finished shards, before the tables are written. Raises ValueError if a file cannot be
        written; finished shards are kept."""
        output = self.output
        try:
            self.make_shards(bar)
        except Exception:
            with suppress(ValueError):  # of a full disk; the first error is raised
                output.abandon()
            raise
        with locked(output.file(LOCK)):
            if not output.finished:
                last(output)
                output.finish()
            shutil.rmtree(output.unfinished, ignore_errors=True)
        bar.update(bar.total - bar.n)

    def make_shards(self, bar: tqdm) -> None:
        """Makes every shard that no other process has made. Returns when all are finished."""
        output, waiting = self.output, list(range(self.output.work.shards))
        while waiting and not output.finished:
            left = []
            for shard in waiting:
                if output.done(shard):
                    bar.update(len(output.work.rows(shard)))
                elif not self.take(shard, bar):
                    left.append(shard)
            if waiting := left:
                time.sleep(POLL)

    def take(self, shard: int, bar: tqdm) -> bool:
        """Makes a shard. Returns False if another process has it."""
        output = self.output
        return take(
            output.part(shard, "lock"), lambda: output.finished or output.done(shard), lambda: self.make(shard, bar)
        )

    def make(self, shard: int, bar: tqdm) -> None:
        """Writes the files of a shard, what it cost, and then its rows, which mark it as finished."""
        rows, costs = list[Row](), list[Row]()
        with self.output.writer.shard(shard) as add:
            for row, png, decisions in self.delivered(shard):
                cost = self.meter.described(self.costs.pop(row["index"], Cost()))
                facts = {"cost": cost, "cache_hit": False}
                self.delivery.log(row, decisions, png, facts)  # first: nothing is delivered without its entry
                if png is not None:
                    add(row, png)
                rows.append(row)
                costs.append({"index": row["index"], "name": row["name"], **cost})
                bar.update("rejected" not in row)
        for kind, table in (("cost", costs), ("jsonl", rows)):
            write_atomic(self.output.part(shard, kind), "".join(json_of(row) + "\n" for row in table))

    def delivered(self, shard: int) -> Iterator[Delivered]:
        """Yields what is delivered of each job of a shard: the one place where pictures pass from the sampler to a
        writer."""
        work, writer = self.output.work, self.output.writer
        assert isinstance(work, Work)
        for jobs in work.batches(shard, self.output.batch_sizes):
            model = self.model(jobs[0].model)
            pictures, decisions = self.checked(model, jobs)
            for job in jobs:
                picture, own = pictures.get(job.index), decisions[job.index]
                if picture is None:
                    yield row_of(job, model.about) | {"refused": refusal_text(own)}, None, own
                    continue
                coded = writer.encoding.pixels(picture)
                row = row_of(job, model.about, coded) | self.delivery.describe(coded)
                row |= {"file": writer.file_of(shard, job.name)}
                yield row, self.delivery.sign(row, writer.encoding.file(picture, row)), own

    def checked(self, model: Painter, jobs: Sequence[Job]) -> tuple[dict[int, Tensor], dict[int, list[Decision]]]:
        """Returns by index the marked pictures of a batch, without those that are refused, and all decisions."""
        decisions = {job.index: list(own) for job, own in zip(jobs, self.delivery.check_prompts(jobs), strict=True)}
        allowed = [job for job in jobs if refusal(decisions[job.index]) is None]
        if not allowed:
            return {}, decisions
        start = self.meter.now()
        pixels, calls = model.sample(self.delivery.seeded(allowed))
        cost = self.meter.since(start, calls * len(allowed))
        self.cost, self.sampled = self.cost + cost, self.sampled + len(allowed)
        self.costs |= {job.index: cost * (1 / len(allowed)) for job in allowed}
        for job, own in zip(allowed, self.delivery.check_pictures(allowed, pixels), strict=True):
            decisions[job.index] += own
        kept = [place for place, job in enumerate(allowed) if refusal(decisions[job.index]) is None]
        allowed = [allowed[place] for place in kept]
        marked = self.delivery.mark(allowed, pixels[kept]) if allowed else pixels[:0]
        return {job.index: picture for job, picture in zip(allowed, marked, strict=True)}, decisions
