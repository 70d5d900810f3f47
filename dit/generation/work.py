"""The list of all pictures that a call makes, computed by index, so that it takes no memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from dit.annotations import LARGEST_SEED
from dit.picture_files import size_text
from dit.plain_values import numbers


@dataclass(frozen=True)
class Job:
    """One picture to make. index: its place in the work; name: that of its file, without a suffix; model: the number of
    the model; size: (width, height) in pixels, or None for that of training."""

    index: int
    name: str
    model: int
    size: tuple[int, int] | None
    prompt: str
    seed: int


class InShards:
    """What is in shards of `shard_size` successive pictures, the last one fewer."""

    shard_size: int

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def shards(self) -> int:
        return -(-len(self) // self.shard_size)

    def rows(self, shard: int) -> range:
        """Returns the indices of the pictures in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self)))


@dataclass(frozen=True)
class Table(InShards):
    """Pictures that are made already."""

    count: int
    shard_size: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Work(InShards):
    """Every model with every size, prompt and seed, in this order, the seeds innermost. seeds: a list or a range."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    sizes: Sequence[tuple[int, int] | None] = (None,)
    models: int = 1
    shard_size: int = 256

    def __len__(self) -> int:
        return self.models * len(self.sizes) * len(self.prompts) * len(self.seeds)

    def __getitem__(self, index: int) -> Job:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rest, seed = divmod(index, len(self.seeds))
        rest, prompt = divmod(rest, len(self.prompts))
        model, place = divmod(rest, len(self.sizes))
        size = self.sizes[place]
        name = f"prompt_{prompt}_seed_{self.seeds[seed]}{self.suffix(size)}"
        name = name if self.models == 1 else f"model_{model}_{name}"
        return Job(index, name, model, size, self.prompts[prompt], self.seeds[seed])

    def suffix(self, size: tuple[int, int] | None) -> str:
        """Returns the end of the names of pictures of a size: empty if all have one size."""
        return "" if len(self.sizes) == 1 or size is None else f"_{size_text(size)}"

    def batches(self, shard: int, batch_sizes: Sequence[Sequence[int]]) -> list[list[Job]]:
        """Returns the jobs of a shard in batches, each of one model and one size. batch_sizes: by model and size."""
        found = []
        for (model, size), group in groupby((self[row] for row in self.rows(shard)), lambda job: (job.model, job.size)):
            jobs, most = list(group), batch_sizes[model][self.sizes.index(size)]
            found += [jobs[first : first + most] for first in range(0, len(jobs), most)]
        return found


def seeds_of(value: int | str | Sequence[int], n: int | None = None) -> Sequence[int]:
    """Returns the seeds of a number, a list, or a text FIRST-LAST, which takes no memory; with `n`, so many successive
    seeds from a single one on. Raises ValueError for something else, and if both `n` and several seeds are given."""
    if n is not None:
        if isinstance(value, str) or len(first := numbers(value, "seeds")) > 1:
            raise ValueError(f"n={n} and seeds={value} both say how many pictures a prompt gets; give one of them")
        if n < 1 or first[0] + n - 1 > LARGEST_SEED:
            raise ValueError(f"n={n}: give a number of at least 1, with seeds up to {LARGEST_SEED}")
        return range(first[0], first[0] + n)
    if not isinstance(value, str):
        return numbers(value, "seeds")
    ends = re.fullmatch(r"(\d{1,10})-(\d{1,10})", value)
    if ends is None or not int(ends[1]) <= int(ends[2]) <= LARGEST_SEED:
        raise ValueError(f"seeds={value}: give a number, a list, or FIRST-LAST, both included, such as seeds=0-99")
    return range(int(ends[1]), int(ends[2]) + 1)
