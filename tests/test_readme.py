"""The examples of the README are run, and its commands are real."""

import re
import sys
import types

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dit.diffusion.noise import Noise
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Estimate
from dit.diffusion.time import UniformTime

from .conftest import ROOT, composed

README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", README, re.DOTALL))


@pytest.fixture
def added(monkeypatch):
    """Makes the README's python files importable, as if a reader had added them; gives a reader of its yaml."""
    for name, text in BLOCKS.items():
        if name.endswith(".py"):
            module = types.ModuleType(name.removesuffix(".py").replace("/", "."))
            exec(compile(text, name, "exec"), module.__dict__)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            parent, _, leaf = module.__name__.rpartition(".")
            __import__(parent)
            monkeypatch.setattr(sys.modules[parent], leaf, module, raising=False)
    return lambda name: OmegaConf.create(BLOCKS[name])


def test_the_sampler(added):
    sampler = instantiate(added("conf/sampler/half_fresh.yaml"))["half_fresh"]
    where = torch.tensor([0.5, -2.0])
    start = torch.randn(4, 2)
    made = sampler(
        lambda x, p: Estimate(where.expand_as(x), (x - p.alpha * where) / p.sigma), start,
        UniformTime()(Linear(), 5), Noise(range(4), (2,)),
    )  # fmt: skip
    torch.testing.assert_close(made, where.expand(4, 2))


def test_every_option_in_a_command_exists():
    from dit.cli.front import first_fault

    commands = re.findall(r"^python (train|evaluate)\.py (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert len(commands) > 5
    for name, words in commands:
        listed = [w for w in re.findall(r"(?:'[^']*'|\S)+", words) if not w.startswith("-")]
        assert first_fault(name, [w.replace("'", "") for w in listed]) is None, (name, words)


def test_every_experiment_is_listed():
    for file in (ROOT / "conf/experiment").glob("*.yaml"):
        assert f"`{file.stem}`" in README, file.stem
        composed("train", [f"experiment={file.stem}"])
