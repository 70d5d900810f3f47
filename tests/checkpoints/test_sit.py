"""Import and export of SiT's weights, against outputs of the original code, whose time and velocity point to the data."""

import json
from pathlib import Path

import pytest
import torch

from dit.backbones.dit import DiT
from dit.checkpoints.dit import from_original, to_original
from dit.checkpoints.foreign import read_backbone, write_original
from dit.cli.export import export
from dit.cli.train import train
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.objective import Objective
from dit.diffusion.path import Linear
from dit.diffusion.prediction import FlowToData
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import Uniform, UniformTime
from dit.runs import load_run
from dit.types import Condition, Draw

from ..conftest import composed
from .fixtures.make import waves

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "original_sit.json").read_text())


@pytest.fixture
def state():
    """A file of the original code."""
    net = DiT(4, 5, outputs=2, width=48, depth=2, heads=4)
    tensors = {k: waves(k, tuple(shape)) for k, shape in FIXTURE["shapes"].items()}
    return tensors | {"pos_embed": to_original(net, 8)["pos_embed"]}


def test_the_exported_state_dict_equals_the_original_bit_by_bit(state):
    again = to_original(from_original(state, heads=4), 8)
    assert {k: list(v.shape) for k, v in again.items()} == FIXTURE["shapes"]
    assert all(torch.equal(again[k], v) for k, v in state.items())
    assert torch.equal(again["pos_embed"].flatten()[::7], torch.tensor(FIXTURE["places"]))


@torch.no_grad()
def test_the_original_code_has_the_same_output(state):
    net, prediction, x = from_original(state, heads=4).eval(), FlowToData(), waves("x", (2, 4, 8, 8))
    times, labels = torch.tensor(FIXTURE["timestep"]), Condition(label=torch.tensor(FIXTURE["label"]))
    answer = prediction.call_network(net, x, Linear().point(1 - times.view(-1, 1, 1, 1)), labels)
    torch.testing.assert_close(answer.flatten()[::7], torch.tensor(FIXTURE["answer"]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_guided_sampling_equals_the_original_code(state):
    run, path, start = FIXTURE["run"], Linear(), 5 * waves("start", (2, 4, 8, 8))
    denoiser = Denoiser(from_original(state, heads=4).eval(), path, FlowToData())
    labels, null = Condition(label=torch.tensor(run["labels"])), Condition(label=torch.tensor([5]))
    denoise = ClassifierFree(run["scale"], channels=3)(denoiser, labels, null)
    latents = ddim(denoise, start, UniformTime()(path, run["steps"]), lambda k: None)
    expected = torch.tensor(run["latents"]).view_as(latents)
    assert (expected - start).abs().max() > 0.5
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


def test_the_target_is_the_velocity_to_the_data_and_the_second_half_is_unused():
    torch.manual_seed(0)
    x0, eps, weight = torch.randn(5, 2, 4, 4), torch.randn(5, 2, 4, 4), torch.randn(4, requires_grad=True)
    u, calls = torch.rand(5, dtype=torch.float64), []

    def network(x, time, condition):
        calls.append((x, time))
        return torch.cat([x, x], dim=1) * weight[:, None, None]

    losses = Objective(Linear(), FlowToData(), Uniform())(network, Draw(x0, Condition(label=torch.zeros(5)), eps, u))
    (x, time), s = calls[0], (1 - u).float()[:, None, None, None]
    torch.testing.assert_close(time, (1 - u).float())
    torch.testing.assert_close(x, s * x0 + (1 - s) * eps)
    expected = (x * weight[:2, None, None] - (x0 - eps)).square().flatten(1).mean(1)
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert (weight.grad[:2] != 0).all()
    assert (weight.grad[2:] == 0).all()


def test_a_run_initialised_from_a_published_file_equals_it(tmp_path):
    """As in the experiment's yaml: a step with learning rate 0, so that the run can be evaluated and sampled."""
    torch.manual_seed(1)
    net = DiT(3, 10, outputs=2, width=384, depth=1, heads=6)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.02)
    write_original(net, tmp_path / "published", 8)
    file = tmp_path / "published" / "model.pt"
    words = [
        "experiment=digits", "text_encoder=classes", "backbone=dit_s_2", "backbone.depth=1", "debug=one_batch", "batch_size=8",
        "trainer.accelerator=cpu", "optimizer.lr=1e-30", "recipe.steps=2", f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}",
        f"init={file}",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="of another model"):
        train(composed("train", words))
    run = train(composed("train", [*words, "prediction=flow_sit"]))
    kept = load_run(run, device="cpu").pipeline.backbone.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in read_backbone(file).state_dict().items())
    out = export(composed("export", [f"ckpt={run}", f"out={tmp_path / 'out'}", "format=original"]))
    first, second = (torch.load(place, weights_only=True) for place in (file, out / "model.pt"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], v) for k, v in second.items())


def test_a_network_without_a_second_half():
    x, point = torch.randn(2, 4, 3, 3), Linear().point(0.25)
    answer = FlowToData(outputs=1).call_network(lambda x, time, condition: x + time.view(-1, 1, 1, 1), x, point, None)
    torch.testing.assert_close(answer, x + 0.75)
    with pytest.raises(ValueError, match="outputs=3 must be 1, or 2"):
        FlowToData(outputs=3)
