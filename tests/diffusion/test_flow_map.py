"""The laws of flow maps, on Gaussian data, whose flow map is known: for data N(m, s^2) the standard deviation of x_t is
std(t) = sqrt(alpha^2 s^2 + sigma^2), and X_{t -> r}(x) = alpha_r m + std(r) / std(t) (x - alpha_t m)."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from dit.adapters.extra import ExtraConditions
from dit.backbones.dit import DiT
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.flow_map import (
    FlowMap,
    Jumps,
    coefficients,
    eulerian,
    lagrangian,
    output_of,
    semigroup,
    semigroup_residual,
)
from dit.diffusion.objective import Objective
from dit.diffusion.path import Linear, like
from dit.diffusion.prediction import EDM, X0, Eps, Flow, LearnedRange, Prediction, V, unscaled_time
from dit.diffusion.sampler.consistency import consistency
from dit.diffusion.time import Uniform
from dit.types import Condition, Draw

from .conftest import PATHS

IDENTITIES = {"eulerian": eulerian, "lagrangian": lagrangian, "semigroup": semigroup}
PREDICTIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(unscaled_time), "edm": EDM(0.7)}
M, S = 0.7, 0.4
T = torch.tensor([0.9, 0.6, 0.5, 0.8], dtype=torch.float64)
R = torch.tensor([0.1, 0.2, 0.4, 0.01], dtype=torch.float64)
CONDITION = Condition(label=torch.zeros(4))


def std(point):
    return (point.alpha**2 * S**2 + point.sigma**2).sqrt()


def exact_jump(path, x, t, r):
    here, there = path.point(t), path.point(r)
    return like(x, there.alpha) * M + like(x, std(there) / std(here)) * (x - like(x, here.alpha) * M)


def exact_velocity(path, x, t):
    point = path.point(t)
    growth = (point.alpha * point.d_alpha * S**2 + point.sigma * point.d_sigma) / std(point) ** 2
    return like(x, point.d_alpha) * M + like(x, growth) * (x - like(x, point.alpha) * M)


class Exact(Prediction):
    """A prediction whose network knows the map; where r = t, the velocity."""

    def __init__(self, prediction, path):
        self.of, self.path = prediction, path

    def weights(self, point):
        return self.of.weights(point)

    def call_network(self, network, x, point, condition):
        t, r = point.t, point.end
        if bool((t == r).all()):
            return output_of(exact_velocity(self.path, x, t), x, t, self.path, self.of)
        a, b = coefficients(self.path, self.of, t, r)
        return (exact_jump(self.path, x, t, r) - like(x, a) * x) / like(x, b)


def exact_jumps(path, prediction, derivative="jvp"):
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    velocity = exact_velocity(path, x, T)
    exact = Exact(prediction, path)
    return Jumps(
        None,
        path,
        exact,
        CONDITION,
        x,
        T,
        R,
        lambda: (velocity, velocity),
        lambda x, t, c: exact_velocity(path, x, t),
        derivative,
    )


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
def test_the_exact_map_has_every_identity(path, prediction, identity):
    jumps = exact_jumps(path, prediction)
    torch.testing.assert_close(identity(jumps), jumps.output(jumps.x, T, R), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
def test_the_exact_map_has_every_identity_in_float32(identity):
    jumps = exact_jumps(Linear(), Flow(unscaled_time))
    expected, single = jumps.output(jumps.x, T, R).float(), jumps.x.float()
    velocity = jumps.here()[0].float()
    found = identity(replace(jumps, x=single, here=lambda: (velocity, velocity)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
def test_no_other_map_has_an_identity(identity):
    """A map with another velocity inside, but the right one where r = t, breaks each identity."""
    wrong = replace(exact_jumps(Linear(), Flow(unscaled_time)), prediction=Bent(1.0))
    assert (identity(wrong) - wrong.output(wrong.x, T, R)).abs().max() > 1e-2


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
def test_the_semigroup_residual_of_the_exact_map_is_0(path, prediction):
    jumps = exact_jumps(path, prediction)
    assert float(jumps.semigroup_residual(jumps.x, T, R).max()) < 1e-12
    single = jumps.semigroup_residual(jumps.x.float(), T, R)
    assert float(single.max()) < 1e-4  # float32: of a network


class Bent(Exact):
    """A prediction whose network is wrong by `size` (t - r)^2, which is nothing where r = t."""

    def __init__(self, size):
        super().__init__(Flow(unscaled_time), Linear())
        self.size = size

    def call_network(self, network, x, point, condition):
        return super().call_network(network, x, point, condition) + self.size * like(x, (point.t - point.end) ** 2)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_consistency_sampling_of_a_flow_map_jumps_to_the_data(path):
    """Each step is the jump to t = 0 and fresh noise, exactly: consistency models are the case r = 0."""
    x, z = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    exact = Denoiser(None, path, Exact(PREDICTIONS["v"], path))
    start, middle, end = (path.point(t) for t in (0.9, 0.4, 0.0))

    def denoise(x, point):
        return exact(x, replace(path.point(torch.full((4,), point.t)), end=torch.full((4,), point.end)), CONDITION)

    made = consistency(denoise, x, [start, middle, end], lambda here, there: z)
    to_data = exact_jump(path, x, torch.full((4,), 0.9), torch.zeros(4))
    again = middle.alpha * to_data + middle.sigma * z
    torch.testing.assert_close(
        made, exact_jump(path, again, torch.full((4,), 0.4), torch.zeros(4)), rtol=1e-5, atol=1e-5
    )


def test_the_semigroup_residual_grows_with_the_error_of_a_map():
    jumps = exact_jumps(Linear(), Flow(unscaled_time))
    small, large = (replace(jumps, prediction=Bent(size)).semigroup_residual(jumps.x, T, R) for size in (0.1, 0.4))
    assert float(small.min()) > 1e-4
    assert bool((2 * small < large).all())
    one, x = replace(jumps, prediction=Bent(0.1)), jumps.x
    middle = (T + R) / 2
    two = one.jump(one.jump(x, T, middle), middle, R)
    expected = (one.jump(x, T, R) - two).flatten(1).norm(dim=1) / (two - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(small, expected, rtol=1e-12, atol=0)


def test_the_residual_of_a_draw_is_that_of_jumps_between_its_two_times():
    u, u2 = torch.rand(2, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x0, eps = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    draw = Draw(x0, Condition(label=torch.zeros(64)), eps, u, u2=u2)
    path = Linear()
    exact = semigroup_residual(None, path, Exact(Flow(unscaled_time), path), draw)
    assert exact.shape == (64,)
    assert float(exact.max()) < 1e-9
    assert float(semigroup_residual(None, path, Bent(0.5), draw).mean()) > 0.01


def test_the_forward_derivative_of_a_backbone_agrees_with_small_differences(monkeypatch):
    torch.manual_seed(0)
    backbone = DiT(channels=2, classes=4, width=16, depth=2, heads=2)
    backbone = ExtraConditions(["duration"])(backbone).double()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, dx = torch.randn(2, 4, 2, 4, 4, dtype=torch.float64)
    condition = Condition(label=torch.arange(4))
    jumps = exact_jumps(Linear(), Flow(unscaled_time))
    jumps = replace(jumps, network=backbone, prediction=Flow(unscaled_time), condition=condition, x=x)
    monkeypatch.setattr("dit.diffusion.flow_map.HALF_STEP", 1e-3)  # sinusoids are float32
    for direction in ((dx, 1.0, 0.0), (None, 0.0, 1.0)):
        with torch.no_grad():
            (y, dy), (same, close) = (
                replace(jumps, derivative=kind).slope(*direction) for kind in ("jvp", "difference")
            )
        torch.testing.assert_close(y, same, rtol=1e-6, atol=1e-9)
        assert float((dy - close).norm() / dy.norm()) < 1e-3


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
@pytest.mark.parametrize("largest_scale", [None, 8.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_a_batch_without_jumps_calls_the_networks_as_often_as_one_with_jumps(identity, largest_scale, taught):
    """Processes that share the weights of one network would wait for each other otherwise."""

    def calls(*u2):
        count = {"student": 0, "teacher": 0}

        def network(name):
            def call(x, t, c):
                count[name] += 1
                return 0.5 * x

            return call

        condition, u2 = Condition(label=torch.zeros(4, dtype=torch.int64)), torch.tensor(u2, dtype=torch.float64)
        draw = Draw(torch.ones(4, 1), condition, torch.zeros(4, 1), T, u2=u2, u3=T, null=condition[torch.tensor([0])])
        objective = FlowMap(
            Linear(), Flow(unscaled_time), Uniform(), identity, largest_scale=largest_scale, derivative="difference",
            teacher=Flow(unscaled_time) if taught else None,
        )  # fmt: skip
        losses = objective(network("student"), replace(draw, teacher=network("teacher") if taught else None))
        assert bool(losses.isfinite().all())
        return count

    still, moving, both = calls(0.2, 0.2, 0.2, 0.2), calls(0.9, 0.9, 0.9, 0.9), calls(0.2, 0.9, 0.2, 0.9)
    assert still == moving == both
    assert both["student"] > 0
    assert (both["teacher"] > 0) == taught


@pytest.mark.parametrize("identity", [eulerian, lagrangian], ids=["eulerian", "lagrangian"])
def test_a_central_difference_agrees_with_the_forward_derivative(identity):
    jvp, difference = (exact_jumps(Linear(), Flow(unscaled_time), kind) for kind in ("jvp", "difference"))
    torch.testing.assert_close(identity(difference), identity(jvp), rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
def test_a_jump_of_duration_0_is_the_ordinary_loss(path, prediction):
    """With r = t in every sample and without damping the loss is that of `Objective`, with the gradient of its log."""
    x0, eps = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    draw = Draw(x0, CONDITION, eps, T, u2=torch.full((4,), 0.3, dtype=torch.float64))
    weight = torch.nn.Parameter(torch.tensor(0.3))
    ordinary = Objective(path, prediction, Uniform())(lambda x, t, c: weight * x, draw)
    losses = FlowMap(path, prediction, Uniform(), semigroup, still=1.0, damping=0.0)(lambda x, t, c: weight * x, draw)
    torch.testing.assert_close(losses, ordinary, rtol=1e-3, atol=1e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), weight)
    (expected,) = torch.autograd.grad(ordinary.log().sum(), weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def guided_network(x, time, condition):
    """Knows the guided velocity of two Gaussians: v_null + w (v_caption - v_null), for each w."""
    v = {label: exact_velocity_of(mean, x, time) for label, mean in ((0, 1.0), (1, 0.2))}
    w = condition.extra["guidance_scale"].view(-1, 1)
    caption = condition.label.view(-1, 1) == 0
    return torch.where(caption, v[1] + w * (v[0] - v[1]), v[1])


def exact_velocity_of(mean, x, t):
    t = t.view(-1, 1)
    return -mean + (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2) * (x - (1 - t) * mean)


def test_learned_guidance_has_classifier_free_guidance_as_its_fixed_point():
    """The mean of the regressed velocity at x is the network's own guided velocity, for a network that knows the
    guided velocity; the mean is over the data at x, a Gaussian of known mean."""
    n, generator = 200_000, torch.Generator().manual_seed(2)
    x0 = 1.0 + S * torch.randn(n, 1, generator=generator)
    eps, t = torch.randn(n, 1, generator=generator), torch.full((n,), 0.6, dtype=torch.float64)
    w = 3.0
    objective = FlowMap(Linear(), Flow(unscaled_time), Uniform(), eulerian, largest_scale=8.0)
    condition = Condition(label=torch.zeros(n, dtype=torch.int64), extra={"guidance_scale": torch.full((n,), w)})
    draw = Draw(x0, condition, eps, t, null=Condition(label=torch.ones(1, dtype=torch.int64)))
    x = 0.4 * x0 + 0.6 * eps
    own = objective.network_velocity(guided_network, x, t, condition)
    error = objective.guided_data(guided_network, draw, x, t, own) - own
    # no part of the error is explained by x: its mean and its slope vanish
    spread = error.std() / n**0.5
    assert abs(error.mean()) < 4 * spread
    assert abs((error * x).mean()) < 4 * spread * x.square().mean().sqrt()
    unguided = objective.network_velocity(
        guided_network, x, t, replace(condition, extra={"guidance_scale": torch.ones(n)})
    )
    assert (own - unguided).abs().mean() > 0.1


def test_a_teacher_is_guided_at_the_scale_of_each_sample():
    objective = FlowMap(
        Linear(), Flow(unscaled_time), Uniform(), eulerian, largest_scale=8.0, teacher=Flow(unscaled_time)
    )
    x, t = torch.randn(4, 1), T
    scales = torch.tensor([1.0, 2.0, 4.0, 8.0])
    condition = Condition(label=torch.zeros(4, dtype=torch.int64), extra={"guidance_scale": scales})

    def teacher(x, time, condition):
        plain = replace(condition, extra={"guidance_scale": torch.ones(len(x))})
        return guided_network(x, time, plain)

    draw = Draw(x, condition, x, t, null=Condition(label=torch.ones(1, dtype=torch.int64)), teacher=teacher)
    velocity = objective.velocity(None, draw)(x, t, condition)
    torch.testing.assert_close(velocity, guided_network(x, t.float(), condition), rtol=1e-5, atol=1e-5)


def test_the_loss_has_no_gradient_through_the_target():
    """The gradient is 2 (y - target) dy, divided by the squared error plus the damping."""
    x0, eps = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    draw = Draw(x0, CONDITION, eps, T, u2=torch.full((4,), 0.87, dtype=torch.float64))
    weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    network = lambda x, t, c: (weight * x) * (1 + c.extra["duration"].view(-1, 1))  # noqa: E731
    objective = FlowMap(Linear(), Flow(unscaled_time), Uniform(), semigroup, damping=0.01)
    losses = objective(network, draw)
    (gradient,) = torch.autograd.grad(losses.sum(), weight)
    t, r = objective.jump_times(draw)
    assert bool((r < t).all())
    x = objective.path.corrupt(x0, eps, objective.path.point(t))
    with torch.no_grad():
        target, d = objective.target(network, draw, x, t, r), x * (1 + (t - r).view(-1, 1))
        error = weight * d - target
    expected = (2 * (error * d).mean(1) / (error.square().mean(1) + 0.01)).sum()
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses.detach(), error.square().mean(1), rtol=1e-6, atol=1e-6)


def test_times_of_a_draw_have_their_shares():
    u, u2 = torch.rand(2, 10_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    draw = Draw(torch.zeros(10_000, 1), CONDITION, torch.zeros(10_000, 1), u, u2=u2)
    t, r = FlowMap(Linear(), Flow(), Uniform(), semigroup, still=0.5, to_data=0.2).jump_times(draw)
    assert abs((r == t).double().mean() - 0.5) < 0.02
    assert abs((r == 0).double().mean() - 0.2) < 0.02
    assert bool((r <= t).all())
    moving = (r < t) & (r > 0)
    assert abs(t[moving].mean() - 2 / 3) < 0.02  # the larger and the smaller of two uniform times
    assert abs(r[moving].mean() - 1 / 3) < 0.02


@pytest.mark.parametrize("options", [{"still": 0}, {"still": 0.8, "to_data": 0.3}, {"largest_scale": 1}])
def test_shares_and_scales_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"still=|largest_scale="):
        FlowMap(Linear(), Flow(), Uniform(), semigroup, **options)


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
def test_only_the_eulerian_identity_learns_from_jumps_to_the_data_alone(identity):
    given = partial(identity)  # as a config gives it
    if identity is eulerian:
        FlowMap(Linear(), Flow(), Uniform(), given, still=0.25, to_data=0.75)
        return
    FlowMap(Linear(), Flow(), Uniform(), given, still=0.25, to_data=0.7)
    with pytest.raises(ValueError, match=r"still=0.25 and to_data=0.75 leave no jumps .*: say objective=eulerian"):
        FlowMap(Linear(), Flow(), Uniform(), given, still=0.25, to_data=0.75)


def test_a_learned_variance_is_refused():
    with pytest.raises(ValueError, match="learned range"):
        FlowMap(Linear(), LearnedRange(Eps()), Uniform(), semigroup)


def test_guidance_scales_need_a_null_condition():
    draw = Draw(torch.zeros(4, 1), CONDITION, torch.zeros(4, 1), T, u2=T, u3=T)
    with pytest.raises(ValueError, match=r"largest_scale=null"):
        FlowMap(Linear(), Flow(), Uniform(), semigroup, largest_scale=4.0)(lambda x, t, c: x, draw)
