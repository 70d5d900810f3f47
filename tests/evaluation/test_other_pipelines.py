"""Pipelines of diffusers that dit has no backbone for, and their LoRA files: sampled by seed alone and scored."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit.cli.compare import compare
from dit.cli.evaluate import evaluate
from dit.evaluation.diffusers_lora import DEFAULT
from dit.evaluation.diffusers_model import DiffusersModel

from ..conftest import composed
from .pipelines import FAMILIES, PIPELINES, save_lora, save_pipeline
from .test_diffusers_model import assert_equal_pictures, gathered

PROMPTS = ["a red star", "large blue circle", "a small star on black"]
SLOW = {"sd3", "sana", "flux"}
NFE = {"flux": 2, "sd15": 6}  # the scale is an input of FLUX; PNDM evaluates its second point twice
LOADS_LORA = [name for name in FAMILIES if name != "pixart_sigma"]


def marked(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function from a family to the folder of its pipeline."""
    saved = {}

    def get(family):
        if family not in saved:
            saved[family] = save_pipeline(tmp_path_factory.mktemp(family), family)
        return saved[family]

    return get


def sampled(model, batch_size=3, prompts=PROMPTS, seed=5):
    return gathered(model.sample(prompts, seed, 2, 3.0, batch_size))


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_pictures_have_the_size_of_the_pipeline_or_that_which_is_given(family, folder):
    model = DiffusersModel(folder(family), options=FAMILIES[family][1])
    given = (32, 16) if family == "sd3" else (64, 32)  # the small SD3 has few positions
    for size, (width, height) in [(None, model.size), (given, given)]:
        [batch] = model.sample(PROMPTS[:1], 5, 2, 3.0, 1, size=size)
        assert batch.images.shape == (1, 3, height, width)


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_a_picture_depends_on_its_seed_and_text_alone_and_the_card_names_the_pipeline(family, folder):
    model = DiffusersModel(folder(family), options=FAMILIES[family][1])
    together, parts = sampled(model)
    assert_equal_pictures(together, sampled(model, batch_size=1)[0])
    torch.manual_seed(7)
    assert_equal_pictures(sampled(model, prompts=PROMPTS[1:], seed=6)[0], {0: together[1], 1: together[2]})
    assert parts[0].broken == 0
    assert parts[0].nfe == NFE.get(family, 4)
    card = model.description
    assert card["kind"] == PIPELINES[family]
    assert card["scheduler"]["class"] == type(model.pipe.scheduler).__name__
    assert {"vae", "text_encoder", "unet" if family in ("sd15", "sdxl") else "transformer"} <= set(card["weights"])
    assert {"model_index.json", "tokenizer/tokenizer_config.json", "vae/config.json"} <= set(card["files"])


@pytest.mark.parametrize("family", marked(LOADS_LORA))
def test_a_lora_file_changes_the_pictures_as_in_diffusers_and_a_weight_of_0_is_the_pipeline_alone(
    family, folder, tmp_path
):
    import diffusers

    lora, options = save_lora(tmp_path / "lora", folder(family), family), FAMILIES[family][1]
    model, plain = (DiffusersModel(folder(family), options=options, lora=files) for files in ([lora], []))
    changed, without = sampled(model)[0], sampled(plain)[0]
    assert max((changed[i].int() - without[i].int()).abs().max() for i in changed) > 1  # the tolerance of equal ones
    theirs = getattr(diffusers, PIPELINES[family]).from_pretrained(folder(family))
    theirs.load_lora_weights(lora)
    plain.pipe, plain.denoiser = theirs, getattr(theirs, "unet", None) or theirs.transformer
    theirs.set_progress_bar_config(disable=True)
    assert_equal_pictures(sampled(plain)[0], changed)
    model.scale_lora(0.0)
    again = sampled(model)[0]
    assert all(torch.equal(again[i], without[i]) for i in without)
    (entry,) = model.description["lora"]
    assert entry["file"] == DEFAULT
    assert len(entry["sha256"]) == 64
    assert DiffusersModel(folder(family), options=options).description == {
        key: value for key, value in model.description.items() if key != "lora"
    }


def kohya(state):
    """The file of a UNet by the names of kohya's scripts."""
    named = {}
    for name, value in state.items():
        if name.startswith("unet."):
            layer, _, part = name.removeprefix("unet.").partition(".lora_")
            kind = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[part]
            named[f"lora_unet_{layer.replace('.', '_')}.{kind}"] = value
            named[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(2.0)
    return named


def of_another_layer(state):
    name = next(iter(state))
    layer, _, _ = name.partition(".lora_")
    return state | {
        f"{layer}_more.lora_{end}.weight": value for end, value in [("A", torch.ones(2, 8)), ("B", torch.ones(8, 2))]
    }


@pytest.mark.parametrize(("change", "fault"), [
    (lambda state: state | {"notes": torch.zeros(1)}, r"has notes, not of a LoRA that diffusers reads"),
    (lambda state: {f"other.{name}": value for name, value in state.items()}, r"does not fit .*, such as other\."),
    (of_another_layer, r"1 of its \d+ updates are of layers that it does not have, such as .*_more\.lora_A"),
    (lambda state: {name: value[:, :-1] for name, value in state.items()}, "cannot be loaded into StableDiffusionPipeline"),
], ids=["no update", "no part", "no layer", "shape"])  # fmt: skip
def test_a_lora_file_that_does_not_fit_is_refused_with_its_keys(change, fault, folder, tmp_path):
    file = save_lora(tmp_path, folder("sd15"), "sd15") / DEFAULT
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file)
    with pytest.raises(ValueError, match=fault) as error:
        DiffusersModel(folder("sd15"), lora=[file])
    assert "\n" not in str(error.value)


def test_names_of_kohya_are_read_where_diffusers_reads_them(folder, tmp_path):
    file = save_lora(tmp_path, folder("sd15"), "sd15") / DEFAULT
    save_file(kohya(load_file(file)), tmp_path / "kohya.safetensors")
    one, other = (
        sampled(DiffusersModel(folder("sd15"), lora=[path]))[0] for path in (file, tmp_path / "kohya.safetensors")
    )
    assert_equal_pictures(one, other)


@pytest.mark.slow
def test_names_of_kohya_are_refused_where_diffusers_reads_nothing_of_them(folder, tmp_path):
    state = load_file(save_lora(tmp_path, folder("sd3"), "sd3") / DEFAULT)
    named = {
        f"lora_transformer_{name.removeprefix('transformer.').replace('.', '_')}.lora_down.weight": value
        for name, value in state.items()
    }
    save_file(named, tmp_path / "kohya.safetensors")
    with pytest.raises(ValueError, match=r"of its \d+ updates are of layers that it does not have, such as lora_trans"):
        DiffusersModel(folder("sd3"), lora=[tmp_path / "kohya.safetensors"])


@pytest.mark.parametrize(("family", "name", "fault"), [
    ("pixart_sigma", "a.safetensors", "diffusers has no loader of LoRA for PixArtSigmaPipeline"),
    ("sd15", "a.bin", "is not a .safetensors file, nor a folder with pytorch_lora"),
    ("sd15", "none.safetensors", "is not a .safetensors file, nor a folder with pytorch_lora"),
    ("sd15", "a.safetensors", "cannot be read"),
])  # fmt: skip
def test_a_lora_that_cannot_be_read_is_one_line(family, name, fault, folder, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "a.bin").write_bytes(b"no")
    with pytest.raises(ValueError, match=fault) as error:
        DiffusersModel(folder(family), lora=[tmp_path / name])
    assert "\n" not in str(error.value)


def results_of(out, *words):
    settings = [f"cache_dir={out.parent / 'cache'}", f"out={out}", "wandb.mode=disabled", "confirm=false", *words]
    return json.loads((evaluate(composed("evaluate", settings)) / "results.json").read_text())


def test_a_pipeline_with_its_lora_stands_beside_a_run_in_one_comparison(folder, tmp_path, tiny_run):
    lora = save_lora(tmp_path / "lora", folder("sdxl"), "sdxl")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    same = [f"prompts={tmp_path / 'prompts.txt'}", "n=3", "size=32", "metric=clip_shapes", "guidance.scale=2"]
    same += ["real={_target_: dit.data.shapes.Shapes, split: val, count: 64}", "references=64"]
    ours = results_of(tmp_path / "ours", f"ckpt={tiny_run}", *same, "steps=2", "sampler=euler")
    words = [f"model={folder('sdxl')}", f"lora={lora}", "lora_scale=[0,1]", "steps=2"]
    theirs = results_of(tmp_path / "theirs", *words, *same)
    scales = [card["subject"]["lora_scale"] for card in theirs["cards"]]
    assert scales == [0.0, 1.0]
    assert theirs["cards"][0]["scores"] != theirs["cards"][1]["scores"]
    assert ours["cards"][0]["protocol"] == theirs["cards"][0]["protocol"]
    text = compare([tmp_path / "ours", tmp_path / "theirs"], False, None, None)
    assert "lora_scale 0" in text
    assert "lora_scale 1" in text
    assert len([line for line in text.splitlines() if "sdxl" in line]) >= 2


def test_a_lora_is_for_a_pipeline_of_diffusers(tmp_path, tiny_run):
    with pytest.raises(ValueError, match="is for a pipeline of diffusers: give it together with model=FOLDER"):
        results_of(tmp_path / "out", f"ckpt={tiny_run}", "lora=a.safetensors")


def test_a_pipeline_stands_beside_a_run_in_one_report(folder, tmp_path, tiny_run):
    same = ["prompts=[a large red star on a black background]", "n=3", "steps=2", "metric=clip_shapes", "confirm=false"]
    same += [f"ckpt={tiny_run}", f"model={folder('sd15')}", "guidance.scale=2", "sampler=euler"]
    same += ["real={_target_: dit.data.shapes.Shapes, split: val, count: 64}", "references=64"]
    with pytest.raises(ValueError, match="and scores of different sizes are not compared"):
        results_of(tmp_path / "sizes", *same, "size=null")
    both = results_of(tmp_path / "both", *same, "size=32")
    ours, theirs = (card["subject"] for card in both["cards"])
    assert ours["checkpoint"].endswith(".ckpt")
    assert "StableDiffusionPipeline" in str(theirs["pipeline"])
    assert len({str(card["protocol"]) for card in both["cards"]}) == 1
    page = (tmp_path / "both" / "report.html").read_text()
    assert ours["checkpoint"] in page
    assert theirs["model"] in page
