"""Parts from another package train from the command line; a checkpoint that names them needs the user's consent."""

import csv
import os  # noqa: F401  (a hostile config reaches it through this module)
import re
import textwrap
from pathlib import Path

import pytest
import torch

from dit.checkpoints.native import checkpoints_of
from dit.config_check import check_config
from dit.trust import give_consent, has_consent

from .conftest import command, only_line_of

PACKAGE = '''
"""One part of each kind, as its user would write it."""

import os
import pathlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from dit.diffusion.objective import Objective
from dit.diffusion.sampler.transition import transition
from dit.metrics.base import ImageMetric, MetricResult

pathlib.Path(__file__).with_name("imported").touch()


class MySampler:
    """Euler with half of the noise redrawn in each step."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def __call__(self, denoise, x, points, noise):
        for here, there in pairwise(points):
            x = transition(denoise(x, here), here, there, self.share * there.sigma, noise)
        return x


class Doubled(Objective):
    """Twice the squared error."""

    def loss(self, output, x0, noise, point):
        return 2 * super().loss(output, x0, noise, point)


class Brightness(ImageMetric):
    """The mean of the pixels."""

    headlines = {"brightness": True}
    uses_prompts = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update_samples(self, images, prompts) -> None:
        self.keep("values", images.double().flatten(1).mean(1))

    def compute_scores(self) -> MetricResult:
        values = self.kept("values")
        return MetricResult({"brightness": float(values.mean())}, {"brightness": values})


class Stripes:
    """Horizontal and vertical stripes, 32 x 32."""

    def __init__(self, split: str, count: int = 64) -> None:
        first = 0 if split == "train" else 10**6
        self.numbers = np.arange(first, first + count)
        self.captions: Sequence[str] = ["vertical stripes" if n % 2 else "horizontal stripes" for n in self.numbers]
        self.fingerprint = f"stripes {split} {count}"

    def __len__(self) -> int:
        return len(self.numbers)

    def images(self, index: np.ndarray) -> np.ndarray:
        numbers = self.numbers[index][:, None, None, None]
        y, x = np.indices((32, 32))
        return np.repeat(127.5 + 127.5 * np.sin(np.where(numbers % 2, x, y) + numbers), 3, axis=1).astype(np.uint8)
'''

CONFIGS = {
    "sampler/mine.yaml": "mine: {_target_: outside_parts.MySampler, share: 0.25}\n",
    "metric/brightness.yaml": "brightness: {_target_: outside_parts.Brightness}\n",
    "data/stripes.yaml": """
        size: 32
        prompts: [vertical stripes]
        module:
          _target_: dit.data.module.LatentData
          batch_size: ${batch_size}
          seed: ${seed}
          train: {_target_: outside_parts.Stripes, split: train}
          val: {_target_: outside_parts.Stripes, split: val}
    """,
    "experiment/mine.yaml": """
        # @package _global_
        defaults:
          - override /data: stripes
          - override /sampler: mine
          - override /metric: brightness
          - override /autoencoder: identity
        name: mine
        objective: {_target_: outside_parts.Doubled}
        backbone: {width: 32, depth: 1, heads: 2, patch: 8}
    """,
}
WORDS = [
    "batch_size=8", "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "recipe.steps=2",
    "callbacks.previews.every=2", "callbacks.scores.every=null", "closing_prompts=4", "wandb.mode=disabled",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A user's folder: a package of parts, their configs, and a run trained with them."""
    root = tmp_path_factory.mktemp("project")
    (root / "outside_parts.py").write_text(PACKAGE)
    for name, text in CONFIGS.items():
        (root / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "conf" / name).write_text(textwrap.dedent(text).lstrip())
    words = ["train.py", "--config-dir", str(root / "conf"), "experiment=mine", f"run_dir={root / 'run'}", *WORDS]
    trained = command(*words, f"cache_dir={root / 'cache'}", PYTHONPATH=str(root))
    assert trained.returncode == 0, trained.stderr
    return root


@pytest.fixture
def imported(project) -> Path:
    """A file that an import of the package creates; removed before the test."""
    file = project / "imported"
    file.unlink(missing_ok=True)
    return file


def verb(name: str, project: Path, *words: str):
    return command("-m", f"dit.cli.{name}", f"ckpt={project / 'run'}", *words, PYTHONPATH=str(project))


VERBS = {
    "evaluate": ["n=4", "steps=2", "guidance.scale=1", "sampler=euler", "references=8", "wandb.mode=disabled"],
    "generate": ["prompts=[vertical stripes]"],
    "export": ["format=original"],
}


@pytest.mark.parametrize("name", VERBS)
def test_a_checkpoint_that_names_outside_code_needs_consent(name, project, imported, tmp_path):
    words = [*VERBS[name], f"out={tmp_path / 'out'}"]
    line = only_line_of(verb(name, project, *words))
    assert "outside_parts" in line
    assert line.endswith(
        "is code outside dit, which is not run without your consent: if you trust it, say trust=outside_parts"
    )
    assert not imported.exists(), "it was imported without consent"
    if name == "export":
        return  # this architecture has no other code to export to: what is refused next is another thing
    given = verb(name, project, *words, "trust=[outside_parts,another]")
    assert given.returncode == 0, given.stderr
    assert imported.exists()


def test_evaluation_uses_the_metric_of_the_run(project, tmp_path):
    given = verb(
        "evaluate", project, *VERBS["evaluate"], f"out={tmp_path}", "trust=outside_parts", f"cache_dir={tmp_path}"
    )
    assert given.returncode == 0, given.stderr
    [row] = csv.DictReader((tmp_path / "results.csv").open())
    assert 0 <= float(row["brightness"]) <= 255


@pytest.mark.slow
def test_a_run_of_outside_parts_is_resumed_by_the_command_that_names_them(project):
    words = ["train.py", "--config-dir", str(project / "conf"), "experiment=mine", *WORDS, "trainer.max_steps=3"]
    resumed = command(*words, f"resume={project / 'run'}", f"cache_dir={project / 'cache'}", PYTHONPATH=str(project))
    assert resumed.returncode == 0, resumed.stderr
    assert "at step 2" in resumed.stderr


@pytest.mark.slow
def test_it_guides_a_run_only_with_consent(project, imported, tmp_path):
    words = [
        "prompts=[vertical stripes]",
        "guidance=auto",
        f"guidance.network.ckpt={project / 'run'}",
        f"out={tmp_path}",
    ]
    assert "trust=outside_parts" in only_line_of(verb("generate", project, *words))
    assert verb("generate", project, *words, "trust=outside_parts").returncode == 0


@pytest.mark.slow
def test_load_run_takes_consent(project):
    code = """
import sys
from dit.runs import load_run
try:
    load_run(sys.argv[1], device="cpu")
except ValueError as error:
    assert "trust=outside_parts" in str(error), error
    assert "outside_parts" not in sys.modules
else:
    raise AssertionError("it was loaded without consent")
print(load_run(sys.argv[1], device="cpu", trust="outside_parts").step)
"""
    result = command("-c", code, str(project / "run"), PYTHONPATH=str(project))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "name", ["os", "os.path", "subprocess", "builtins", "dit", "dit.files", "", "a b", "../x", "a;b"]
)
def test_a_name_that_is_not_a_package_of_parts_is_refused(name):
    with pytest.raises(ValueError, match=f"trust={re.escape(name)}"):
        give_consent([name])
    assert not has_consent(name or "x")


@pytest.fixture
def consent(monkeypatch):
    """Consent for one test."""
    monkeypatch.setattr("dit.trust._packages", set())
    return give_consent


def some(part):
    """A function without a return type."""


def make_sampler(share: float) -> int: ...


HOSTILE = {
    "the standard library": ({"_target_": "os.system", "_partial_": True}, "may not stand here"),
    "another module through the package": ({"_target_": f"{__name__}.os.system", "_partial_": True}, "imported there"),
    "another class through the package": ({"_target_": f"{__name__}.Path"}, "imported there"),
    "a function that returns anything": (
        {"_target_": f"{__name__}.some", "part": 1},
        "does not have the type of this key",
    ),
    "a function of other arguments": (
        {"_target_": f"{__name__}.some", "_partial_": True},
        "does not have the type of this key",
    ),
    "a function that returns something else": (
        {"_target_": f"{__name__}.make_sampler", "share": 1},
        "does not have the type",
    ),
    "arguments that no signature checks": (
        {"_target_": f"{__name__}.make_sampler", "_args_": [1]},
        "may not stand in a file",
    ),
}


@pytest.mark.parametrize(("node", "message"), HOSTILE.values(), ids=HOSTILE)
def test_consent_leaves_the_types_of_the_places_as_they_are(node, message, consent, tiny_run):
    consent("tests")
    config = torch.load(checkpoints_of(tiny_run)[0], weights_only=True)["dit_config"]
    check_config("train", config, trusted=False)
    config["sampler"] = {"mine": node}
    with pytest.raises(ValueError, match=message):
        check_config("train", config, trusted=False)


def test_a_config_cannot_consent_to_itself(consent, tiny_run):
    config = torch.load(checkpoints_of(tiny_run)[0], weights_only=True)["dit_config"]
    config |= {"trust": ["outside_parts"], "sampler": {"mine": {"_target_": "outside_parts.MySampler"}}}
    with pytest.raises(ValueError, match="trust=outside_parts"):
        check_config("train", config, trusted=False)
