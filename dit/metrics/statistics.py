"""Published reference statistics: mean and covariance of Inception features, instead of real pictures."""

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
    """Mean (D,) and unbiased covariance (D, D) of the pooled features and, if given, of the spatial ones; all float64.

    fingerprint: a hash of the values. The file does not say how its pictures were resized: the user must know that it
    follows the protocol of `fid`.
    """

    mean: Tensor
    cov: Tensor
    spatial: Gaussian | None
    fingerprint: str

    def load_into(self, metrics: Iterable[ImageMetric]) -> None:
        """Sets the reference of every metric that needs real pictures. Raises ValueError with the names of the metrics
        that need more than these statistics, before any reference is set."""
        needing = [metric for metric in metrics if metric.reference_split is not None]
        gaussians = [(metric, self._of(metric)) for metric in needing]
        unsupported = [name for metric, gaussian in gaussians if gaussian is None for name in metric.headlines]
        if unsupported:
            raise ValueError(
                f"{', '.join(unsupported)}: cannot be computed from these statistics, only from pictures; give a "
                f"folder or an npz of pictures as the reference, or leave these metrics out"
            )
        for metric, gaussian in gaussians:
            assert gaussian is not None
            metric.load_reference(vars(Moments.of_gaussian(*gaussian)))
            metric.reference_count = None  # the file does not contain the number of pictures

    def _of(self, metric: ImageMetric) -> Gaussian | None:
        """Returns the Gaussian of the metric's features, or None if these statistics do not contain it."""
        if not (isinstance(metric, FrechetDistance) and isinstance(metric.extractor, Inception)):
            return None
        gaussian = {"pool": (self.mean, self.cov), "spatial": self.spatial}.get(metric.layer)
        return gaussian if gaussian is not None and len(gaussian[0]) == metric.dim else None


def read_statistics(path: str | Path) -> Statistics:
    """Reads an npz with `mu` and `sigma` (pytorch-fid, clean-fid, EDM) and optionally `mu_s` and `sigma_s` (ADM).

    Raises ValueError if the arrays are missing, or are not a mean and a covariance.
    """
    try:
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise ValueError("it is not an npz, or is truncated")
        with np.load(path, allow_pickle=False) as file:
            pairs = [("mu", "sigma"), ("mu_s", "sigma_s")]
            found = [tuple(file[name] for name in pair) for pair in pairs if set(pair) <= set(file.files)]
            if not {"mu", "sigma"} <= set(file.files):
                raise ValueError(f"it contains {', '.join(file.files) or 'nothing'}, and must contain mu and sigma")
        gaussians = [gaussian(*pair) for pair in found]
    except (*BROKEN_ZIP, ValueError) as error:
        raise ValueError(f"{path} cannot be read as statistics: {first_line(error)}") from None
    digest = hashlib.sha256(b"statistics 1")
    for tensor in (part for pair in gaussians for part in pair):
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    spatial = gaussians[1] if len(gaussians) > 1 else None
    return Statistics(*gaussians[0], spatial, digest.hexdigest()[:16])


def gaussian(mean: np.ndarray, cov: np.ndarray) -> Gaussian:
    """Returns mean and covariance as float64 tensors. Raises ValueError if they are not a mean and a covariance."""
    size = mean.size
    if mean.dtype.kind != "f" or cov.dtype.kind != "f" or mean.shape != (size,) or cov.shape != (size, size):
        raise ValueError(f"mean {mean.shape} {mean.dtype}, covariance {cov.shape} {cov.dtype}: not (D,) and (D, D)")
    m, s = torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(cov.astype(np.float64))
    if not (m.isfinite().all() and s.isfinite().all()):
        raise ValueError("it contains NaN or infinite values")
    if (s - s.T).abs().max() > 1e-4 * s.abs().max() or s.diagonal().min() < 0:
        raise ValueError("its covariance is not symmetric with a nonnegative diagonal")
    return m, s
