"""What every score of pictures has in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from dit.distributed import rank_and_world_size
from dit.metrics.extractors import Extractor
from dit.types import has_float64


def short_count(n: int) -> str:
    """100, 1k, 2500, 50k: how a metric's name says its N."""
    return f"{n // 1000}k" if n and n % 1000 == 0 else str(n)


@dataclass(frozen=True)
class MetricResult:
    """scores: a number for each column. each: for some columns the part that every picture has in it, on the CPU, in
    the order of the pictures: (N,) bool for a share, else (N,) float64. The mean of the parts is the score, exactly or
    to first order, so that their spread is the score's uncertainty, and two results of the same prompts and noise
    can be compared picture by picture."""

    scores: Mapping[str, float]
    each: Mapping[str, Tensor]


class ImageMetric(torchmetrics.Metric):
    """A torchmetrics metric over uint8 pictures that answers with named numbers.

    Real pictures are shown with `real=True`, once; `reset` forgets the judged pictures and keeps the real ones. Several
    processes see a share of the pictures each and agree on the scores. Subclasses write `update_samples`,
    `compute_scores` and, where they measure against real pictures, the four that speak of a reference.

    headlines: the columns worth a plot, and whether higher is better in them. biased: True where the expectation
    depends on the number of pictures, which the columns' names then say. uses_prompts: False if the scores are the same
    whatever the prompts are. reference_split: the real pictures that it measures against. reference_count: how many it
    has been shown; None for none, and for published statistics, which do not say.

    The network that it looks through is no part of the module tree: a module that holds a metric neither trains it nor
    saves its weights. `.to(device)` moves it all the same. What is kept of pictures lies on the same device, or on the
    CPU where that device has no float64.
    """

    full_state_update = False
    headlines: Mapping[str, bool]
    biased = False
    uses_prompts = True
    reference_split: str | None = None  # "val", "train" or None
    index: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # `result` does, which also gives each picture's part
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self._reference_is_synced = True
        self.reference_count: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Extractor):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = ()) -> Self:
        """What `to` calls, of this module or of one that holds it. Only the device changes: sums stay in float64, and
        the network in its own type."""
        device = fn(torch.empty(0)).device
        for part in self.__dict__.values():
            if isinstance(part, Extractor):
                part.to(device)
        if has_float64(device):
            super()._apply(lambda tensor: tensor.to(device), exclude_state)
        return self

    def update(
        self,
        images: Tensor,
        prompts: Sequence[str] | None = None,
        index: Sequence[int] | None = None,
        real: bool = False,
    ) -> None:
        """images: (B, 3, H, W) uint8, on any device; prompts: the B texts they were made from; index: their places
        among all pictures, by which `each` is ordered, else as they come. real: they are the reference."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"pictures must be (B, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
        for name, given in (("prompts", prompts), ("index", index)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"{len(images)} pictures are given {len(given)} {name}; it must be one for each")
        if real:
            self._reference_is_synced = False
            self.reference_count = (self.reference_count or 0) + len(images)
            self.update_real(images)
            return
        seen = sum(len(part) for part in self.index)
        rows = range(seen, seen + len(images)) if index is None else index
        self.keep("index", torch.tensor(list(rows), device=self.device))
        self.update_samples(images, prompts or [""] * len(images))

    def update_samples(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Adds judged pictures to the states; what is kept of each, with `keep`."""
        raise NotImplementedError

    def compute_scores(self) -> MetricResult:
        """From the states of all processes."""
        raise NotImplementedError

    def update_real(self, images: Tensor) -> None:
        """Adds real pictures to the reference. Nothing where none is needed."""

    def reference_state(self) -> dict[str, Tensor]:
        """The reference as tensors, which `load_reference` takes."""
        return {}

    def load_reference(self, state: Mapping[str, Tensor]) -> None:
        """Takes the reference of all processes, in place of one's own share."""
        self._reference_is_synced = True

    def reset_reference(self) -> None:
        """Takes the real pictures back."""
        self._reference_is_synced, self.reference_count = True, None

    @property
    def reference_key(self) -> str | None:
        """Names what the reference state holds of a picture, so that two metrics with one key can share it."""
        return None

    def sync_reference(self) -> None:
        """Joins what the processes have seen of the real pictures: running sums are added, features set one after the
        other."""
        if self._reference_is_synced:
            return
        if rank_and_world_size()[1] > 1:
            parts = {name: gather_all_tensors(value) for name, value in self.reference_state().items()}
            join = torch.cat if "features" in parts else lambda shares: torch.stack(shares).sum(0)
            self.load_reference({name: join(shares) for name, shares in parts.items()})
        self._reference_is_synced = True

    def keep(self, name: str, values: Tensor) -> None:
        """Adds (B, ...), a row for each judged picture, to a list state."""
        getattr(self, name).append(values)

    def kept(self, name: str) -> Tensor:
        """What a list state has kept of each picture, (N, ...), in the order of the pictures."""
        order = dim_zero_cat(self.index).argsort(stable=True)
        return dim_zero_cat(getattr(self, name))[order]

    def count_samples(self) -> int:
        return sum(len(part) for part in self.index) if isinstance(self.index, list) else len(self.index)

    def result(self) -> MetricResult:
        """The scores and their parts, over all processes; each process must ask."""
        self.sync_reference()
        with self.sync_context():
            if not self.count_samples():
                raise ValueError(f"{type(self).__name__} was shown no pictures to judge")
            made, n = self.compute_scores(), self.count_samples()
        return MetricResult(
            {self.column(name, n, self.reference_count): value for name, value in made.scores.items()},
            {self.column(name, n, self.reference_count): value.cpu() for name, value in made.each.items()},
        )

    def column(self, name: str, n: int, references: int | None = None) -> str:
        """The column's name at n pictures, measured against so many real ones (None: published statistics).

        NAME where the number of pictures moves no expectation, else NAME_N. Published figures of N pictures are
        measured against N real ones or more: against fewer, M, it is NAME_N_refM, as in fid_50k_ref1024.
        """
        if not self.biased:
            return name
        few = self.reference_split is not None and references is not None and references < n
        return f"{name}_{short_count(n)}" + (f"_ref{short_count(references or 0)}" if few else "")

    def compute(self) -> dict[str, float]:
        """The scores by their columns."""
        return dict(self.result().scores)


class FeatureMetric(ImageMetric):
    """A metric of a network's features, which it keeps for every picture, real and made."""

    reference_split: str | None = "val"
    biased = True
    uses_prompts = False

    def __init__(self, extractor: Extractor, layer: str = "pool") -> None:
        super().__init__()
        if layer not in extractor.dims:
            raise ValueError(f"layer={layer}: {type(extractor).__name__} gives {', '.join(extractor.dims)}")
        self.extractor, self.layer, self.dim = extractor, layer, extractor.dims[layer]
        self.add_state("features", default=[], dist_reduce_fx="cat")
        self.real: list[Tensor] = []

    def extract(self, images: Tensor) -> Tensor:
        """(B, dim) float32 on the metric's device. Raises ValueError for features that are not finite."""
        features = self.extractor(images)[self.layer].to(self.device)
        if not features.isfinite().all():
            raise ValueError(f"{next(iter(self.headlines))}: the extractor gives features that are not finite")
        return features

    def update_samples(self, images: Tensor, prompts: Sequence[str]) -> None:
        self.keep("features", self.extract(images))

    def update_real(self, images: Tensor) -> None:
        self.real.append(self.extract(images))

    def sample_features(self) -> Tensor:
        """(N, dim) float32, in the order of the pictures. Warns where a collapsed model made all of them alike."""
        features = self.kept("features")
        if len(features) > 1 and (features == features[0]).all():
            name = next(iter(self.headlines))
            print(f"warning: {name}: all {len(features)} pictures have the very same features", file=sys.stderr)
        return features

    def both(self, least: int, rule: str) -> tuple[Tensor, Tensor]:
        """(N, dim) of the made and (M, dim) of the real pictures. Raises ValueError below `least` of either."""
        made, real = self.sample_features(), self.real_features()
        if min(len(made), len(real)) < least:
            raise ValueError(
                f"{next(iter(self.headlines))} of {len(made)} made and {len(real)} real pictures: {rule} needs at "
                f"least {least} of each; give more, or leave it out"
            )
        return made, real

    def real_features(self) -> Tensor:
        """(M, dim) float32. Raises ValueError where no real pictures were shown."""
        if not self.real:
            raise ValueError(f"{next(iter(self.headlines))} measures against real pictures, and none were shown")
        if len(self.real) > 1:
            self.real = [torch.cat(self.real)]
        return self.real[0]

    @property
    def reference_key(self) -> str | None:
        return f"features of {self.extractor.fingerprint} {self.layer}"

    def reference_state(self) -> dict[str, Tensor]:
        return {"features": self.real_features()}

    def load_reference(self, state: Mapping[str, Tensor]) -> None:
        super().load_reference(state)
        self.real = [state["features"].to(self.device)]
        self.reference_count = len(state["features"])

    def reset_reference(self) -> None:
        super().reset_reference()
        self.real = []
