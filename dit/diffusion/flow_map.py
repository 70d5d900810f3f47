"""Few-step objectives: a network learns the flow map X_{t -> r}, which takes x from time t to an earlier time r in one
call. `sampler=flow_map` walks it in any number of steps.

The network also gets the duration t - r. For its output y at x, with the estimate (x0, eps) of its prediction,

    X_{t -> r}(x) = alpha_r x0 + sigma_r eps = A x + B y,

where A and B depend on t and r alone (`coefficients`). On the linear path with the flow prediction this is
x - (t - r) y, so that y is the average velocity (MeanFlow, Geng et al. 2025, arXiv:2505.13447). With r = t, y is the
ordinary output of the prediction at t. Consistency models are the case r = 0 (Song et al. 2023, arXiv:2303.01469).

A flow map is known by three identities, and each of them gives the output y at (t, r) from other values of the network
(Boffi et al. 2025, arXiv:2505.18825). v is dx/dt:

    eulerian     d/dt X_{t -> r}(x_t) = 0                     along dx_t/dt = v(x_t, t)
    lagrangian   d/dr X_{t -> r}(x) = v(X_{t -> r}(x), r)
    semigroup    X_{t -> r} = X_{q -> r} X_{t -> q}           for the time q in the middle
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit.diffusion.objective import Objective
from dit.diffusion.path import Path, Point, like
from dit.diffusion.prediction import Estimate, Prediction
from dit.diffusion.resolution import at_shape
from dit.diffusion.time import Density
from dit.types import Condition, Draw, Network, to_device

Derivative = Literal["jvp", "difference"]
HALF_STEP = 0.005  # of the central difference, in time

# (x (B, ...), t (B,) float64, condition of B rows) -> dx/dt (B, ...)
Velocity = Callable[[Tensor, Tensor, Condition], Tensor]


def coefficients(path: Path, prediction: Prediction, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Returns A and B of X_{t -> r}(x) = A x + B y, (B,) float64, for times (B,) float64."""
    here, there = path.point(t), path.point(r)
    a, b = prediction.weights(here)
    det = here.alpha * b - here.sigma * a
    return (there.alpha * b - there.sigma * a) / det, (here.alpha * there.sigma - here.sigma * there.alpha) / det


def slopes(of: Callable[[Tensor], Any], t: Tensor) -> Any:
    """Returns the derivatives of functions of times (B,), each time by itself."""
    return torch.func.jvp(of, (t,), (torch.ones_like(t),))[1]


@dataclass(frozen=True)
class Map:
    """The flow map of a network under a condition of B rows."""

    network: Network
    path: Path
    prediction: Prediction
    condition: Condition

    def output(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Returns y, the network's output for the jump from x at t to r."""
        point = self.path.point(t).towards(r)
        return self.prediction.call_network(self.network, x, point, self.condition)

    def jump(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Returns X_{t -> r}(x)."""
        a, b = coefficients(self.path, self.prediction, t, r)
        return like(x, a) * x + like(x, b) * self.output(x, t, r)

    def two_jumps(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Returns X_{q -> r}(X_{t -> q}(x)) for the time q in the middle."""
        q = (r + t) / 2
        return self.jump(self.jump(x, t, q), q, r)

    def semigroup_residual(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Returns (B,) distances of one jump from x at t to r < t to two jumps, divided by the distance that these
        cover: 0 for the flow map of any velocity."""
        one, two = self.jump(x, t, r), self.two_jumps(x, t, r)
        return (one - two).flatten(1).norm(dim=1) / (two - x).flatten(1).norm(dim=1)


@dataclass(frozen=True)
class Jumps(Map):
    """Jumps of a batch from x at t to r <= t, (B,) float64 on the CPU, with the network that is trained.

    here: returns v(x, t) along which the network is differentiated, and v(x, t) that is learned, whose mean is the
    former at the optimum; called only by an identity that needs them. velocity: v at any x and t.
    """

    x: Tensor
    t: Tensor
    r: Tensor
    here: Callable[[], tuple[Tensor, Tensor]]
    velocity: Velocity
    derivative: Derivative

    def slope(self, dx: Tensor | None, dt: float, dr: float) -> tuple[Tensor, Tensor]:
        """Returns y and its derivative along (dx, dt, dr), without gradients; dx = None is no change of x."""
        dx = torch.zeros_like(self.x) if dx is None else dx
        if self.derivative == "difference":
            ahead, behind = (
                self.output(self.x + h * dx, self.t + h * dt, self.r + h * dr) for h in (HALF_STEP, -HALF_STEP)
            )
            return self.output(self.x, self.t, self.r), (ahead - behind) / (2 * HALF_STEP)
        t, r = to_device(self.t, dx.device), to_device(self.r, dx.device)
        changes = dx, torch.full_like(t, dt), torch.full_like(r, dr)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            y, dy, *_ = torch.func.jvp(self.output, (self.x, t, r), changes)
        return y, dy


def semigroup_residual(network: Network, path: Path, prediction: Prediction, draw: Draw) -> Tensor:
    """Returns (B,) of `Map.semigroup_residual`, from the data at the larger to the smaller of two uniform times: the
    same jumps for every objective, and no teacher."""
    assert draw.u2 is not None
    t, r = torch.maximum(draw.u, draw.u2), torch.minimum(draw.u, draw.u2)
    x = path.corrupt(draw.x0, draw.noise, path.point(t))
    return Map(network, path, prediction, draw.condition).semigroup_residual(x, t, r)


class Identity(Protocol):
    """A property of flow maps. Returns the outputs y (B, ...) that the network must have at (t, r), r < t, to have it;
    called without gradients."""

    def __call__(self, jumps: Jumps) -> Tensor: ...


def eulerian(jumps: Jumps) -> Tensor:
    """Returns y of d/dt X_{t -> r}(x_t) = 0: on the linear path v - (t - r) dy/dt (improved MeanFlow, Geng et al. 2025,
    arXiv:2512.02012: the derivative is along the network's own velocity, and the regressed one is the data's)."""
    own, regressed = jumps.here()
    _, dy = jumps.slope(own, 1.0, 0.0)
    a, b = coefficients(jumps.path, jumps.prediction, jumps.t, jumps.r)
    da, db = slopes(lambda t: coefficients(jumps.path, jumps.prediction, t, jumps.r), jumps.t)
    x = jumps.x
    return -(like(x, da) * x + like(x, a) * regressed + like(x, b) * dy) / like(x, db)


def lagrangian(jumps: Jumps) -> Tensor:
    """Returns y of d/dr X_{t -> r}(x) = v(X_{t -> r}(x), r): on the linear path v(X, r) + (t - r) dy/dr (Boffi et al.
    2025, arXiv:2505.18825; TVM, Zhou et al. 2025, arXiv:2511.19797)."""
    y, dy = jumps.slope(None, 0.0, 1.0)
    a, b = coefficients(jumps.path, jumps.prediction, jumps.t, jumps.r)
    da, db = slopes(lambda r: coefficients(jumps.path, jumps.prediction, jumps.t, r), jumps.r)
    x = jumps.x
    velocity = jumps.velocity(like(x, a) * x + like(x, b) * y, jumps.r, jumps.condition)
    return (velocity - like(x, da) * x - like(x, b) * dy) / like(x, db)


def semigroup(jumps: Jumps) -> Tensor:
    """Returns y of X_{t -> r} = X_{q -> r} X_{t -> q}: on the linear path the mean of two jumps' velocities (shortcut
    models, Frans et al. 2024, arXiv:2410.12557, eq. 4)."""
    x, there = jumps.x, jumps.two_jumps(jumps.x, jumps.t, jumps.r)
    a, b = coefficients(jumps.path, jumps.prediction, jumps.t, jumps.r)
    return (there - like(x, a) * x) / like(x, b)


def output_of(velocity: Tensor, x: Tensor, t: Tensor, path: Path, prediction: Prediction) -> Tensor:
    """Returns the output y whose estimate at x has this velocity: that of a jump of duration 0."""
    da, db = slopes(lambda r: coefficients(path, prediction, t, r), t)
    return (velocity - like(x, da) * x) / like(x, db)


def still(jumps: Jumps) -> Tensor:
    """Returns y of jumps of duration 0: the output whose estimate has the learned velocity."""
    return output_of(jumps.here()[1], jumps.x, jumps.t, jumps.path, jumps.prediction)


class FlowMap(Objective):
    """The squared error of the network's output for a jump from t to r, to the output that an identity demands; without
    gradients through the latter.

    In a share `still` of the samples r = t: the ordinary loss of a prediction, which anchors the map. In a share
    `to_data` r = 0, and otherwise r and t are two times of the density. Only eulerian can do without the latter:
    lagrangian differentiates with respect to r, and semigroup uses jumps to the middle. The gradient of a sample is
    divided by its squared error plus `damping`; the value that is returned is the squared error itself.

    largest_scale: with a number, the network also learns all scales w of classifier-free guidance in
    [1, largest_scale], drawn with density 1 / w, and gets w as `guidance_scale` in `Condition.extra`
    (`guidance=embedded`). Without a teacher the regressed velocity is v + (1 - 1 / w) (v_w - v_null), with the data's
    v and the network's own v_w and v_null: a network whose v_w is the mean of this has v_w = v_null + w (v_1 - v_null)
    (improved MeanFlow, arXiv:2512.02012). With a teacher it is the teacher's v_null + w (v - v_null).

    teacher: the prediction of `Draw.teacher`, or None to learn from data alone. derivative: jvp, or difference, a
    central difference, where a network does not support forward derivatives (weights divided among processes).
    """

    def __init__(
        self,
        path: Path,
        prediction: Prediction,
        density: Density,
        identity: Identity,
        still: float = 0.5,
        to_data: float = 0.0,
        largest_scale: float | None = None,
        damping: float = 0.01,
        teacher: Prediction | None = None,
        derivative: Derivative = "jvp",
    ) -> None:
        super().__init__(path, prediction, density)
        self.path: Path = path
        self.prediction: Prediction = prediction
        if not (still > 0 and to_data >= 0 and still + to_data <= 1):
            raise ValueError(f"still={still} and to_data={to_data} are shares: still above 0, and at most 1 together")
        if to_data > 0 and still + to_data > 1 - 1e-9 and getattr(identity, "func", identity) is not eulerian:
            raise ValueError(
                f"still={still} and to_data={to_data} leave no jumps between two times, which every identity but "
                f"eulerian learns from: say objective=eulerian, or make one of them smaller"
            )
        if largest_scale is not None and not largest_scale > 1:
            raise ValueError(f"largest_scale={largest_scale} is a guidance scale and must be above 1, or null for none")
        self.identity, self.still, self.to_data, self.largest_scale = identity, still, to_data, largest_scale
        self.damping, self.teacher, self.derivative = damping, teacher, derivative

    @property
    def needs_jvp(self) -> bool:
        """Whether it takes forward derivatives of the network."""
        return self.derivative == "jvp" and getattr(self.identity, "func", self.identity) is not semigroup

    def jump_times(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Returns t and r of a draw, (B,) float64 on the CPU."""
        assert draw.u2 is not None
        density = at_shape(self.density, draw.x0.shape[1:])
        first, moving = density(self.path, draw.u), 1 - self.still - self.to_data
        other = (draw.u2 - self.still - self.to_data) / max(moving, 1e-9)
        second = density(self.path, other.clamp(1e-5, 1 - 1e-5))
        still, to_data = draw.u2 < self.still, draw.u2 < self.still + self.to_data
        t = torch.where(to_data, first, torch.maximum(first, second))
        r = torch.where(to_data, 0.0, torch.minimum(first, second))
        return t, torch.where(still, t, r)

    def times(self, draw: Draw) -> Tensor:
        return self.jump_times(draw)[0]

    def __call__(self, network: Network, draw: Draw) -> Tensor:
        """Returns (B,) float32 losses."""
        t, r = self.jump_times(draw)
        draw = replace(draw, condition=self.with_scale(draw))
        x = self.path.corrupt(draw.x0, draw.noise, self.path.point(t))
        output = self.prediction.call_network(network, x, self.path.point(t).towards(r), draw.condition)
        with torch.no_grad():
            target = self.target(network, draw, x, t, r)
        error = (output - target).square().flatten(1).mean(1)
        scaled = error / (error.detach() + self.damping)
        return error.detach() + scaled - scaled.detach()

    def with_scale(self, draw: Draw) -> Condition:
        """Returns the condition with a guidance scale for each sample."""
        if self.largest_scale is None:
            return draw.condition
        assert draw.u3 is not None
        return with_scale(draw.condition, self.largest_scale**draw.u3)

    def validation(self, network: Network, draw: Draw) -> dict[str, Tensor]:
        scaled = replace(draw, condition=self.with_scale(draw))
        return {"semigroup_residual": semigroup_residual(network, self.path, self.prediction, scaled)}

    def target(self, network: Network, draw: Draw, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Returns the output that the network must have at x for the jump from t to r, (B,) float64 on the CPU."""
        target = torch.empty_like(x)
        for chosen, identity in ((r == t, still), (r < t, self.identity)):
            rows = chosen.nonzero()[:, 0]
            count = len(rows)
            # Processes that share the weights of a network must all call it equally often: a group without rows
            # computes the first row of the batch, and its result is not used.
            if not count:
                rows = torch.zeros(1, dtype=torch.int64)
            index = to_device(rows, x.device)
            part = replace(draw, x0=draw.x0[index], noise=draw.noise[index], condition=draw.condition[index])
            found = identity(self.jumps(network, part, x[index], t[rows], r[rows]))
            target[index[:count]] = found[:count].to(target.dtype)
        return target

    def jumps(self, network: Network, draw: Draw, x: Tensor, t: Tensor, r: Tensor) -> Jumps:
        """Returns the jumps of a draw from x at t to r."""
        velocity = self.velocity(network, draw)

        def here() -> tuple[Tensor, Tensor]:
            own = velocity(x, t, draw.condition)
            return own, own if self.teacher else self.guided_data(network, draw, x, t, own)

        condition, derivative = draw.condition, self.derivative
        return Jumps(network, self.path, self.prediction, condition, x, t, r, here, velocity, derivative)

    def velocity(self, network: Network, draw: Draw) -> Velocity:
        """Returns the velocity that the map integrates: the guided one of the teacher, or the network's own."""
        if self.teacher is None:
            return lambda x, t, condition: self.network_velocity(network, x, t, condition)
        prediction = self.teacher

        def guided(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            point = self.path.point(t)
            return teacher_estimate(draw, prediction, x, point, condition).velocity(point)

        return guided

    def network_velocity(self, network: Network, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        point = self.path.point(t)
        output = self.prediction.call_network(network, x, point.towards(t), condition)
        return self.prediction.estimate(x, output, point).velocity(point)

    def guided_data(self, network: Network, draw: Draw, x: Tensor, t: Tensor, own: Tensor) -> Tensor:
        """Returns the data's velocity, guided with the network's own: v + (1 - 1 / w) (v_w - v_null)."""
        point = self.path.point(t).like(x)
        data = point.d_alpha * draw.x0 + point.d_sigma * draw.noise
        if self.largest_scale is None:
            return data
        null = self.network_velocity(network, x, t, without_caption(draw.condition, draw.null))
        return data + like(x, 1 - 1 / draw.condition.extra["guidance_scale"]) * (own - null)


def with_scale(condition: Condition, scale: Tensor) -> Condition:
    """Returns the condition with a guidance scale for each sample, (B,) on the CPU."""
    scale = to_device(scale.float(), condition.device)
    return replace(condition, extra={**condition.extra, "guidance_scale": scale})


def teacher_estimate(draw: Draw, prediction: Prediction, x: Tensor, point: Point, condition: Condition) -> Estimate:
    """Returns the estimate of `draw.teacher` at x under the condition, with classifier-free guidance at the scales in
    the condition if there are any."""
    teacher = draw.teacher
    assert teacher is not None

    def estimate(condition: Condition) -> Estimate:
        return prediction.estimate(x, prediction.call_network(teacher, x, point, condition), point)

    conditional = estimate(condition)
    if "guidance_scale" not in condition.extra:
        return conditional
    null = estimate(without_caption(condition, draw.null))
    return null.lerp(conditional, condition.extra["guidance_scale"])


def without_caption(condition: Condition, null: Condition | None) -> Condition:
    """Returns the null condition in all rows. Raises ValueError if there is none."""
    if null is None:
        raise ValueError("largest_scale needs the null condition, and there is none: set largest_scale=null")
    return condition.drop(torch.ones(len(condition), dtype=torch.bool, device=condition.device), null)
