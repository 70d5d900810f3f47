"""Fixtures of several tests: a tiny run, trained once, and functions that call the commands."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

# Before any test imports what reads them: without the last, looking for weights on the network takes most of a minute.
os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

# A run of seconds: every part is real and small. Pixel space, so that no test depends on how good a network is.
TINY = [
    "experiment=shapes_pixels", "data.module.train.count=256", "data.module.val.count=64", "data.module.unseen.count=32",
    "backbone.width=32", "backbone.depth=1", "backbone.heads=2", "batch_size=8", "data.module.val_limit=16",
    "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
    "callbacks.previews.every=3", "callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=3", "recipe.steps=2",
    "closing_prompts=4", "wandb.mode=disabled",
]  # fmt: skip

SCORED = ["callbacks.scores.every=2", "callbacks.scores.n=9", "callbacks.scores.references=32"]


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two threads are slower than one on tiny tensors, and subprocesses run at the same time."""
    torch.set_num_threads(1)


def composed(name: str, overrides: list[str]):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=overrides)


def train_tiny(folder: Path, *overrides: str) -> Path:
    """Trains in this process; returns the run's directory."""
    from dit.cli.train import train

    places = [f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}"]
    return train(composed("train", [*TINY, *places, *overrides]))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="session")
def scored_run(tmp_path_factory) -> Path:
    """The tiny run, scored during training."""
    return train_tiny(tmp_path_factory.mktemp("scored") / "run", *SCORED)


def command(*words: str, cwd: Path = ROOT, timeout: float = 240, **env: str) -> subprocess.CompletedProcess:
    """Runs `python WORDS` as a user would, from the repository's root."""
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=os.environ | env
    )  # fmt: skip


def only_line_of(output: subprocess.CompletedProcess) -> str:
    """Returns the error of a refused command: one line on stderr that begins with 'error:', without a traceback."""
    assert output.returncode == 2, output.stderr
    lines = [line for line in output.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: "), output.stderr
    assert "Traceback" not in output.stderr
    return lines[-1]


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> str:
    """A file of random weights of InceptionV3 whose features are neither zero nor equal: the norms are fitted to some
    pictures."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from dit.data.shapes import Shapes

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr("torch.load", lambda *args, **kwargs: {})
        net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="none")
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = torch.from_numpy(Shapes("val", 4).images(np.arange(4)))
    with torch.no_grad():
        net.fc.weight *= 5
        net.train()(torch.cat([images[:2], 255 - images[2:]]))
    file = tmp_path_factory.mktemp("inception") / "random.pt"
    torch.save(net.state_dict(), file)
    return str(file)
