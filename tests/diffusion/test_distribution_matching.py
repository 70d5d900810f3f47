"""The laws of distribution matching, on Gaussian data, whose score is known: for data N(m, s^2) the velocity of the
linear path is `gaussian_velocity`. A student that jumps once from noise z to m + s z is one of two parameters."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dit.diffusion.distribution_matching import DistributionMatching
from dit.diffusion.flow_map import FlowMap, eulerian
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow, unscaled_time
from dit.diffusion.time import Uniform, UniformTime
from dit.types import Condition, Draw

M, S = 0.7, 0.4
FLOW = Flow(unscaled_time)
LABELS = {"caption": 0, "null": 1}


def gaussian_velocity(x, t, m, s):
    t = t.view(-1, 1)
    return -m + (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2) * (x - (1 - t) * m)


class Gaussian(nn.Module):
    """The exact flow map of N(m, s^2) from noise, and the exact velocity where the duration is 0."""

    def __init__(self, m, s):
        super().__init__()
        self.m, self.log_s = nn.Parameter(torch.tensor(float(m))), nn.Parameter(torch.tensor(float(s)).log())

    @property
    def s(self):
        return self.log_s.exp()

    def forward(self, x, time, condition):
        if "duration" not in condition.extra:
            return gaussian_velocity(x, time, self.m, self.s)
        t, duration = time.view(-1, 1), condition.extra["duration"].view(-1, 1)
        r = t - duration
        std = [((1 - at) ** 2 * self.s**2 + at**2).sqrt() for at in (r, t)]
        there = (1 - r) * self.m + std[0] / std[1] * (x - (1 - t) * self.m)
        return (x - there) / duration


def objective(**options):
    return DistributionMatching(Linear(), FLOW, Uniform(), UniformTime(), teacher=FLOW, **options)


def draw_of(seed, teacher, fake, n=256, step=0, null=None, **extra):
    generator = torch.Generator().manual_seed(seed)
    start, noise = (torch.randn(n, 1, generator=generator) for _ in range(2))
    u, u3 = (torch.rand(n, generator=generator, dtype=torch.float64).clamp(0.02, 0.98) for _ in range(2))
    condition = Condition(label=torch.zeros(n, dtype=torch.int64), extra=extra)
    return Draw(
        torch.zeros(n, 1), condition, noise, u, u3=u3, null=null, start=start, fake=fake, teacher=teacher, step=step
    )


@pytest.mark.parametrize("trained", [objective(), FlowMap(Linear(), FLOW, Uniform(), eulerian)], ids=["dm", "map"])
def test_validation_measures_how_far_a_student_is_from_a_flow_map(trained):
    u2 = torch.rand(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64).clamp(0.02, 0.98)
    draw = replace(draw_of(0, None, None, n=64), u2=u2)
    (exact,) = trained.validation(Gaussian(M, S), draw).values()
    assert exact.shape == (64,)
    assert float(exact.detach().max()) < 1e-3
    bent = trained.validation(lambda x, time, condition: x * condition.extra["duration"].view(-1, 1), draw)
    assert float(bent["semigroup_residual"].mean()) > 0.01


@pytest.mark.parametrize("jumps", [1, 2, 3, 4])
def test_the_gradient_changes_sign_at_the_teachers_distribution(jumps):
    def gradient(m):
        student = Gaussian(m, S)
        draw = draw_of(0, Gaussian(M, S), Gaussian(m, S), n=1024, step=jumps - 1)
        objective()(student, draw).mean().backward()
        return float(student.m.grad)

    below, at, above = (gradient(M + shift) for shift in (-0.02, 0.0, 0.02))
    assert below < 0 < above
    assert abs(at) < 0.05 * min(-below, above)


@pytest.mark.parametrize(("m", "s"), [(M + 0.3, S), (M - 0.3, S), (M, 1.5 * S), (M, 0.6 * S)])
def test_with_exact_scores_the_gradient_points_to_the_teachers_distribution(m, s):
    student = Gaussian(m, s)
    losses = objective()(student, draw_of(1, Gaussian(M, S), Gaussian(m, s), n=4096))
    losses.mean().backward()
    assert float(losses.mean()) > 1e-3
    if m != M:
        assert float(student.m.grad) * (m - M) > 0
    if s != S:
        assert float(student.log_s.grad) * (s - S) > 0


@pytest.mark.parametrize("jumps", [1, 4])
def test_with_exact_scores_a_student_converges_to_the_teachers_mean_and_scale(jumps):
    student, teacher, loss = Gaussian(-0.5, 1.2), Gaussian(M, S), objective()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / 400)
        optimizer.zero_grad()
        fake = Gaussian(float(student.m), float(student.s))
        loss(student, draw_of(2 + step, teacher, fake, step=jumps - 1)).mean().backward()
        optimizer.step()
    assert abs(float(student.m) - M) < 0.01
    assert abs(float(student.s) - S) < 0.01


def test_the_fake_network_learns_the_score_of_the_students_samples():
    student, fake, loss = Gaussian(-0.5, 1.2), Gaussian(M, S), objective()
    optimizer = torch.optim.Adam(fake.parameters(), lr=0.05)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 400)
        optimizer.zero_grad()
        loss.fake_loss(student, draw_of(500 + step, None, fake), step).mean().backward()
        optimizer.step()
    x, t = torch.linspace(-3, 3, 50).view(-1, 1), torch.linspace(0.1, 0.9, 50)
    exact = gaussian_velocity(x, t, -0.5, 1.2)
    torch.testing.assert_close(fake(x, t, Condition()), exact, rtol=0, atol=0.05)
    assert all(p.grad is None for p in student.parameters())


def test_the_students_loss_has_gradients_for_the_student_alone():
    student, teacher, fake = Gaussian(-0.5, 1.2), Gaussian(M, S), Gaussian(0, 1)
    objective()(student, draw_of(3, teacher, fake)).mean().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for network in (teacher, fake) for p in network.parameters())


def test_the_gradient_is_that_of_dmd_over_the_size_of_the_sample():
    """d loss / d x0 = (x0_fake - x0_real) / mean |x0_real - x0| / elements, with the estimates of a constant student."""
    shift = nn.Parameter(torch.zeros(()))
    draw = draw_of(4, Gaussian(M, S), Gaussian(0, 1))
    student = lambda x, time, condition: x - shift  # noqa: E731
    loss = objective(steps=1)(student, draw).sum()
    (gradient,) = torch.autograd.grad(loss, shift)
    x0, t = torch.zeros(256, 1), draw.u.float()
    x = t.view(-1, 1) * draw.noise  # of x0 = 0
    real, fake = (x - t.view(-1, 1) * gaussian_velocity(x, t, m, s) for m, s in ((M, S), (0.0, 1.0)))
    expected = (fake - real) / (real - x0).abs()
    torch.testing.assert_close(gradient, expected.sum(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loss.detach(), expected.square().sum(), rtol=1e-3, atol=1e-3)


def test_the_gradient_passes_through_all_jumps():
    """The derivative of a walk of two jumps of a student x -> (1 - d a) x is that of its square."""
    a = nn.Parameter(torch.tensor(0.3))
    loss, draw = objective(steps=2), draw_of(8, Gaussian(M, S), Gaussian(0, 1))
    x0 = loss.walk(lambda x, time, condition: a * x, draw, draw.condition, turn=1)
    torch.testing.assert_close(x0, (1 - a / 2) ** 2 * draw.start)
    (gradient,) = torch.autograd.grad(x0.sum(), a)
    torch.testing.assert_close(gradient, -(1 - a.detach() / 2) * draw.start.sum())


class Guided(nn.Module):
    """Two Gaussians, of the caption and of no caption; records the scales that it is given."""

    def forward(self, x, time, condition):
        self.scales = condition.extra.get("guidance_scale")
        mean = torch.where(condition.label.view(-1, 1) == LABELS["null"], 0.2, 1.0)
        return gaussian_velocity(x, time, mean, S)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_the_teacher_is_guided_at_the_scale_that_student_and_fake_network_get(scale):
    student, fake = Guided(), Guided()
    null = Condition(label=torch.tensor([LABELS["null"]]))
    draw, loss = draw_of(5, Guided(), fake, null=null), objective(largest_scale=8.0, scale=scale)
    loss(student, draw)
    expected = 8.0 ** draw.u3.float() if scale is None else torch.full((256,), scale)
    torch.testing.assert_close(student.scales, expected)
    torch.testing.assert_close(fake.scales, expected)
    x0 = torch.randn(256, 1, generator=torch.Generator().manual_seed(6))
    gradient = loss.gradient(x0, draw, loss.with_scale(draw))
    t = draw.u.float().view(-1, 1)
    x = (1 - t) * x0 + t * draw.noise
    real = [x - t * gaussian_velocity(x, t, mean, S) for mean in (1.0, 0.2)]
    guided = real[1] + expected.view(-1, 1) * (real[0] - real[1])
    torch.testing.assert_close(gradient, (real[0] - guided) / (guided - x0).abs(), rtol=1e-3, atol=1e-3)


def test_every_number_of_jumps_has_its_turn():
    calls = []

    def student(x, time, condition):
        calls.append((float(time[0]), float(condition.extra["duration"][0])))
        return x

    loss, draw = objective(steps=3), draw_of(7, Gaussian(M, S), Gaussian(0, 1))
    lengths = []
    for turn in range(6):
        calls.clear()
        loss.walk(student, draw, draw.condition, turn)
        lengths.append(len(calls))
        assert [start for start, _ in calls] == pytest.approx([1 - k / len(calls) for k in range(len(calls))])
        assert [length for _, length in calls] == pytest.approx([1 / len(calls)] * len(calls))
    assert lengths == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"fake_updates": 0}, r"objective.fake_updates=0 must be at least 1"),
        ({"steps": 0}, r"objective.steps=0 must be at least 1"),
        ({"largest_scale": 8.0, "scale": 9.0}, r"objective.scale=9: the student was trained with scales from 1 to 8"),
        ({"largest_scale": 8.0, "scale": 0.5}, r"objective.scale=0.5: the student was trained with scales from 1 to 8"),
        ({"scale": 2.0}, r"objective.scale=2: the student was trained with scales from 1 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        objective(**options)


def test_it_needs_a_teacher():
    with pytest.raises(ValueError, match="say distill=RUN"):
        DistributionMatching(Linear(), FLOW, Uniform(), UniformTime())
