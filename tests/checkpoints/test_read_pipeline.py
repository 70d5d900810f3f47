"""Schedulers of diffusers: read as the sampler and grid that take the same steps, or refused by the setting."""

import json

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dit.checkpoints.read_pipeline import FIXED_SETTINGS, SPACINGS, read_pipeline, read_scheduler
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.prediction import LearnedRange
from dit.files import CONF
from dit.types import Condition

STEPS, SHAPE = 10, (2, 3, 4, 4)


def write_scheduler(folder, kind, **settings):
    """Saves diffusers' own scheduler, so that the file has the keys and forms that diffusers gives it."""
    import diffusers

    scheduler = getattr(diffusers, kind)(**settings)
    scheduler.save_pretrained(folder)
    return scheduler, folder / "scheduler_config.json"


def rewrite(file, **changes):
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


class RecordedNoise:
    """Gives the noise of each step of a sampler from a list, so that two samplers can have the same."""

    def __init__(self, noises):
        self.left = list(noises)

    def __call__(self, here, there):
        return self.left.pop(0)


@pytest.mark.parametrize(("kind", "settings"), [
    ("DDPMScheduler", {}),
    ("DDPMScheduler", {"variance_type": "fixed_small_log", "timestep_spacing": "trailing"}),
    ("DDPMScheduler", {"variance_type": "learned_range", "timestep_spacing": "linspace"}),
    ("DDPMScheduler", {"prediction_type": "v_prediction", "steps_offset": 1, "beta_schedule": "scaled_linear"}),
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "prediction_type": "sample"}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
])  # fmt: skip
def test_a_scheduler_is_read_as_the_sampler_that_takes_its_steps(kind, settings, tmp_path, monkeypatch):
    clip = {} if kind.startswith("DPM") else {"clip_sample": False}
    scheduler, file = write_scheduler(tmp_path, kind, **clip, **settings)
    path, prediction, name, grid = read_scheduler(file)
    learned = settings.get("variance_type") == "learned_range"
    outputs = 2 if learned else 1
    weight = torch.randn(3 * outputs, 3, generator=torch.Generator().manual_seed(0)) / 2

    def network(x, time, condition):
        assert time.dtype == torch.float32
        return torch.einsum("oc,nchw->nohw", weight, x).tanh() + time.view(-1, 1, 1, 1) / 2000

    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    drawn = []

    def randn_tensor(shape, **_):
        drawn.append(torch.randn(shape, generator=torch.Generator().manual_seed(len(drawn) + 2)))
        return drawn[-1]

    if kind == "DDPMScheduler":
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", randn_tensor)
    scheduler.set_timesteps(STEPS)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.float().expand(2), None), t, x).prev_sample

    points = instantiate(OmegaConf.create(grid))(path, STEPS)
    sampler = next(iter(instantiate(OmegaConf.load(CONF / "sampler" / f"{name}.yaml")).values()))
    denoise = Denoiser(network, path, LearnedRange(prediction) if learned else prediction)
    ours = sampler(lambda x, point: denoise(x, point, Condition()), start, points, RecordedNoise(drawn))
    torch.testing.assert_close(ours, x, atol=2e-5, rtol=2e-5)


def other(value):
    return {bool: lambda: not value, int: lambda: value - 1, float: lambda: 0.0, str: lambda: "another"}.get(
        type(value), lambda: 0.5
    )()


@pytest.mark.parametrize(("kind", "setting"), [(kind, key) for kind, keys in FIXED_SETTINGS.items() for key in keys])
def test_a_setting_that_dit_does_not_sample_with_is_refused(kind, setting, tmp_path):
    _, file = write_scheduler(tmp_path, kind)
    fixed = FIXED_SETTINGS[kind]
    rewrite(file, **fixed)
    read_scheduler(file)
    rewrite(file, **{setting: other(fixed[setting])})
    with pytest.raises(ValueError, match=rf"dit samples with {setting}=.* only, not .*; evaluate\.py model=FOLDER"):
        read_scheduler(file)


def test_the_defaults_are_those_of_diffusers(tmp_path):
    _, file = write_scheduler(tmp_path, "DDIMScheduler")
    rewrite(file, clip_sample="absent")
    with pytest.raises(ValueError, match="dit samples with clip_sample=False only, not True"):
        read_scheduler(file)


@pytest.mark.parametrize(("changes", "fault"), [
    ({"timestep_spacing": "linspace"}, "timestep_spacing=linspace is not one of leading, trailing"),
    ({"prediction_type": "flow"}, "prediction_type=flow is not one of epsilon"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule=sigmoid is not one of linear, scaled_linear"),
    ({"num_train_timesteps": "many"}, "num_train_timesteps='many' must be a whole number"),
    ({"steps_offset": -1}, "steps_offset=-1 must be a whole number, 0 or more"),
    ({"beta_end": None}, "beta_end=None must be a finite number"),
    ({"trained_betas": [0.1, 0.2]}, "trained_betas must be a list of num_train_timesteps=1000 floats"),
])  # fmt: skip
def test_a_broken_setting_is_named_with_its_file(changes, fault, tmp_path):
    _, file = write_scheduler(tmp_path, "DDIMScheduler", clip_sample=False)
    rewrite(file, **changes)
    with pytest.raises(ValueError, match=fault) as error:
        read_scheduler(file)
    assert str(error.value).startswith(str(file))


def test_every_scheduler_of_betas_has_its_spacings():
    assert set(SPACINGS) | {"FlowMatchEulerDiscreteScheduler"} == set(FIXED_SETTINGS)


@pytest.mark.parametrize(("content", "fault"), [
    ("[]", "is no group of keys"), ("{", "is not JSON"), ('{"_class_name": "DiTPipeline"}', "scheduler_config.json")
], ids=["list", "broken", "alone"])  # fmt: skip
def test_a_broken_index_is_one_line(content, fault, tmp_path):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ValueError, match=fault) as error:
        read_pipeline(tmp_path)
    assert "\n" not in str(error.value)
