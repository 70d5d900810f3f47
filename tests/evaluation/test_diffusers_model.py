"""Pictures that are not of a run: given ones, and those of tiny random diffusers pipelines."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)

from dit import distributed
from dit.checkpoints.dit import from_diffusers
from dit.data.npz import NpzPictures
from dit.data.picture_folder import PictureFolder
from dit.diffusion.denoiser import Denoiser
from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.noise import Noise, generator
from dit.diffusion.path import DiscreteBetas, linear_betas
from dit.diffusion.prediction import Eps, LearnedRange, timestep
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.time import Leading
from dit.evaluation import diffusers_model
from dit.evaluation.diffusers_model import DiffusersModel
from dit.evaluation.sources import given_pictures, pictures_at, reference_at
from dit.metrics.statistics import Statistics
from dit.picture_files import save_png
from dit.scoring.references import subset_indices
from dit.types import Condition, to_pixels

from ..encoders.folders import save_t5
from ..encoders.small import small

PROMPTS = ["a red star", "large blue circle", "a small star on the black"]


class Pictures:
    captions = [f"picture {i}" for i in range(7)]
    fingerprint = ""

    def __len__(self):
        return 7

    def images(self, index):
        return np.stack([np.full((3, 4, 4), i, np.uint8) for i in index])


def woken(net, std=0.05):
    """A network whose zero-initialised parts have left zero."""
    draw = torch.Generator().manual_seed(1)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=std, generator=draw)
    return net.eval()


def dit_folder(folder, scheduler=DDIMScheduler, classes=1000, **options):
    net = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=classes,
    )  # fmt: skip
    for block in woken(net).transformer_blocks[1:]:  # a trained one has the same embedder in every block
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    chain = scheduler(beta_schedule="linear", clip_sample=False)
    DiTPipeline(net, small("kl_4"), chain).save_pretrained(folder, **options)
    changed(folder, id2label={"0": "tench, Tinca tinca", "7": "cock", "207": "golden retriever"})
    return folder


def changed(folder, **index):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | index))


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return dit_folder(tmp_path_factory.mktemp("pipelines") / "dit")


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    from transformers import AutoTokenizer, T5EncoderModel

    root = tmp_path_factory.mktemp("pixart")
    text = save_t5(root / "text")
    net = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, num_layers=2, cross_attention_dim=48, caption_channels=32,
        sample_size=8,
    )  # fmt: skip
    PixArtAlphaPipeline(
        AutoTokenizer.from_pretrained(text), T5EncoderModel.from_pretrained(text), small("kl_4"), woken(net),
        DDIMScheduler(beta_schedule="linear", clip_sample=False),
    ).save_pretrained(root / "pipeline")  # fmt: skip
    return root / "pipeline"


def gathered(batches):
    """All pictures by their places, and the parts they came in."""
    parts = list(batches)
    return {i: image for batch in parts for i, image in zip(batch.index, batch.images, strict=True)}, parts


def assert_equal_pictures(one, other):
    assert set(one) == set(other)
    for i, image in one.items():
        assert (image.int() - other[i].int()).abs().max() <= 1
    assert len({image.numpy().tobytes() for image in one.values()}) == len(one)


def test_given_pictures_are_a_random_part_with_their_prompts():
    counts = []
    found, parts = gathered(given_pictures(Pictures(), [f"prompt {i}" for i in range(5)], 2, counts.append))
    assert counts == [2, 2, 1]
    assert [batch.index for batch in parts] == [[0, 1], [2, 3], [4]]
    assert all((found[i] == place).all() for i, place in enumerate(subset_indices(7, 5)))
    assert parts[1].prompts == ["prompt 2", "prompt 3"]
    assert parts[0].images.dtype == torch.uint8
    assert all(batch.nfe == batch.seconds == batch.broken == 0 for batch in parts)


def test_processes_share_them(monkeypatch):
    places = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank_and_world_size", lambda rank=rank: (rank, 3))
        places.append(sorted(gathered(given_pictures(Pictures(), [""] * 7, 2))[0]))
    assert places == [[0, 3, 6], [1, 4], [2, 5]]


def test_more_than_there_are_is_refused_at_once():
    with pytest.raises(ValueError, match="n=8 pictures are to be scored, and there are 7; use n=7 or less"):
        given_pictures(Pictures(), [""] * 8, 2)
    with pytest.raises(ValueError, match="must be at least 1"):
        given_pictures(Pictures(), [], 2)


def test_sources_are_found_by_where_they_lie(tmp_path):
    from PIL import Image

    save_png(Image.new("RGB", (6, 4)), tmp_path / "folder" / "a.png")
    arrays = {"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "mu": np.zeros(3), "sigma": np.eye(3)}
    np.savez(tmp_path / "both.npz", **arrays)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert isinstance(reference_at(tmp_path / "folder"), PictureFolder)
    assert pictures_at(tmp_path / "folder", 4).images(np.array([0])).shape == (1, 3, 4, 4)
    assert isinstance(reference_at(tmp_path / "both.npz"), NpzPictures)
    assert isinstance(reference_at(tmp_path / "both.npz", statistics=True), Statistics)
    assert isinstance(reference_at(tmp_path / "statistics.npz"), Statistics)
    assert len(pictures_at(tmp_path / "both.npz", 4)) == 2
    (tmp_path / "note.txt").write_text("")
    for call, fault in [
        (lambda: pictures_at(tmp_path / "statistics.npz"), "holds mu, sigma; pictures must be arr_0"),
        (lambda: pictures_at(tmp_path / "both.npz", 8), "size=8x8: the pictures of .* are 4x4"),
        (lambda: pictures_at(tmp_path / "none"), "none does not exist"),
        (lambda: pictures_at(tmp_path / "note.txt"), "is neither a folder nor an npz"),
        (lambda: reference_at(tmp_path / "folder", statistics=True), "has no statistics"),
    ]:
        with pytest.raises(ValueError, match=fault):
            call()


def test_a_class_conditional_picture_is_that_of_its_seed_and_class_alone(dit, monkeypatch):
    model = DiffusersModel(dit)
    arguments = (["207", "cock", "tench, Tinca tinca"], 5, 4, 3.0)
    one, parts = gathered(model.sample(*arguments, batch_size=1))
    three, together = gathered(model.sample(*arguments, batch_size=3))
    assert_equal_pictures(one, three)
    assert [batch.nfe for batch in parts] == [8.0] * 3  # guidance doubles
    assert together[0].nfe == 8.0
    assert together[0].seconds > 0
    assert list(together[0].prompts) == arguments[0]
    assert three[0].shape == (3, 16, 16)
    later, _ = gathered(model.sample(arguments[0][1:], 6, 4, 3.0, 2))
    assert_equal_pictures(later, {0: one[1], 1: one[2]})
    unguided, parts = gathered(model.sample(arguments[0], 5, 4, 1.0, 3))
    assert parts[0].nfe == 4.0
    assert not torch.equal(unguided[0], one[0])
    monkeypatch.setattr(distributed, "rank_and_world_size", lambda: (1, 2))
    assert_equal_pictures(gathered(model.sample(*arguments, batch_size=3))[0], {1: one[1]})


@torch.no_grad()
def test_pictures_begin_with_the_noise_of_our_own_runs(dit):
    model = DiffusersModel(dit)
    made, _ = gathered(model.sample(["207", "7"], 5, 4, 3.0, 2))
    net = from_diffusers(model.denoiser.config, model.denoiser.state_dict()).eval()
    path, labels = DiscreteBetas(linear_betas(1000)), Condition(label=torch.tensor([207, 7]))
    denoise = ClassifierFree(3.0)(
        Denoiser(net, path, LearnedRange(Eps(c_noise=timestep))), labels, Condition(label=torch.tensor([1000]))
    )
    noise = Noise([5, 6], (4, 8, 8))
    latents = ddim(denoise, noise.start(), Leading()(path, 4), noise)
    images = model.pipe.vae.decode(latents / model.pipe.vae.config.scaling_factor).sample
    assert_equal_pictures(made, dict(enumerate(to_pixels(images))))


def test_a_scheduler_that_uses_the_global_generator_still_depends_on_the_seed_alone(tmp_path):
    model = DiffusersModel(dit_folder(tmp_path / "dit", DDPMScheduler))
    arguments = (["207", "7", "0"], 5, 4, 3.0)
    torch.manual_seed(1)
    one, _ = gathered(model.sample(*arguments, batch_size=1))
    state = torch.get_rng_state()
    three, together = gathered(DiffusersModel(tmp_path / "dit").sample(*arguments, batch_size=3))
    assert torch.equal(state, torch.get_rng_state())
    assert_equal_pictures(one, three)
    assert together[0].nfe == 8.0


def test_noise_of_the_steps_is_each_seed_s_own(tmp_path, monkeypatch):
    monkeypatch.setattr(
        diffusers_model, "generator", lambda seed, draw: generator(seed if draw else 0, draw)
    )  # one beginning
    model = DiffusersModel(dit_folder(tmp_path / "dit", DDPMScheduler))
    found, _ = gathered(model.sample(["7", "7"], 5, 4, 3.0, 2))
    assert not torch.equal(found[0], found[1])


def test_a_picture_from_a_text_is_that_of_its_seed_and_text_alone(pixart):
    options = {
        "height": 16,
        "width": 16,
        "use_resolution_binning": False,
        "clean_caption": False,
        "max_sequence_length": 12,
    }
    model = DiffusersModel(pixart, options=options)
    one, parts = gathered(model.sample(PROMPTS, 5, 3, 4.5, 1))
    three, _ = gathered(model.sample(PROMPTS, 5, 3, 4.5, 3))
    assert_equal_pictures(one, three)
    assert [batch.nfe for batch in parts] == [6.0] * 3
    assert model.description["options"] == options
    assert set(model.weights) == {"transformer", "vae", "text_encoder"}


def test_the_subject_names_all_that_the_pictures_depend_on(dit, tmp_path):
    model = DiffusersModel(dit)
    description = model.description
    assert json.loads(json.dumps(description)) == description
    assert (description["kind"], description["dtype"]) == ("DiTPipeline", "float32")
    assert description["scheduler"]["class"] == "DDIMScheduler"
    assert description["scheduler"]["beta_schedule"] == "linear"
    shutil.copytree(dit, tmp_path / "dit")
    assert DiffusersModel(tmp_path / "dit").description == description
    vae = AutoencoderKL.from_pretrained(tmp_path / "dit" / "vae")
    with torch.no_grad():
        next(vae.decoder.parameters()).add_(1e-3)
    vae.save_pretrained(tmp_path / "dit" / "vae")
    other = DiffusersModel(tmp_path / "dit").description
    assert {key for key in description if description[key] != other[key]} == {"weights", "files"}
    assert {name for name in other["files"] if other["files"][name] != description["files"][name]} == {
        "vae/config.json"
    }
    assert {"model_index.json", "vae/config.json", "scheduler/scheduler_config.json"} <= set(description["files"])
    changed(tmp_path / "dit", note=1)
    again = DiffusersModel(tmp_path / "dit").description["files"]
    assert {name for name in again if again[name] != other["files"][name]} == {"model_index.json"}
    assert {key for key in description["weights"] if description["weights"][key] != other["weights"][key]} == {"vae"}


def test_pictures_that_are_not_finite_are_counted(dit):
    model = DiffusersModel(dit)
    with torch.no_grad():
        model.pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    (batch,) = model.sample(["1", "2"], 0, 1, 1.0, 2)
    assert batch.broken == 2


@pytest.mark.parametrize(("prompts", "settings", "fault"), [
    (["7", "a red star"], (4, 3.0, 2), "prompt 'a red star' is not a class of"),
    (["1000"], (4, 3.0, 2), "give a number below 1000"),
    (["7"], (0, 3.0, 2), "steps=0"),
    ([], (4, 3.0, 2), "0 prompts"),
])  # fmt: skip
def test_what_cannot_be_sampled_is_refused_at_once(dit, prompts, settings, fault):
    with pytest.raises(ValueError, match=fault):
        DiffusersModel(dit).sample(prompts, 0, *settings)


def test_a_model_of_one_size_refuses_another(dit):
    model = DiffusersModel(dit)
    [batch] = model.sample(["1"], 0, 1, 1.0, 1)
    height, width = batch.images.shape[-2:]
    assert model.size == (width, height)
    with pytest.raises(ValueError, match=rf"size=\[64, 32\]: DiTPipeline samples pictures of {width}x{height} only"):
        model.sample(["1"], 0, 1, 1.0, 1, size=(64, 32))


def test_more_steps_than_the_scheduler_has_are_one_line(dit):
    with pytest.raises(ValueError, match=r"DiTPipeline of .* fails") as error:
        next(DiffusersModel(dit).sample(["7"], 0, 1001, 1.0, 1))
    assert "\n" not in str(error.value)


def test_guidance_without_a_null_class_is_refused(tmp_path):
    model = DiffusersModel(dit_folder(tmp_path / "dit", classes=10))
    with pytest.raises(ValueError, match="this model has 10 classes; use guidance_scale=1"):
        model.sample(["7"], 0, 2, 3.0, 1)
    assert len(gathered(model.sample(["7"], 0, 2, 1.0, 1))[0]) == 1


FAULTS = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "is not a diffusers pipeline"),
    "half an index": (lambda f: (f / "model_index.json").write_text('{"_class'), "is not a diffusers pipeline"),
    "unknown": (lambda f: changed(f, _class_name="NoPipeline"), "is a NoPipeline, which is not a pipeline of diffusers"),
    "no pipeline": (lambda f: changed(f, _class_name="AutoencoderKL"), "is a AutoencoderKL, which is not a pipeline"),
    "custom": (lambda f: changed(f, _class_name=["mine", "Mine"]), "which is not a pipeline of diffusers"),
    "code": (lambda f: (f / "vae" / "diffusers.py").write_text("open('evil', 'w')"), r"contains code, vae/diffusers\.py"),
    "another library": (lambda f: changed(f, vae=["http", "Server"]), "a part of the library http"),
    "no part": (lambda f: shutil.rmtree(f / "vae"), "cannot be loaded"),
    "no weights": (lambda f: next((f / "vae").glob("*.safetensors")).unlink(), "weights must be safetensors"),
    "broken weights": (lambda f: next((f / "vae").glob("*.safetensors")).write_bytes(b"no"), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_folders_that_cannot_be_used_end_in_one_line(dit, tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dit, tmp_path / "dit")
    spoil, words = FAULTS[fault]
    spoil(tmp_path / "dit")
    with pytest.raises(ValueError, match=words) as error:
        DiffusersModel(tmp_path / "dit")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "evil").exists()


def test_pickled_weights_are_refused(tmp_path):
    folder = dit_folder(tmp_path / "dit", safe_serialization=False)
    assert list(folder.rglob("*.bin"))
    with pytest.raises(ValueError, match="its weights must be safetensors"):
        DiffusersModel(folder)


def test_other_tasks_and_options_are_refused(dit, tmp_path):
    from diffusers import DDIMPipeline, UNet2DModel

    net = UNet2DModel(
        8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    DDIMPipeline(net, DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    with pytest.raises(
        ValueError, match="is a DDIMPipeline, which does not sample pictures from texts or classes only"
    ):
        DiffusersModel(tmp_path / "ddim")
    with pytest.raises(ValueError, match="DiTPipeline has no options height"):
        DiffusersModel(dit, options={"height": 16})
