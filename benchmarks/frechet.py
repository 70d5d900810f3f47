"""What a Fréchet distance costs once the features are there: `python benchmarks/frechet.py`.

The distance between two Gaussians of 2048 dimensions with the spectrum of Inception's features (a power law), by

  ours                 symmetric eigenvalue problems: from both covariances; with the real one's root at hand, as in a
                       sweep, and every picture's influence; and from fewer pictures than dimensions
  torch-fidelity       numpy's eigenvalues of the product of the covariances
  torchmetrics         torch's eigenvalues of the same
  ADM, pytorch-fid     the matrix root of the same by scipy

with wall-clock seconds, processor seconds, how many times as many processor seconds as ours it takes, and the distance.
For one thread say `OMP_NUM_THREADS=1 python benchmarks/frechet.py`; --all for scipy too, which takes longest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torchmetrics.image.fid import _compute_fid

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.metrics.frechet import Moments, distance_and_influences, frechet_distance, root_of


def drawn(count: int, dim: int, seed: int, shift: float) -> Tensor:
    """(count, dim) float32 features, correlated."""
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed % 2)))[0]
    return torch.randn(count, dim, generator=draw) * torch.arange(1, dim + 1) ** -0.5 @ basis.T + shift


def moments_of(features: Tensor) -> Moments:
    moments = Moments.zero(features.shape[1])
    moments.add(features)
    return moments


def by_scipy(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root.real))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--few", type=int, default=500, help="the number of pictures that are fewer than dimensions")
    parser.add_argument("--all", action="store_true", help="scipy's matrix root too")
    options = parser.parse_args()
    dim = options.dim
    sample_features, few = drawn(2 * dim, dim, 1, 0.02), drawn(options.few, dim, 3, 0.02)
    real, made, made_few = moments_of(drawn(2 * dim, dim, 0, 0.0)), moments_of(sample_features), moments_of(few)
    tensors = (*real.gaussian(), *made.gaussian())
    arrays = tuple(t.numpy() for t in tensors)
    keys, root = ("mu", "sigma"), root_of(tensors[1])
    one, other = dict(zip(keys, arrays[:2], strict=True)), dict(zip(keys, arrays[2:], strict=True))
    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: frechet_distance(real, made),
        "ours, root known, with influences": lambda: distance_and_influences(real, root, made, sample_features)[0],
        f"ours, the same of {len(few)} pictures": lambda: distance_and_influences(real, root, made_few, few)[0],
        "torch-fidelity": lambda: fid_statistics_to_metric(one, other, False)["frechet_inception_distance"],
        "torchmetrics": lambda: float(_compute_fid(*tensors)),
    }
    if options.all:
        ways["ADM, pytorch-fid"] = lambda: by_scipy(*arrays)
    print(f"{dim} dimensions, {torch.get_num_threads()} threads")
    print(f"{'':36}{'wall s':>8}{'cpu s':>8}{'ratio':>8}  distance")
    first = 0.0
    for name, way in ways.items():
        wall, cpu = time.perf_counter(), time.process_time()
        distance = way()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        first = first or cpu
        print(f"{name:36}{wall:8.2f}{cpu:8.2f}{cpu / first:8.2f}  {distance:.9g}", flush=True)


if __name__ == "__main__":
    main()
