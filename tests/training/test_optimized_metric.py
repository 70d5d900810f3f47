"""The metric that a run returns to a sweeper: which names are refused, when, and what the sweeper gets."""

import json
import re
import sys
from types import SimpleNamespace

import lightning as L
import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from dit.cli.front import front_door
from dit.evaluation.run_records import read_runs
from dit.training.optimized_metric import MetricCheck, value_of
from dit.training.progress import Throughput
from dit.training.reconstructions import Reconstructions

from ..cli.test_runs import made
from ..conftest import TINY, command

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


class Halving(Sweeper):
    """A small sweeper: of two learning rates it repeats the one with the lower number, at half of it."""

    __module__ = "hydra_plugins.halving"  # Hydra takes no plugins from elsewhere
    seen, rates = [], (1e-3, 4e-3)

    def __init__(self, max_batch_size=None, params=None):
        """Takes the settings of Hydra's default sweeper."""

    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        jobs = [[*arguments, f"optimizer.lr={rate}"] for rate in self.rates]
        numbers = [job.return_value for job in self.launcher.launch(jobs, initial_job_idx=0)]
        best = min(zip(numbers, self.rates, strict=True))[1]
        again = self.launcher.launch([[*arguments, f"optimizer.lr={best / 2}"]], initial_job_idx=len(jobs))
        Halving.seen = [*numbers, again[0].return_value]


@pytest.fixture
def halving(monkeypatch):
    """Installs the sweeper as a plugin; returns the override that chooses it."""
    monkeypatch.setitem(sys.modules, "hydra_plugins.halving", SimpleNamespace(Halving=Halving))
    Plugins.instance().register(Halving)
    return "hydra.sweeper._target_=hydra_plugins.halving.Halving"


def run_train(monkeypatch, tmp_path, *words):
    """Runs train.py in this process, with a sweep of this name if `-m` is among the words."""
    places = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words[:1], *TINY, *places, *words[1:]])
    front_door("train", "dit.cli.train:job", sweep_end="dit.cli.runs:end_sweep")


@pytest.mark.slow
def test_a_sweeper_gets_the_metric_and_the_sweep_ends_with_its_table(halving, tmp_path, monkeypatch, capsys):
    run_train(
        monkeypatch,
        tmp_path,
        "-m",
        halving,
        "optimized_metric=val/loss",
        "trainer.max_steps=3",
    )
    (folder,) = (tmp_path / "runs" / "shapes_pixels").glob("sweep_*")
    runs = read_runs(folder)
    assert Halving.seen == [run.metrics["val/loss"] for run in runs]
    assert len(runs) == 3
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == str(folder / "overview")
    assert re.search(r"^lr +runs +val/loss +prompt_accuracy ", text, re.MULTILINE), "the optimized metric is the first"
    summary = json.loads((folder / "0" / "summary.json").read_text())
    assert summary["overrides"][-1] == "optimizer.lr=0.001"
    assert summary["higher_is_better"] == {"val/loss": False, "prompt_accuracy": True, "prompt_accuracy_unseen": True}


def test_a_misspelt_metric_is_refused_before_training(tmp_path):
    places = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    output = command("train.py", *TINY, *places, "optimized_metric=scores/prompt_accuracy")
    assert output.returncode == 2
    (line,) = (line for line in output.stderr.splitlines() if line.startswith("error: "))
    assert line.endswith("scores/prompt_accuracy: a run has no such metric. Did you mean 'prompt_accuracy'?")
    (run,) = read_runs(tmp_path / "runs")
    assert (run.state, run.step) == ("failed", 0)
    assert run.reason.startswith("ValueError: optimized_metric=")


def test_a_sweeper_that_searches_without_a_metric_is_refused(halving, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_train(monkeypatch, tmp_path, "-m", halving)
    output = capsys.readouterr().err
    assert "error: Halving searches by a number: say which with optimized_metric=NAME" in output


def test_a_run_ended_by_max_time_returns_its_newest_number(tmp_path):
    run = made(tmp_path / "run", 0.5, 0.5, finished=False)
    assert value_of(run, "val/loss") == 0.5 + 1 / 30
    with pytest.raises(ValueError, match=r"optimized_metric=prompt_accuracy: a run has no such metric.* val/loss"):
        value_of(run, "prompt_accuracy")
