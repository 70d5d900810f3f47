"""Generation and editing at the command line."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from dit.cli.generate import generate
from dit.data.picture_folder import PictureFolder
from dit.generation.model import guidance_of
from dit.generation.writers import Parquet

from ..conftest import ROOT, command, composed

PROMPT = "prompts=[a large red star on a black background]"


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    draw = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(draw).resize((32, 32)).save(file)
    return file


def picture(folder):
    return np.asarray(Image.open(folder / "prompt_0_seed_0.png")).astype(int)


def generated(run, out, *words):
    return generate(composed("generate", [f"ckpt={run}", PROMPT, f"out={out}", "recipe.steps=4", *words]))


def test_a_picture_of_strength_0_is_the_autoencoder_s_own(tiny_run, tmp_path, photo):
    kept = picture(generated(tiny_run, tmp_path / "a", f"image={photo}", "strength=0"))
    changed = picture(generated(tiny_run, tmp_path / "b", f"image={photo}", "strength=0.75"))
    original = np.asarray(Image.open(photo)).astype(int)
    assert abs(kept - original).mean() < abs(changed - original).mean()
    assert abs(kept - changed).max() > 10


def test_inpainting_keeps_what_is_black_in_the_mask(tiny_run, tmp_path, photo):
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 28:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = [f"image={photo}", f"mask={tmp_path / 'mask.png'}"]
    filled = picture(generated(tiny_run, tmp_path / "a", *words, "resample=2", "sampler=euler_ancestral"))
    kept = picture(generated(tiny_run, tmp_path / "b", f"image={photo}", "strength=0"))
    assert abs(filled - kept)[:, :4].max() <= 2  # beyond the autoencoder's reach of the mask
    assert abs(filled - kept)[:, 28:].mean() > 5


def test_outpainting_adds_to_the_sides(tiny_run, tmp_path, photo):
    assert picture(generated(tiny_run, tmp_path / "a", f"image={photo}", "border=[8,0,16,8]")).shape == (40, 56, 3)


def test_a_picture_s_own_noise_gives_it_back(tiny_run, tmp_path, photo):
    """Inverted and sampled under the same text, without guidance, by a method of second order."""
    text = "source='a large red star on a black background'"
    words = [f"image={photo}", "guidance.scale=1", "sampler=heun", "recipe.steps=32", "strength=0.6"]
    own = picture(generated(tiny_run, tmp_path / "a", *words, text))
    fresh = picture(generated(tiny_run, tmp_path / "b", *words))
    original = np.asarray(Image.open(photo)).astype(int)
    assert abs(own - original).mean() < 0.5 * abs(fresh - original).mean()


def test_a_negative_prompt_changes_the_picture(tiny_run, tmp_path):
    plain = picture(generated(tiny_run, tmp_path / "a", "guidance.scale=6"))
    away = generated(
        tiny_run, tmp_path / "b", "guidance.scale=6", "recipe.negative='a small blue circle on a white background'"
    )
    assert (plain != picture(away)).any()


def test_the_pictures_go_straight_into_evaluate(tiny_run, tmp_path):
    """The folder has no grid and no picture of an earlier call, and each picture has its prompt."""
    prompts = "prompts=[a large red star on a black background,a small blue circle on a white background]"
    generate(
        composed(
            "generate", [f"ckpt={tiny_run}", prompts, "seeds=[0,1,2]", "recipe.steps=1", f"out={tmp_path / 'out'}"]
        )
    )
    (tmp_path / "out" / "mine.txt").write_text("mine")
    generate(
        composed(
            "generate",
            [f"ckpt={tiny_run}", prompts, "seeds=[1]", "recipe.steps=1", f"out={tmp_path / 'out'}", "replace=true"],
        )
    )
    source = PictureFolder(tmp_path / "out")
    assert dict(zip([file.name for file in source.files], source.captions, strict=True)) == {
        "prompt_0_seed_1.png": "a large red star on a black background",
        "prompt_1_seed_1.png": "a small blue circle on a white background",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out_costs.jsonl", "out_grid.png"]
    assert (tmp_path / "out" / "mine.txt").is_file()


def test_a_picture_is_read_as_training_reads_it(tiny_run, tmp_path, photo):
    """Turned by its EXIF, and alpha on white; the mask too."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(photo).rotate(180).save(tmp_path / "turned.png", exif=exif)
    upright = picture(generated(tiny_run, tmp_path / "a", f"image={photo}", "strength=0"))
    assert np.array_equal(
        picture(generated(tiny_run, tmp_path / "b", f"image={tmp_path / 'turned.png'}", "strength=0")), upright
    )
    alpha = np.zeros((32, 32, 4), np.uint8)
    alpha[:, :28, 3] = 255  # black, and clear on the right
    Image.fromarray(alpha).save(tmp_path / "mask.png")
    filled = picture(generated(tiny_run, tmp_path / "c", f"image={photo}", f"mask={tmp_path / 'mask.png'}"))
    assert abs(filled - upright)[:, :4].max() <= 2
    assert abs(filled - upright)[:, 28:].mean() > 5


def test_the_guidance_is_that_of_the_run_unless_another_is_chosen(tiny_run):
    run = OmegaConf.load(tiny_run / "config.yaml")
    run.guidance = {"_target_": "dit.diffusion.guidance.Rescaled", "scale": 3.0, "amount": 0.5}
    guidance = {word: guidance_of(composed("generate", ["ckpt=x", *word.split()]).guidance, run)
                for word in ("", "guidance.scale=1.5", "guidance=apg")}  # fmt: skip
    assert guidance[""] == run.guidance
    assert guidance["guidance.scale=1.5"] == {**run.guidance, "scale": 1.5}
    assert guidance["guidance=apg"]._target_.endswith("AdaptiveProjected")


def test_a_prompt_is_needed(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="prompts are missing: say what to draw"):
        generate(composed("generate", [f"ckpt={tiny_run}", f"out={tmp_path / 'out'}"]))


@pytest.mark.parametrize(("words", "fault"), [
    (["strength=0.5"], "strength=0.5 edits a picture, and none is given"),
    (["border=[8,0,0,0]"], "none is given: say image=FILE"),
    (["image=nowhere.png"], "cannot read the picture nowhere.png: No such file"),
    (["image={photo}", "strength=1.5"], "strength=1.5 must be in"),
    (["image={photo}", "border=[3,0,0,0]"], "multiples of patch=8"),
    (["image={photo}", "border=[-8,0,0,0]"], "cannot add -8"),
    (["image={photo}", "mask={small}"], r"mask of \(8, 8\) pixels does not fit"),
    (["image={broken}"], "it is not a picture, or broken"),
    (["sampler=[euler,heun]"], "choose one"), (["resample=0"], "times=0"),
    (["guidance.scale=1", "recipe.negative=star"], "negative='star' has no effect"),
    (["image={photo}", "mask={photo}", "source=star"], "cannot be combined"),
    (["source=star"], "source=star edits a picture"),
])  # fmt: skip
def test_bad_edits_end_in_one_line(tiny_run, tmp_path, photo, words, fault):
    Image.open(photo).resize((8, 8)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = {"photo": photo, "small": tmp_path / "small.png", "broken": tmp_path / "broken.png"}
    with pytest.raises(Exception, match=fault):
        generated(tiny_run, tmp_path / "out", *(word.format(**files) for word in words))
    assert not (tmp_path / "out").exists()


def test_pictures_of_another_size(tiny_run, tmp_path):
    folder = generated(tiny_run, tmp_path / "wide", "size=[48,32]")
    assert picture(folder).shape == (32, 48, 3)
    with pytest.raises(ValueError, match=r"x of shape .* sides that are multiples of patch="):
        generated(tiny_run, tmp_path / "odd", "size=[33,32]")
    with pytest.raises(ValueError, match=r"size=\[48, 32\]: an edited picture keeps the size"):
        generated(tiny_run, tmp_path / "edit", "size=[48,32]", f"image={next(folder.glob('*.png'))}")


def test_pictures_of_several_sizes(tiny_run, tmp_path):
    folder = generated(tiny_run, tmp_path / "out", "size=[[48,32],[32,48]]")
    wide, high = (Image.open(folder / f"prompt_0_seed_0_{size}.png") for size in ("48x32", "32x48"))
    assert (wide.size, high.size) == ((48, 32), (32, 48))
    names = [json.loads(line)["file_name"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(file.name for file in folder.glob("*.png"))
    assert (tmp_path / "out_grid_48x32.png").is_file()
    alone = generated(tiny_run, tmp_path / "alone", "size=[48,32]")
    assert np.array_equal(picture(alone), np.asarray(wide)), "a picture does not depend on the sizes beside it"
    assert [file.name for file in generated(tiny_run, folder, "size=32", "replace=true").glob("*.png")] == [
        "prompt_0_seed_0.png"
    ]


def pixels(folder):
    return {file.name: np.asarray(Image.open(file)).astype(int) for file in folder.glob("*.png")}


def test_a_batch_size_changes_rounding_only(tiny_run, tmp_path, capsys):
    """At most 1 of 255, in every picture."""
    one, three, auto = (
        generated(tiny_run, tmp_path / f"{size}", "seeds=0-6", f"batch_size={size}") for size in (1, 3, "auto")
    )
    assert "7 pictures in " in (said := capsys.readouterr().err)
    assert "images per second, batch_size=64" in said
    for other in (three, auto):
        assert all(abs(picture - pixels(other)[name]).max() <= 1 for name, picture in pixels(one).items())
    assert len(pixels(one)) == len(pixels(auto)) == 7


def test_prompts_of_a_file_seeds_sizes_and_several_models(tiny_run, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt\na large red star on a black background\na small blue circle on a white background\n")
    newest, older = sorted((tiny_run / "checkpoints").glob("step*.ckpt"))[-1:-3:-1]
    words = [
        f"ckpt=[{newest},{older}]",
        f"prompts={file}",
        "seeds=3-4",
        "size=[[48,32],32]",
        "recipe.steps=1",
        "format=parquet",
    ]
    folder = generate(composed("generate", [*words, "shard_size=5", f"out={tmp_path / 'out'}"]))
    rows = [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert len({row["weights"] for row in rows}) == 2
    assert {(row["model"], row["step"]) for row in rows} == {(str(newest), 6), (str(older), 4)}
    assert [file.name for file in sorted(folder.glob("*.parquet"))] == [f"0000{n}.parquet" for n in range(4)]
    alone = generate(composed("generate", [f"ckpt={older}", f"prompts={file}", "seeds=4", "size=[48,32]",
                                           "recipe.steps=1", f"out={tmp_path / 'alone'}"]))  # fmt: skip
    [row] = [row for row in rows if row["name"] == "model_1_prompt_1_seed_4_48x32"]
    own = json.loads((alone / "generated.jsonl").read_text().splitlines()[1])
    assert {name: own[name] for name in ("prompt", "weights", "recipe")} == {
        name: row[name] for name in ("prompt", "weights", "recipe")
    }
    stored = Image.open(io.BytesIO(Parquet(folder).read(row)))
    assert abs(np.asarray(stored).astype(int) - pixels(alone)["prompt_1_seed_4.png"]).max() <= 1
    assert len(list(tmp_path.glob("out_grid_model_[01]_*.png"))) == 4


def test_an_edit_is_recorded_with_the_hashes_of_its_files(tiny_run, tmp_path, photo):
    folder = generated(tiny_run, tmp_path / "a", f"image={photo}", "strength=0.5")
    edit = json.loads((folder / "generated.jsonl").read_text())["edit"]
    assert edit["image_sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert edit["strength"] == 0.5
    Image.open(photo).rotate(90).save(photo)
    with pytest.raises(ValueError, match="differs in edit; choose another out"):
        generated(tiny_run, tmp_path / "a", f"image={photo}", "strength=0.5")


def test_another_call_is_refused_and_the_same_one_is_passed_over(tiny_run, tmp_path):
    folder = generated(tiny_run, tmp_path / "a")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(
        ValueError, match="has the pictures of another call, which differs in recipe; choose another out"
    ):
        generated(tiny_run, tmp_path / "a", "guidance.scale=3")
    generated(tiny_run, tmp_path / "a")
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.slow
def test_a_killed_command_goes_on_and_two_processes_make_the_same_files(tiny_run, tmp_path):
    words = ["-m", "dit.cli.generate", f"ckpt={tiny_run}", PROMPT, "seeds=0-599", "recipe.steps=8", "device=cpu",
             "batch_size=8", "shard_size=16", "format=webdataset"]  # fmt: skip
    started = subprocess.Popen([sys.executable, *words, f"out={tmp_path / 'cut'}"], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "cut").glob("00003.tar")):
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert (tmp_path / "cut/unfinished").is_dir()
    assert not (tmp_path / "cut/manifest.json").exists()
    for name, more in {"whole": [], "cut": [], "two": ["devices=2"]}.items():
        done = command(*words, f"out={tmp_path / name}", *more)
        assert done.stdout.splitlines()[-1] == str(tmp_path / name), done.stderr
    files = {
        name: {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*")}
        for name in ("whole", "cut", "two")
    }
    assert len(files["whole"]) == 38 + 2
    assert files["whole"] == files["cut"] == files["two"]
    assert len({(tmp_path / f"{name}_grid.png").read_bytes() for name in files}) == 1
