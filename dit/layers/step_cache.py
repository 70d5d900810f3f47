"""Step caching: while one batch is sampled, blocks of a backbone are not run again for samples that they would change
in almost the same way as at an earlier network call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.layers.stack import Inputs, RunBlocks, all_blocks, takes_run
from dit.types import Condition, Network


@dataclass(frozen=True)
class FirstBlockCache:
    """The rule of FBCache (https://github.com/chengzeyi/ParaAttention), a relative distance between residuals of the
    first block. (TeaCache, Liu et al. 2024, arXiv:2411.19108, accumulates such distances from call to call.)

    Every network call runs the first block. If its residual, what it adds to the image's tokens, differs from that of
    the sample's last complete call by less than `threshold` (the mean absolute difference divided by the mean absolute
    residual), then the other blocks are not run for this sample, and their residual of that call is added instead.

    threshold: 0 reuses nothing. warmup_calls: the number of first network calls that run all blocks. most_reuses: the
    largest number of reuses in a row, or None for no limit. Raises ValueError for a negative threshold.
    """

    threshold: float = 0.1
    warmup_calls: int = 1
    most_reuses: int | None = None

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"cache.threshold={self.threshold} must be 0, for no reuse, or more, e.g. 0.1")
        if self.warmup_calls < 1 or (self.most_reuses is not None and self.most_reuses < 1):
            raise ValueError(
                f"cache.warmup_calls={self.warmup_calls} and cache.most_reuses={self.most_reuses} must be at least 1; "
                f"cache.threshold=0 reuses nothing"
            )


@dataclass(frozen=True)
class CacheUse:
    """What a step cache did, for each sample. computed, saved: the numbers of block evaluations. nfe: the effective
    number of network evaluations: each is counted as the share of its blocks that ran."""

    computed: float
    saved: float
    nfe: float


class StepCache:
    """The caches of the samples of one batch, one for each network; a row of a network's batch has its own. Rows keep
    their places: of guidance first the conditional, then the unconditional ones."""

    def __init__(self, rule: FirstBlockCache) -> None:
        self.rule = rule
        self.computed, self.saved, self.rows = 0, 0, 0.0
        self._memories: dict[Network, Memory] = {}

    def start_batch(self) -> None:
        """Forgets the samples of the last batch."""
        self._memories.clear()

    def call(self, network: Network, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Returns the network output, computed with the cache of this network. Raises ValueError if it has none."""
        if network not in self._memories:
            check_cacheable(network)
            self._memories[network] = Memory(self.rule)
        run = CachedRun(self._memories[network])
        made = network(x, time, condition, run)  # type: ignore[call-arg]
        self.computed, self.saved = self.computed + run.computed, self.saved + run.saved
        self.rows += len(x) * run.computed / max(run.computed + run.saved, 1)
        return made

    def use(self, samples: int) -> CacheUse:
        """Returns what it did for each of this number of samples."""
        return CacheUse(self.computed / samples, self.saved / samples, self.rows / samples)


def check_cacheable(network: object) -> None:
    """Raises ValueError if a step cache cannot leave out blocks of the network."""
    if not takes_run(network):
        raise ValueError(
            f"cache: {type(network).__name__} does not let its blocks be run by a step cache (`dit.layers.stack`): "
            f"leave cache out"
        )


class Memory:
    """What one network's batch keeps of its last complete calls. first: (R, N, D), the residuals of the first block.
    rest: (R, N, D), those of the other blocks of each stack. calls, reuses: (R,) int64, of each row."""

    def __init__(self, rule: FirstBlockCache) -> None:
        self.rule = rule
        self.first: Tensor | None = None
        self.rest: dict[int, Tensor] = {}
        self.calls = self.reuses = torch.zeros(0, dtype=torch.int64)

    def decide(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rows that run all blocks and the rows that reuse, each (K,) int64, by the first block's residual
        (B, N, D). Synchronizes with the device."""
        batch = len(residual)
        self.first = residual.new_zeros(residual.shape) if self.first is None else longer(self.first, batch)
        self.calls, self.reuses = (longer(n.to(residual.device), batch) for n in (self.calls, self.reuses))
        last = self.first[:batch].float()
        difference = (residual.float() - last).abs().mean((1, 2)) / last.abs().mean((1, 2))
        reuse = (difference < self.rule.threshold) & (self.calls[:batch] >= self.rule.warmup_calls)
        if self.rule.most_reuses is not None:
            reuse &= self.reuses[:batch] < self.rule.most_reuses
        run, reused = (~reuse).nonzero().flatten(), reuse.nonzero().flatten()
        self.calls = torch.cat([self.calls[:batch] + 1, self.calls[batch:]])
        self.reuses = torch.cat([(self.reuses[:batch] + 1) * reuse, self.reuses[batch:]])
        self.first = self.first.index_copy(0, run, residual[run].to(self.first.dtype))
        return run, reused

    def keep(self, stack: int, rows: Tensor, residual: Tensor) -> None:
        """Stores the residual (K, N, D) of a stack's blocks in these rows."""
        known = self.rest.get(stack)
        size = max(len(self.calls), 0 if known is None else len(known))
        known = residual.new_zeros(size, *residual.shape[1:]) if known is None else longer(known, size)
        self.rest[stack] = known.index_copy(0, rows, residual.to(known.dtype))


class CachedRun(RunBlocks):
    """Runs the blocks of one network call. computed, saved: the block evaluations of all rows. The first block of the
    first stack decides for all stacks."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.stack, self.computed, self.saved = memory, -1, 0, 0
        self.rows: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        blocks: Iterable[nn.Module],
        streams: tuple[Tensor, ...],
        inputs: Inputs,
        rotary: Tensor | None = None,
        image: int = 0,
        before: int = 0,
    ) -> tuple[Tensor, ...]:
        rest, self.stack = list(blocks), self.stack + 1
        if not rest:
            return streams
        if self.rows is None:
            start = streams[image][:, before:]
            streams = all_blocks(rest[:1], streams, inputs, rotary)
            self.rows = self.memory.decide(streams[image][:, before:] - start)
            rest, self.computed = rest[1:], self.computed + len(start)
        run, reused = self.rows
        self.computed, self.saved = self.computed + len(run) * len(rest), self.saved + len(reused) * len(rest)
        if not len(reused):
            made = all_blocks(rest, streams, inputs, rotary)
            self.memory.keep(self.stack, run, made[image][:, before:] - streams[image][:, before:])
            return made
        merged = list(streams)
        if len(run):
            some = tuple(stream[run] for stream in streams)
            made = all_blocks(rest, some, take(inputs, run), rotary)
            self.memory.keep(self.stack, run, made[image][:, before:] - some[image][:, before:])
            merged = [s.index_copy(0, run, m.to(s.dtype)) for s, m in zip(streams, made, strict=True)]
        whole, added = merged[image], self.memory.rest[self.stack][reused]
        tokens = whole[:, before:].index_add(0, reused, added.to(whole.dtype))
        merged[image] = torch.cat([whole[:, :before], tokens], dim=1) if before else tokens
        return tuple(merged)


def longer(values: Tensor, rows: int) -> Tensor:
    """Returns the values with zeros appended, if there are fewer rows."""
    missing = max(0, rows - len(values))
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values


def take(inputs: Any, rows: Tensor) -> Any:
    """Returns these rows of every tensor, also in nested tuples. An attention bias (K, 1, 1, M) gets rows with a stride
    of a multiple of 8 again, as in `key_bias`."""
    if inputs is None:
        return None
    if isinstance(inputs, tuple):
        return tuple(take(part, rows) for part in inputs)
    found = inputs[rows]
    return F.pad(found, (0, -found.shape[-1] % 8))[..., : found.shape[-1]] if found.dim() == 4 else found
