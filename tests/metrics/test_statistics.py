import numpy as np
import pytest
import torch

from dit.metrics.base import FeatureMetric
from dit.metrics.extractors import Extractor, Inception
from dit.metrics.frechet import FrechetDistance
from dit.metrics.statistics import read_statistics

DIMS = {"pool": 6, "logits": 4, "spatial": 5}


class SmallInception(Inception):
    """Features are sums of a few pixels."""

    def __init__(self):
        Extractor.__init__(self, 32)
        self.dims, self.protocol = DIMS, {"network": "sums"}

    def extract(self, images):
        flat = images.flatten(1).float() / 255
        return {name: flat[:, : 7 * dim].unflatten(1, (dim, 7)).sum(2) for name, dim in DIMS.items()}


class Another(FeatureMetric):
    headlines = {"precision": True, "recall": True}


def pictures(seed, n=60):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def written(file, **more):
    """Writes statistics as pytorch-fid and ADM do: numpy's mean and cov."""
    features = SmallInception()(pictures(0))
    pool, spatial = features["pool"].double().numpy(), features["spatial"].double().numpy()
    arrays = {"mu": pool.mean(0), "sigma": np.cov(pool, rowvar=False)}
    arrays |= {"mu_s": spatial.mean(0), "sigma_s": np.cov(spatial, rowvar=False)}
    np.savez(file, **{name: value for name, value in (arrays | more).items() if value is not None})
    return file


def metrics():
    extractor = SmallInception()
    return [FrechetDistance("fid", extractor), FrechetDistance("sfid", extractor, "spatial")]


def test_statistics_replace_the_pictures_they_were_computed_from(tmp_path):
    file = written(tmp_path / "a.npz", arr_0=pictures(0).permute(0, 2, 3, 1).numpy())
    with_pictures, with_statistics = metrics(), metrics()
    read_statistics(file).load_into(with_statistics)
    for one, other in zip(with_pictures, with_statistics, strict=True):
        one.update(pictures(0), real=True)
        for metric in (one, other):
            metric.update(pictures(1))
        assert other.compute() == pytest.approx(one.compute(), rel=1e-9)


def test_the_fingerprint_depends_only_on_the_values(tmp_path):
    names = {"a": {}, "again": {"arr_1": np.arange(3)}, "bare": {"mu_s": None}, "other": {"mu": np.zeros(6)}}
    prints = {
        name: read_statistics(written(tmp_path / f"{name}.npz", **more)).fingerprint for name, more in names.items()
    }
    assert prints["a"] == prints["again"]
    assert len(set(prints.values())) == 3


def test_an_error_names_metrics_that_need_pictures_and_nothing_is_loaded(tmp_path):
    fid, sfid = metrics()
    with pytest.raises(ValueError, match=r"^sfid, precision, recall: cannot be computed from these statistics"):
        read_statistics(written(tmp_path / "a.npz", mu_s=None)).load_into([fid, sfid, Another(fid.extractor)])
    assert not fid.reference.count
    other = Extractor(4)
    other.dims = DIMS
    with pytest.raises(ValueError, match=r"^fd_other: cannot"):
        read_statistics(tmp_path / "a.npz").load_into([fid, FrechetDistance("fd_other", other)])


def test_metrics_without_a_reference_do_not_change(tmp_path):
    metric = Another(SmallInception())
    metric.reference_split = None
    read_statistics(written(tmp_path / "a.npz")).load_into([metric])
    assert metric.real == []


@pytest.mark.parametrize(("arrays", "fault"), [
    ({"mu": None}, "it contains sigma, mu_s, sigma_s, and must contain mu and sigma"),
    ({"mu": np.zeros((6, 1))}, r"mean \(6, 1\) float64.*not \(D,\) and \(D, D\)"),
    ({"mu": np.zeros(5)}, r"not \(D,\) and \(D, D\)"),
    ({"mu": np.full(6, np.nan)}, "NaN or infinite"),
    ({"sigma_s": np.triu(np.ones((5, 5)))}, "not symmetric"),
    ({"sigma": -np.eye(6)}, "not symmetric with a nonnegative diagonal"),
    ({"mu": np.array([None] * 6)}, "allow_pickle"),
])  # fmt: skip
def test_invalid_moments_give_a_one_line_error(tmp_path, arrays, fault):
    with pytest.raises(ValueError, match=fault) as error:
        read_statistics(written(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(error.value)


def test_a_broken_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_statistics(tmp_path / "none.npz")
    whole = written(tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match="not an npz, or is truncated"):
        read_statistics(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(ValueError, match="not an npz"):
        read_statistics(tmp_path / "b.npy")
