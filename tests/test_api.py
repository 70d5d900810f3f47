"""What `import dit` offers: a model in three lines, its scores, and the parts in one's own code."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

import dit
from dit.cli.export import write_model
from dit.data.shapes import Shapes

PROMPTS = ["a large red star on a black background", "a small blue circle on a white background"]


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, dit; dir(dit); assert not {'torch', 'lightning', 'hydra'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_documented():
    for name in dit.__all__:
        assert getattr(dit, name).__doc__, name
    assert set(dit.__all__) < set(dir(dit))
    with pytest.raises(AttributeError, match="module 'dit' has no attribute 'lode'; it has Condition"):
        _ = dit.lode


def test_a_run_is_sampled_by_names_numbers_and_objects(tiny_run):
    run = dit.load(tiny_run)
    by_name = run.sample(PROMPTS, steps=3, sampler="dpmpp_2m", guidance=2.0, grid="uniform_time")
    assert by_name.images.shape == (2, 3, 32, 32)
    assert by_name.pixels.dtype == torch.uint8
    by_object = run.sample(
        PROMPTS, [0, 1], steps=3, sampler=dit.component("sampler", "dpmpp_2m"), grid=dit.component("grid", "uniform_time"),
        guidance=dit.component("guidance", "classifier_free", scale=2.0),
    )  # fmt: skip
    assert torch.equal(by_name.images, by_object.images)
    assert by_name.prompts == tuple(PROMPTS)
    assert by_name._repr_png_().startswith(b"\x89PNG")
    assert run.sample(PROMPTS[0], steps=2, size=(48, 32)).images.shape == (1, 3, 32, 48)


def test_the_model_s_own_recipe_is_the_default(tiny_run):
    run = dit.load(tiny_run)
    recipe = run.recipe()
    assert recipe.steps == run.config.recipe.steps
    assert recipe.guidance.scale == run.config.guidance.scale
    assert run.recipe(guidance="interval").guidance.lowest == -1.2


def test_scores_are_those_of_the_metrics(tiny_run, tmp_path):
    real = Shapes("val", 64)
    captions = [real.captions[i] for i in range(64)]
    found = dit.score(
        torch.from_numpy(real.images(np.arange(64))), "shapes", captions, real, references=64, cache_dir=tmp_path
    ).scores
    assert found["prompt_accuracy"] == 1
    assert found["fd_shapes_64"] == pytest.approx(0, abs=1e-3)
    samples = dit.load(tiny_run).sample(PROMPTS, steps=2)
    assert 0 <= dit.score(samples, ["prompt_accuracy"]).scores["prompt_accuracy"] <= 1
    with pytest.raises(ValueError, match="need real pictures, and none are given"):
        dit.score(samples, "fd_shapes", cache_dir=tmp_path)


def test_a_config_is_built_without_data():
    words = ["text_encoder=classes", "text_encoder.names=[cat,dog]", "backbone=dit_tiny"]
    run = dit.from_config(*words, "backbone.width=32", "backbone.heads=2", "backbone.depth=1")
    assert run.sample(["cat", "dog"], steps=1).images.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"text_encoder.names is read from the training captions"):
        dit.from_config("text_encoder=classes", "backbone=dit_tiny")
    with pytest.raises(
        ValueError, match=r"adapter.clock=64 is .* prediction._target_=dit.diffusion.prediction.EDM, is"
    ):
        dit.from_config(*words, "prediction=edm", "adapter=flow_map", "adapter.clock=64")
    with pytest.raises(ValueError, match="Could not override 'bakbone'"):
        dit.from_config("bakbone=dit_tiny")


def test_a_student_of_a_slower_time_is_exported_with_its_clock(tmp_path):
    words = ["text_encoder=classes", "text_encoder.names=[cat,dog]", "backbone=dit_tiny", "adapter=flow_map"]
    words += ["backbone.width=32", "backbone.heads=2", "backbone.depth=1", "adapter.clock=64"]
    student = dit.from_config(*words)
    assert student.pipeline.backbone.time.fit_error > 0
    assert "for a network with adapter.clock=64" in write_model(student, "safetensors", tmp_path)[0]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"adapter.clock": "64"}


@pytest.mark.parametrize(("args", "fault"), [
    (("sampler", "eulr"), "sampler='eulr': there is no such sampler. Did you mean 'euler'?"),
    (("samplers", "euler"), "group='samplers': there is no such group. Did you mean 'sampler'?"),
], ids=["name", "group"])  # fmt: skip
def test_a_component_that_does_not_exist_is_named(args, fault):
    with pytest.raises(ValueError, match=re.escape(fault)):
        dit.component(*args)


def test_an_option_that_a_component_does_not_take_is_named():
    with pytest.raises(ValueError, match=re.escape("sampler=ddim takes no et. Did you mean 'eta'?")):
        dit.component("sampler", "ddim", et=1)
    with pytest.raises(ValueError, match="classifier_free: guidance scale=-1 must not be negative"):
        dit.component("guidance", "classifier_free", scale=-1)
