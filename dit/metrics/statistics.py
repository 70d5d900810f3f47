"""Reference statistics that others publish: Gaussians of Inception features, in place of the real pictures."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit.errors import BROKEN_ZIP, first_line
from dit.metrics.base import ImageMetric
from dit.metrics.extractors import Inception
from dit.metrics.frechet import FrechetDistance, Moments

Gaussian = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and unbiased covariance (D, D) of the pooled features, and of the spatial ones where they are known,
    all float64. fingerprint: names their values. They do not say how pictures were resized for them: that they are of
    the protocol of `fid` is for whoever chooses them to know.
    """

    mean: Tensor
    cov: Tensor
    spatial: Gaussian | None
    fingerprint: str

    def show(self, metrics: Iterable[ImageMetric]) -> None:
        """Gives them to every metric that wants real pictures, as their reference. Raises ValueError, before any has
        taken them, naming those that cannot do with them."""
        wanting = [metric for metric in metrics if metric.reference_split is not None]
        known = [(metric, self._of(metric)) for metric in wanting]
        lost = [name for metric, gaussian in known if gaussian is None for name in metric.headlines]
        if lost:
            raise ValueError(
                f"{', '.join(lost)}: cannot be had from these statistics, only from pictures; give a folder or an npz "
                f"of pictures as the reference, or leave these metrics out"
            )
        for metric, gaussian in known:
            assert gaussian is not None
            metric.load_reference(vars(Moments.of_gaussian(*gaussian)))
            metric.reference_count = None  # it is not said how many pictures they are of

    def _of(self, metric: ImageMetric) -> Gaussian | None:
        """What the metric can take for its reference."""
        if not (isinstance(metric, FrechetDistance) and isinstance(metric.extractor, Inception)):
            return None
        gaussian = {"pool": (self.mean, self.cov), "spatial": self.spatial}.get(metric.layer)
        return gaussian if gaussian is not None and len(gaussian[0]) == metric.dim else None


def read_statistics(path: str | Path) -> Statistics:
    """Of an npz with `mu` and `sigma` (pytorch-fid, clean-fid, EDM) and, as in ADM's, `mu_s` and `sigma_s`.

    Raises ValueError where these are not there, or are no mean and covariance.
    """
    try:
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise ValueError("it is no npz, or not a whole one")
        with np.load(path, allow_pickle=False) as file:
            pairs = [("mu", "sigma"), ("mu_s", "sigma_s")]
            found = [tuple(file[name] for name in pair) for pair in pairs if set(pair) <= set(file.files)]
            if not {"mu", "sigma"} <= set(file.files):
                raise ValueError(f"it holds {', '.join(file.files) or 'nothing'}, and must hold mu and sigma")
        gaussians = [gaussian(*pair) for pair in found]
    except (*BROKEN_ZIP, ValueError) as error:
        raise ValueError(f"{path} cannot be read as statistics: {first_line(error)}") from None
    digest = hashlib.sha256(b"statistics 1")
    for tensor in (part for pair in gaussians for part in pair):
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    spatial = gaussians[1] if len(gaussians) > 1 else None
    return Statistics(*gaussians[0], spatial, digest.hexdigest()[:16])


def gaussian(mean: np.ndarray, cov: np.ndarray) -> Gaussian:
    """float64, checked."""
    size = mean.size
    if mean.dtype.kind != "f" or cov.dtype.kind != "f" or mean.shape != (size,) or cov.shape != (size, size):
        raise ValueError(f"mean {mean.shape} {mean.dtype}, covariance {cov.shape} {cov.dtype}: not (D,) and (D, D)")
    m, s = torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(cov.astype(np.float64))
    if not (m.isfinite().all() and s.isfinite().all()):
        raise ValueError("it holds NaN or infinite values")
    if (s - s.T).abs().max() > 1e-4 * s.abs().max() or s.diagonal().min() < 0:
        raise ValueError("its covariance is not symmetric with a diagonal of variances")
    return m, s
