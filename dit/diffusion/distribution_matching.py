"""Distribution matching, the second phase of few-step training: a flow map learns from its own samples, so that their
distribution becomes the teacher's.

With the student's sample x0, noised to x_t, the estimates of two networks at x_t are compared: the teacher's, which
stands for the score of the data, and that of a fake network, which learns the score of the student's samples. The
gradient of KL(student || teacher) over noise levels, with respect to x0, is up to a weight (DMD, Yin et al. 2023,
arXiv:2311.18828, eq. 7 and 8; DMD2, Yin et al. 2024, arXiv:2405.14867)

    x0_fake - x0_real,  divided by the mean of |x0_real - x0| over the elements of the sample.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dit.diffusion.denoiser import Denoiser
from dit.diffusion.flow_map import semigroup_residual, teacher_estimate, with_scale
from dit.diffusion.guidance import unguided
from dit.diffusion.objective import Objective
from dit.diffusion.path import Path
from dit.diffusion.prediction import Prediction
from dit.diffusion.resolution import at_shape
from dit.diffusion.sampler.flow_map import walk
from dit.diffusion.time import Density, Grid
from dit.types import Condition, Draw, Network, expand_like

SMALLEST = 1e-6  # of the divisor: near t = 0 the teacher's estimate is the sample itself


class DistributionMatching(Objective):
    """The gradient of distribution matching, for a flow map, and the loss of the fake network (`fake_loss`).

    The student walks its map from noise (`Draw.start`) to x0 along the grid in 1 to `steps` jumps, each number in its
    turn. The gradient passes through all jumps; DMD2 simulates the earlier ones without gradients. Data are not used,
    only their captions. The returned losses are the
    squares of the gradients with respect to x0, which are 0 where the two scores agree.

    density: of the time t of the comparison and of the fake network's loss. fake_updates: updates of the fake network
    before each update of the student. largest_scale: that of the student's training: it makes samples for guidance
    scales w in [1, largest_scale], drawn with density 1 / w, and the teacher is guided at the same w; None: neither has
    a scale. scale: a single w instead. teacher: the prediction of `Draw.teacher`; the student's one is that of
    `Draw.fake` too. Raises ValueError without a teacher, for a number below 1, and for a scale that the student was not
    trained with.
    """

    def __init__(
        self,
        path: Path,
        prediction: Prediction,
        density: Density,
        grid: Grid,
        steps: int = 4,
        fake_updates: int = 5,
        largest_scale: float | None = None,
        scale: float | None = None,
        teacher: Prediction | None = None,
    ) -> None:
        super().__init__(path, prediction, density)
        self.path: Path = path
        self.prediction: Prediction = prediction
        if teacher is None:
            raise ValueError("objective=distribution_matching needs a teacher, and there is none: say distill=RUN")
        for name, value in {"steps": steps, "fake_updates": fake_updates}.items():
            if value < 1:
                raise ValueError(f"objective.{name}={value} must be at least 1")
        if scale is not None and not 1 <= scale <= (largest_scale or 1):
            raise ValueError(
                f"objective.scale={scale:g}: the student was trained with scales from 1 to {largest_scale or 1:g}; "
                f"choose one of these, or null for all"
            )
        self.grid, self.steps, self.fake_updates, self.teacher = grid, steps, fake_updates, teacher
        self.largest_scale, self.scale = largest_scale, scale

    def __call__(self, network: Network, draw: Draw) -> Tensor:
        """Returns (B,) float32 losses of the student."""
        condition = self.with_scale(draw)
        x0 = self.walk(network, draw, condition, draw.step)
        with torch.no_grad():
            gradient = self.gradient(x0, draw, condition)
        moved = (gradient * x0).flatten(1).mean(1)
        return gradient.square().flatten(1).mean(1) + moved - moved.detach()

    def with_scale(self, draw: Draw) -> Condition:
        """Returns the condition with a guidance scale for each sample."""
        if self.largest_scale is None:
            return draw.condition
        assert draw.u3 is not None
        scale = self.largest_scale**draw.u3 if self.scale is None else torch.full_like(draw.u3, self.scale)
        return with_scale(draw.condition, scale)

    def validation(self, network: Network, draw: Draw) -> dict[str, Tensor]:
        scaled = replace(draw, condition=self.with_scale(draw))
        return {"semigroup_residual": semigroup_residual(network, self.path, self.prediction, scaled)}

    def walk(self, network: Network, draw: Draw, condition: Condition, turn: int) -> Tensor:
        """Returns samples x0 (B, ...) of the student. Their number of jumps depends on `turn` alone."""
        assert draw.start is not None
        points = at_shape(self.grid, draw.x0.shape[1:])(self.path, 1 + turn % self.steps)
        denoiser = Denoiser(network, self.path, self.prediction)
        return walk(unguided(denoiser, condition), points[0].std * draw.start, points)

    def gradient(self, x0: Tensor, draw: Draw, condition: Condition) -> Tensor:
        """Returns the direction (B, ...) away from the teacher's distribution, at samples x0 of the student."""
        assert draw.fake is not None
        point = self.path.point(self.times(draw))
        x = self.path.corrupt(x0, draw.noise, point)
        real = teacher_estimate(draw, self.teacher, x, point, condition).x0
        fake = Denoiser(draw.fake, self.path, self.prediction)(x, point, condition)
        distance = (real - x0).abs().flatten(1).mean(1).clamp(min=SMALLEST)
        return (fake.x0 - real) / expand_like(distance, x0)

    def fake_loss(self, network: Network, draw: Draw, turn: int) -> Tensor:
        """Returns (B,) float32 losses of the fake network: those of its prediction on samples of the student, whose
        number of jumps depends on `turn`."""
        assert draw.fake is not None
        condition = self.with_scale(draw)
        with torch.no_grad():
            x0 = self.walk(network, draw, condition, turn)
        point = self.path.point(self.times(draw))
        x = self.path.corrupt(x0, draw.noise, point)
        output = self.prediction.call_network(draw.fake, x, point, condition)
        return self.prediction.loss(output, x0, draw.noise, point)
