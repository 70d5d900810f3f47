"""Power-function averages: their profiles, reconstruction from snapshots, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from dit.checkpoints.posthoc import coefficients, gamma_of, inner_product, reconstruct, width_of
from dit.checkpoints.snapshots import file_name, remove_later, snapshots_of, write_snapshot

WIDTHS = (0.05, 0.1)


def profile(tau, t, width):
    gamma = gamma_of(width)
    return np.where(tau <= t, (gamma + 1) * np.minimum(tau / t, 1) ** gamma / t, 0.0)


def snapshots(steps, count, widths=WIDTHS):
    return [(round(steps * (i + 1) / count), width) for i in range(count) for width in widths]


@pytest.mark.parametrize("width", [0.01, 0.03, 0.05, 0.1, 0.2, 0.28])
def test_width_and_exponent_are_inverse_and_the_width_is_the_standard_deviation(width):
    assert width_of(gamma_of(width)) == pytest.approx(width, rel=1e-12)
    moments = [quad(lambda tau, k=k: tau**k * profile(tau, 1.0, width), 0, 1)[0] for k in (0, 1, 2)]
    assert moments[0] == pytest.approx(1, rel=1e-8)
    assert np.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(width, rel=1e-6)


def test_the_papers_pairs_of_width_and_exponent():
    """Section 3.1 of arXiv:2312.02696: 0.05 and 0.10 are about gamma = 16.97 and 6.94."""
    assert [round(gamma_of(width), 2) for width in WIDTHS] == [16.97, 6.94]


@pytest.mark.parametrize("a", [(100, 0.05), (70, 0.1), (20, 0.2)])
@pytest.mark.parametrize("b", [(100, 0.1), (70, 0.1), (90, 0.03)])
def test_inner_products_are_the_integrals(a, b):
    numeric = quad(lambda tau: profile(tau, *a) * profile(tau, *b), 0, min(a[0], b[0]), epsabs=1e-12)[0]
    assert inner_product(a[0], gamma_of(a[1]), b[0], gamma_of(b[1])) == pytest.approx(numeric, rel=1e-8)


@pytest.mark.parametrize("count", [1, 2, 16, 200])
@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.2])
def test_the_error_is_the_distance_of_the_profiles(count, width):
    held = snapshots(1000, count)
    x, error = coefficients(held, width, 1000)
    assert x.sum() == pytest.approx(1, abs=1e-12)
    tau = (np.arange(400_000) + 0.5) / 400
    target, ours = profile(tau, 1000, width), sum(f * profile(tau, *s) for f, s in zip(x, held, strict=True))
    assert error == pytest.approx(np.linalg.norm(target - ours) / np.linalg.norm(target), rel=1e-2)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.2])
def test_no_other_coefficients_of_sum_one_are_nearer(width):
    held = snapshots(1000, 8)
    x, _ = coefficients(held, width, 1000)
    tau = (np.arange(100_000) + 0.5) / 100
    profiles, target = np.array([profile(tau, *s) for s in held]), profile(tau, 1000, width)
    for i in range(len(held) - 1):
        for change in (-0.01, 0.01):
            other = x.copy()
            other[[i, i + 1]] += change, -change
            assert np.linalg.norm(target - other @ profiles) > np.linalg.norm(target - x @ profiles)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 16, 500])
def test_a_tracked_width_is_its_last_snapshot(width, count):
    held = snapshots(1000, count)
    x, error = coefficients(held, width, 1000)
    np.testing.assert_allclose(x, [float(s == (1000, width)) for s in held], atol=1e-7)
    assert error < 1e-6


def test_more_snapshots_make_a_smaller_error():
    errors = {n: [coefficients(snapshots(1024, n), w, 1024)[1] for w in (0.03, 0.07, 0.2)] for n in (2, 8, 32, 128)}
    for fewer, more in ((2, 8), (8, 32), (32, 128)):
        assert all(a < b for a, b in zip(errors[more], errors[fewer], strict=True))
    assert max(errors[32]) < 0.012


@pytest.fixture
def run(tmp_path):
    """Snapshots of weights that move from 0 by 1 a step, for 12 steps; their exact averages follow from the profile."""
    for step in range(1, 13):
        for width in WIDTHS:
            shares = np.diff((np.arange(step + 1) / step) ** (gamma_of(width) + 1))
            mean = torch.tensor(shares @ np.arange(1, step + 1))
            average = {"moves": mean.float().expand(2, 3), "stays": torch.full((4,), 0.75)}
            write_snapshot(tmp_path, step, width, average, torch.float32)
    return tmp_path


def test_a_constant_stays_and_a_line_has_its_average(run):
    how, weights = reconstruct(run, "posthoc_0.07", 99)
    assert (how.width, how.step, len(how.snapshots)) == (0.07, 12, 24)
    torch.testing.assert_close(weights["stays"], torch.full((4,), 0.75))
    shares = np.diff((np.arange(13) / 12) ** (gamma_of(0.07) + 1))
    torch.testing.assert_close(
        weights["moves"], torch.full((2, 3), shares @ np.arange(1, 13)).float(), rtol=1e-3, atol=0
    )
    assert how.description["relative_error"] == how.error > 0
    assert how.description["snapshots"][0] == "step_0000001_width_0.05.safetensors"


def test_an_earlier_step(run):
    for name, last in (("posthoc_0.1@7", 12), ("posthoc_0.1", 7)):
        how, weights = reconstruct(run, name, last)
        assert how.step == 7
        shares = np.diff((np.arange(8) / 7) ** (gamma_of(0.1) + 1))
        torch.testing.assert_close(weights["moves"], torch.full((2, 3), shares @ np.arange(1, 8)).float())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("posthoc_0.02", r"must lie in \[0.03, 0.2\]"),
        ("posthoc_0.21", r"must lie in \[0.03, 0.2\]"),
        ("posthoc_", "write posthoc_WIDTH"),
        ("posthoc_nan", "write posthoc_WIDTH"),
        ("posthoc_0.1@13", r"no snapshots of step 13 \(it has: 1, 2, .*\); .* callbacks.posthoc_ema.every"),
        ("posthoc_0.2@2", r"4 snapshots up to step 2 are too few: .* 45 %, the limit 5 %; .* nearer to 0.05, 0.1$"),
    ],
)
def test_what_is_refused(run, name, message):
    with pytest.raises(ValueError, match=message):
        reconstruct(run, name, 12)


def test_a_run_without_snapshots(tmp_path):
    with pytest.raises(ValueError, match=r"no snapshots of step 9 \(it has: none\)"):
        reconstruct(tmp_path, "posthoc_0.1", 9)


def test_a_broken_or_other_snapshot_is_named(run):
    file = run / "snapshots" / file_name(12, 0.1)
    whole = file.read_bytes()
    for broken in (whole[:-4], whole[:20], b""):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"step_0000012_width_0.1.safetensors cannot be used: .*; remove it"):
            reconstruct(run, "posthoc_0.1", 12)
    for other in ({"moves": torch.ones(2, 3)}, {"moves": torch.ones(2, 4), "stays": torch.ones(4)}):
        write_snapshot(run, 12, 0.1, other, torch.float32)
        with pytest.raises(ValueError, match=r"step_0000012_width_0.1.safetensors cannot be used: .*; remove it"):
            reconstruct(run, "posthoc_0.1", 12)
    file.unlink()
    assert len(reconstruct(run, "posthoc_0.05", 12)[0].snapshots) == 23
    with pytest.raises(ValueError, match=r"23 snapshots up to step 12 are too few: .* 19 %.* nearer to 0.05$"):
        reconstruct(run, "posthoc_0.1", 12)


def test_float16_rounds_and_refuses_what_it_cannot_hold(tmp_path):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    write_snapshot(tmp_path, 1, 0.1, {"w": values}, torch.float16)
    _, weights = reconstruct(tmp_path, "posthoc_0.1", 1)
    torch.testing.assert_close(weights["w"], values, rtol=2**-11, atol=2**-25)
    assert not torch.equal(weights["w"], values)
    with pytest.raises(ValueError, match=r"w is not finite in torch.float16; use callbacks.posthoc_ema.dtype=bfloat16"):
        write_snapshot(tmp_path, 2, 0.1, {"w": values * 1e6}, torch.float16)
    assert snapshots_of(tmp_path) == [(1, 0.1)]


def test_files_of_other_names_are_left_alone(run):
    for name in ("step_12_width_0.05.safetensors", "step_0000012_width_0.050.safetensors", "mine.safetensors",
                 "step_0000000_width_0.1.safetensors", "step_0000013_width_e.safetensors"):  # fmt: skip
        (run / "snapshots" / name).write_bytes(b"mine")
    remove_later(run, 3)
    assert snapshots_of(run) == [(step, width) for step in (1, 2, 3) for width in WIDTHS]
    assert len(list((run / "snapshots").iterdir())) == 6 + 5
