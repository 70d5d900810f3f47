"""The metric that a run returns to a sweeper: which names are refused, and when."""

from types import SimpleNamespace

import lightning as L
import pytest

from dit.training.optimized_metric import MetricCheck
from dit.training.progress import Throughput
from dit.training.reconstructions import Reconstructions

MODULE = SimpleNamespace(headlines={"val/loss": False})


class Counting(L.Callback):
    """A callback of a user, whose numbers are known at the end."""

    def summary(self):
        return {}


def check(name, *callbacks, logged=None, step=200):
    """Checks a name before training and, if metrics are logged, after a validation."""
    trainer = SimpleNamespace(callbacks=callbacks, callback_metrics=logged, global_step=step)
    checked = MetricCheck(name)
    checked.on_fit_start(trainer, MODULE)
    if logged is not None:
        checked.on_validation_end(trainer, MODULE)


def test_numbers_that_a_run_will_have_are_accepted():
    check("psnr", Throughput(), Reconstructions(100))
    check("images_per_second", Throughput(), Reconstructions(100))
    check("wheels", Throughput(), Counting())
    check("val/semigroup_residual", Throughput(), logged={"val/loss": 1.0, "val/semigroup_residual": 1.0})
    check("train/loss", Throughput(), logged={"val/loss": 1.0})  # trainer.log_every_n_steps may be larger


def test_others_are_refused_as_soon_as_that_is_known():
    with pytest.raises(ValueError, match=r"optimized_metric=psrn: .* Did you mean 'psnr'"):
        check("psrn", Reconstructions(100))
    with pytest.raises(ValueError, match="optimized_metric=psnr: "):
        check("psnr", Throughput())
    check("val/los", Throughput())
    with pytest.raises(ValueError, match=r"optimized_metric=val/los: .* Did you mean 'val/loss'"):
        check("val/los", Throughput(), logged={"val/loss": 1.0})
