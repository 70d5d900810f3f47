"""Base classes of the metrics of pictures."""

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
    """Returns N as in column names: 100, 1k, 2500, 50k."""
    return f"{n // 1000}k" if n and n % 1000 == 0 else str(n)


@dataclass(frozen=True)
class MetricResult:
    """scores: column -> number. each: for some columns the contribution of each picture, on the CPU, in the order of
    the pictures: (N,) bool for a share, else (N,) float64. The mean of the contributions is the score, exactly or to
    first order. Their standard deviation gives the score's uncertainty, and two results of the same prompts and noise
    can be compared per picture."""

    scores: Mapping[str, float]
    each: Mapping[str, Tensor]


class ImageMetric(torchmetrics.Metric):
    """A torchmetrics metric over uint8 pictures that returns named numbers.

    Real pictures are added with `real=True`, once; `reset` removes the generated pictures and keeps the real ones. Each
    rank updates with its share of the pictures, and all ranks return the same scores. Subclasses implement
    `update_samples`, `compute_scores` and, if they need real pictures, the four methods of the reference.

    headlines: the columns to plot, and whether higher is better. biased: True if the expectation depends on the number
    of pictures, which is then part of the column names. uses_prompts: False if the scores do not depend on the prompts.
    reference_split: the split of the real pictures. reference_count: the number of real pictures; None without a
    reference and for published statistics, which do not contain it.

    The extractor is not part of the module tree: a module that holds a metric neither trains the extractor nor saves
    its weights. `.to(device)` moves it nevertheless. Features and sums are kept on the same device, or on the CPU if
    the device has no float64.
    """

    full_state_update = False
    headlines: Mapping[str, bool]
    biased = False
    uses_prompts = True
    reference_split: str | None = None  # "val", "train" or None
    index: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # `result` synchronises, and also returns each picture's contribution
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self._reference_is_synced = True
        self.reference_count: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Extractor):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = ()) -> Self:
        """Called by `to` of this module and of its parents. Changes only the device: sums stay in float64, and the
        extractor keeps its dtype."""
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
        """Adds a batch of pictures.

        images: (B, 3, H, W) uint8, on any device. prompts: the B prompts of the pictures. index: their positions among
        all pictures, which order `each`; by default the order of the calls. real: add them to the reference. Raises
        ValueError for another shape or dtype, or a wrong number of prompts or positions."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"pictures must be (B, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
        for name, given in (("prompts", prompts), ("index", index)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"{len(images)} pictures have {len(given)} {name}; give one for each picture")
        if real:
            self._reference_is_synced = False
            self.reference_count = (self.reference_count or 0) + len(images)
            self.update_real(images)
            return
        count = sum(len(part) for part in self.index)
        rows = range(count, count + len(images)) if index is None else index
        self.keep("index", torch.tensor(list(rows), device=self.device))
        self.update_samples(images, prompts or [""] * len(images))

    def update_samples(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Adds generated pictures to the states; values per picture with `keep`."""
        raise NotImplementedError

    def compute_scores(self) -> MetricResult:
        """Returns the result, from the states of all ranks."""
        raise NotImplementedError

    def update_real(self, images: Tensor) -> None:
        """Adds real pictures to the reference; does nothing for metrics without one."""

    def reference_state(self) -> dict[str, Tensor]:
        """Returns the reference as tensors, for `load_reference`."""
        return {}

    def load_reference(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the reference of this rank by that of all ranks."""
        self._reference_is_synced = True

    def reset_reference(self) -> None:
        """Removes the real pictures."""
        self._reference_is_synced, self.reference_count = True, None

    @property
    def reference_key(self) -> str | None:
        """A name for the content of the reference state; metrics with the same key can share it."""
        return None

    def sync_reference(self) -> None:
        """Combines the references of all ranks: adds running sums, concatenates features."""
        if self._reference_is_synced:
            return
        if rank_and_world_size()[1] > 1:
            parts = {name: gather_all_tensors(value) for name, value in self.reference_state().items()}
            join = torch.cat if "features" in parts else lambda shares: torch.stack(shares).sum(0)
            self.load_reference({name: join(shares) for name, shares in parts.items()})
        self._reference_is_synced = True

    def keep(self, name: str, values: Tensor) -> None:
        """Appends (B, ...), one row per generated picture, to a list state."""
        getattr(self, name).append(values)

    def kept(self, name: str) -> Tensor:
        """Returns a list state as (N, ...), in the order of the pictures."""
        order = dim_zero_cat(self.index).argsort(stable=True)
        return dim_zero_cat(getattr(self, name))[order]

    def count_samples(self) -> int:
        return sum(len(part) for part in self.index) if isinstance(self.index, list) else len(self.index)

    def result(self) -> MetricResult:
        """Returns the result over all ranks; each rank must call it. Raises ValueError without pictures."""
        self.sync_reference()
        with self.sync_context():
            if not self.count_samples():
                raise ValueError(f"{type(self).__name__} has no pictures to score")
            result, n = self.compute_scores(), self.count_samples()
        return MetricResult(
            {self.column(name, n, self.reference_count): value for name, value in result.scores.items()},
            {self.column(name, n, self.reference_count): value.cpu() for name, value in result.each.items()},
        )

    def column(self, name: str, n: int, references: int | None = None) -> str:
        """Returns the column name for n pictures and the number of real pictures (None: published statistics).

        NAME if the expectation does not depend on n, else NAME_N. Published scores of N pictures use N real pictures or
        more; with fewer, M, the column is NAME_N_refM, as in fid_50k_ref1024.
        """
        if not self.biased:
            return name
        few = self.reference_split is not None and references is not None and references < n
        return f"{name}_{short_count(n)}" + (f"_ref{short_count(references or 0)}" if few else "")

    def compute(self) -> dict[str, float]:
        """Returns column -> score."""
        return dict(self.result().scores)


class FeatureMetric(ImageMetric):
    """A metric of a network's features, which it keeps for every picture, real or generated."""

    reference_split: str | None = "val"
    biased = True
    uses_prompts = False

    def __init__(self, extractor: Extractor, layer: str = "pool") -> None:
        super().__init__()
        if layer not in extractor.dims:
            raise ValueError(f"layer={layer}: {type(extractor).__name__} has {', '.join(extractor.dims)}")
        self.extractor, self.layer, self.dim = extractor, layer, extractor.dims[layer]
        self.add_state("features", default=[], dist_reduce_fx="cat")
        self.real: list[Tensor] = []

    def extract(self, images: Tensor) -> Tensor:
        """Returns features (B, dim) float32 on the metric's device. Raises ValueError if they are not finite."""
        features = self.extractor(images)[self.layer].to(self.device)
        if not features.isfinite().all():
            raise ValueError(f"{next(iter(self.headlines))}: the extractor returns features that are not finite")
        return features

    def update_samples(self, images: Tensor, prompts: Sequence[str]) -> None:
        self.keep("features", self.extract(images))

    def update_real(self, images: Tensor) -> None:
        self.real.append(self.extract(images))

    def sample_features(self) -> Tensor:
        """Returns (N, dim) float32, in the order of the pictures. Prints a warning if all are equal (mode collapse)."""
        features = self.kept("features")
        if len(features) > 1 and (features == features[0]).all():
            name = next(iter(self.headlines))
            print(f"warning: {name}: all {len(features)} pictures have identical features", file=sys.stderr)
        return features

    def feature_pair(self, least: int, rule: str) -> tuple[Tensor, Tensor]:
        """Returns features of the generated (N, dim) and of the real pictures (M, dim).

        Raises ValueError for fewer than `least` of either; `rule` says what needs that many."""
        generated, real = self.sample_features(), self.real_features()
        if min(len(generated), len(real)) < least:
            raise ValueError(
                f"{next(iter(self.headlines))} of {len(generated)} generated and {len(real)} real pictures: "
                f"{rule} needs at least {least} of each; give more, or leave the metric out"
            )
        return generated, real

    def real_features(self) -> Tensor:
        """Returns (M, dim) float32. Raises ValueError without real pictures."""
        if not self.real:
            raise ValueError(f"{next(iter(self.headlines))} needs real pictures, and has none")
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
