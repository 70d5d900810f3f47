"""experiment=dreambooth from the command line: a subject from a few pictures, beside prior pictures of its class."""

import io
import json

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image

from dit.checkpoints.native import CONFIG, find_checkpoint
from dit.cli.train import train
from dit.data.shapes import Shapes
from dit.encoders.classes import ClassEncoder
from dit.encoders.huggingface import T5Text
from dit.encoders.joined import AlongTokens
from dit.runs import load_run, merged_backbone
from dit.training import prior_pictures
from dit.training.rare_token import check_token

from ..conftest import TINY, command, composed, only_line_of
from ..encoders.folders import save_t5

SHORT = [word for word in TINY if not word.startswith(("experiment=", "data.", "backbone.", "closing"))]
TAUGHT = ["data.caption='a large red ${data.token} on a white background'", "data.class_name=star",
          "data.class_caption='a large red star on a white background'"]  # fmt: skip
PRIOR = ["prior.count=24", "prior.batch_size=5", "data.module.val_limit=8"]


def save(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return save(tmp_path_factory.mktemp("subject") / "pictures", Shapes("train", 4).images(np.arange(4)))


def words_of(run, subject, folder, *more, token="sks"):
    places = [f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}", f"init={run}", f"data.path={subject}"]
    return ["experiment=dreambooth", *SHORT, *PRIOR, *TAUGHT, *places, f"data.token={token}", *more]


def trained(*given, **options):
    return train(composed("train", words_of(*given, **options)))


@pytest.fixture(scope="module")
def taught(tiny_run, subject, tmp_path_factory):
    return trained(tiny_run, subject, tmp_path_factory.mktemp("dreambooth") / "run")


def test_the_parts_and_words_of_the_run_are_kept_and_the_token_is_appended(tiny_run, taught):
    before, after = (find_checkpoint(run)[1][CONFIG] for run in (tiny_run, taught))
    assert all(after[part] == before[part] for part in ("backbone", "autoencoder", "path", "prediction"))
    assert after["text_encoder"]["words"] == [*before["text_encoder"]["words"], "sks"]
    run = load_run(taught)
    assert run.sample("a large red sks on a white background").images.shape == (1, 3, 32, 32)


def test_half_of_the_samples_are_the_subject_and_half_are_prior_pictures(taught):
    data = json.loads((taught / "environment.json").read_text())["data"]
    prior = load_run(taught).config.data.prior
    held_out = data["val"]["samples"]
    assert data["train"]["samples"] == 4 + 24 - held_out
    rows = [json.loads(line) for line in open(f"{prior}/metadata.jsonl")]
    assert [row["text"] for row in rows] == ["a large red star on a white background"] * 24


def test_prior_pictures_are_those_of_the_frozen_run_and_are_made_once(tiny_run, subject, taught, monkeypatch):
    cfg = composed("train", words_of(tiny_run, subject, taught))
    prior_pictures.choose_folder(cfg)
    files = sorted(prior_pictures.Path(cfg.data.prior).glob("*.png"))
    run = load_run(tiny_run, device="cpu")
    wanted = run.sample([cfg.data.class_caption] * 3, seeds=[0, 1, 23]).pixels
    for image, file in zip(wanted, [files[0], files[1], files[23]], strict=True):
        found = np.asarray(Image.open(file)).astype(int)
        assert np.abs(found - image.permute(1, 2, 0).numpy()).max() <= 1  # of another batch
    monkeypatch.setattr(prior_pictures, "make_missing", None)
    with pytest.raises(TypeError):
        prior_pictures.make(cfg)
    monkeypatch.undo()
    monkeypatch.setattr(prior_pictures, "initial_model", None)
    prior_pictures.make(cfg)  # samples nothing


def test_after_a_kill_only_the_missing_pictures_are_made(tiny_run, subject, tmp_path, monkeypatch):
    cfg = composed("train", words_of(tiny_run, subject, tmp_path / "run"))
    prior_pictures.choose_folder(cfg)
    prior_pictures.make(cfg)
    folder = prior_pictures.Path(cfg.data.prior)
    files = sorted(folder.glob("*.png"))
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    for file in (*files[10:12], folder / prior_pictures.DONE):
        file.unlink()
    prior_pictures.make(cfg)
    after = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert [a == b for a, b in zip(after, before, strict=True)] == [k not in (10, 11) for k in range(24)]
    for k in (10, 11):
        made = np.asarray(Image.open(files[k])).astype(int)
        assert np.abs(made - np.asarray(Image.open(io.BytesIO(before[k][0])))).max() <= 1
    assert (folder / prior_pictures.DONE).is_file()


@pytest.mark.parametrize("change", ["prior.seed=1", "prior.count=25", "data.class_caption='a small red star'"])
def test_every_input_changes_the_folder_of_the_prior_pictures(tiny_run, subject, tmp_path, change):
    folders = []
    for more in ([], [change]):
        cfg = composed("train", [*words_of(tiny_run, subject, tmp_path / "run"), *more])
        prior_pictures.choose_folder(cfg)
        folders.append(cfg.data.prior)
    assert folders[0] != folders[1]


def test_an_interrupted_run_is_continued_exactly(tiny_run, subject, taught, tmp_path):
    halves = taught.parent / "halves"
    trained(tiny_run, subject, halves, "trainer.max_steps=4", "lr_schedule.decay=0.0", "lr_schedule.warmup=0")
    (halves / "summary.json").unlink()
    trained(tiny_run, subject, halves, "resume=auto", "lr_schedule.decay=0.0", "lr_schedule.warmup=0")
    whole = trained(tiny_run, subject, taught.parent / "whole", "lr_schedule.decay=0.0", "lr_schedule.warmup=0")
    weights = [find_checkpoint(run)[1]["state_dict"] for run in (halves, whole)]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


FAULTS = {
    "one picture": (1, {}, "has 1 picture; a subject needs 3 to 10 that differ: add some"),
    "too many": (11, {}, "has 11 pictures; a subject needs 3 to 10"),
    "alike": ("alike", {}, "its 4 pictures are all alike"),
    "split token": (4, {"token": "my_dog here"}, "data.token=my_dog here is 2 words"),
    "known word": (4, {"token": "circle"}, "data.token=circle is an ordinary word"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_subject_that_cannot_be_learned_is_refused(tiny_run, taught, tmp_path, fault):
    pictures, options, message = FAULTS[fault]
    images = Shapes("train", 11).images(np.arange(11))
    chosen = images[[0, 0, 0, 0]] if pictures == "alike" else images[:pictures]
    with pytest.raises((ValueError, InstantiationException), match=message):
        trained(tiny_run, save(tmp_path / "pictures", chosen), taught.parent / f"fault_{tmp_path.name}", **options)


@pytest.mark.slow
def test_the_command_says_so_in_one_line(tiny_run, tmp_path):
    folder = save(tmp_path / "pictures", Shapes("train", 1).images(np.arange(1)))
    line = only_line_of(command("train.py", *words_of(tiny_run, folder, tmp_path / "run")))
    assert line == f"error: data.path={folder} has 1 picture; a subject needs 3 to 10 that differ: add some"
    line = only_line_of(command("train.py", "experiment=dreambooth", f"data.path={folder}", "data.token=sks",
                                "data.class_name=star"))  # fmt: skip
    assert "init" in line


@pytest.mark.slow
def test_an_inherited_part_is_not_changed_by_the_command_line(tiny_run, subject, tmp_path):
    output = command("train.py", *words_of(tiny_run, subject, tmp_path / "run", "backbone.depth=2"))
    assert only_line_of(output).startswith("error: backbone.depth=2: the experiment takes backbone from the run")


@pytest.mark.parametrize("joined", [False, True])
def test_a_token_is_one_rare_token_of_a_tokenizer(tmp_path, joined):
    encoder = T5Text(str(save_t5(tmp_path / "t5")), length=8)
    encoder = AlongTokens([encoder]) if joined else encoder
    check_token("black", encoder, ["black"])  # the last of its words; words that were trained with are not counted
    for token, message in (("zqj", "splits it into 4 tokens"), ("red", "is an ordinary word: token 5 of the 41")):
        with pytest.raises(ValueError, match=message):
            check_token(token, encoder, [])
    with pytest.raises(ValueError, match="ClassEncoder reads no words"):
        check_token("red", ClassEncoder(["red"]), [])


ALONE = ["data.learn_token=true", "adapter=freeze", "adapter.trainable=[]", "optimizer.lr=0.05"]


def test_the_vector_of_the_token_is_trained_alone_and_stored(tiny_run, subject, taught):
    run = load_run(trained(tiny_run, subject, taught.parent / "token", *ALONE))
    state, base = run.pipeline.backbone.state_dict(), load_run(tiny_run).pipeline.backbone.state_dict()
    vector = state.pop("learned_token.vectors.0")
    assert all(torch.equal(state[name], value) for name, value in base.items())
    encoder = run.pipeline.text_encoder
    start = encoder.table[encoder.indices["star"]]
    assert not torch.equal(vector, start)
    assert torch.allclose(vector, start, atol=0.5)
    torch.testing.assert_close(encoder.vectors([encoder.indices["sks"]])[0], vector)
    with pytest.raises(ValueError, match="has a learned token, which weights of the backbone alone do not hold"):
        merged_backbone(run)


def test_training_of_the_token_is_continued_exactly(tiny_run, subject, taught):
    halves, same = taught.parent / "token_halves", ["lr_schedule.decay=0.0", "lr_schedule.warmup=0"]
    trained(tiny_run, subject, halves, "data.learn_token=true", *same, "trainer.max_steps=4")
    (halves / "summary.json").unlink()
    trained(tiny_run, subject, halves, "data.learn_token=true", *same, "resume=auto")
    whole = trained(tiny_run, subject, taught.parent / "token_whole", "data.learn_token=true", *same)
    weights = [find_checkpoint(run)[1]["state_dict"] for run in (halves, whole)]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
