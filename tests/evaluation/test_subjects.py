"""Subjects of evaluate.py other than runs of dit, and their references."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dit.cli.evaluate import evaluate
from dit.data.shapes import Shapes
from dit.evaluation.comparison import names_of, read_results
from dit.evaluation.recipes import scales_of
from dit.metrics.extractors import Inception
from dit.picture_files import save_png
from dit.scoring.references import subset_indices

from ..conftest import composed
from .test_diffusers_model import dit_folder

SHAPES = Shapes("val", 96)
METRICS = "metric=[fd_shapes,clip_shapes,prompt_accuracy]"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """made/ and real/: pictures with their captions; real.npz: the same pictures as an ADM file."""
    root = tmp_path_factory.mktemp("pictures")
    for name, rows in {"made": range(24), "real": range(24, 96)}.items():
        for i in rows:
            save_png(Image.fromarray(SHAPES.images(np.array([i]))[0].transpose(1, 2, 0)), root / name / f"{i:03d}.png")
            (root / name / f"{i:03d}.txt").write_text(SHAPES.captions[i])
    np.savez(root / "real.npz", SHAPES.images(np.arange(24, 96)).transpose(0, 2, 3, 1))
    return root


def scored(root, out, *words):
    settings = [f"cache_dir={root / 'cache'}", f"out={out}", "wandb.mode=disabled", *words]
    return json.loads((evaluate(composed("evaluate", settings)) / "results.json").read_text())


def test_a_folder_is_scored_against_a_folder_and_the_same_pictures_in_an_npz(root, tmp_path):
    folder = scored(root, tmp_path / "a", f"images={root / 'made'}", f"real={root / 'real'}", METRICS, "references=48")
    npz = scored(root, tmp_path / "b", f"images={root / 'made'}", f"real={root / 'real.npz'}", METRICS, "references=48")
    (card,), (other,) = folder["cards"], npz["cards"]
    assert card["protocol"]["n"] == 24
    assert card["scores"] == other["scores"]
    assert card["scores"]["prompt_accuracy"] == 1
    assert card["scores"]["fd_shapes_24"] > 0
    assert folder["floors"]["real"]["protocol"]["n"] == 24
    assert set(folder["floors"]) == {"real"}
    assert card["subject"]["images"] == "made"
    assert card["protocol"]["reference"]["val"]["count"] == 48
    assert not (tmp_path / "a" / "cells" / "again.json").exists()


def test_the_same_pictures_are_at_no_distance_and_a_data_set_can_be_the_reference(root, tmp_path):
    for i, image in enumerate(SHAPES.images(np.arange(96))):
        save_png(Image.fromarray(image.transpose(1, 2, 0)), tmp_path / "all" / f"{i:03d}.png")
    source = "real={_target_: dit.data.shapes.Shapes, split: val, count: 96}"
    card = scored(root, tmp_path / "out", f"images={tmp_path / 'all'}", source, "metric=fd_shapes", "references=96")[
        "cards"
    ][0]
    assert abs(card["scores"]["fd_shapes_96"]) < 1e-6


def test_pictures_without_captions_are_scored_with_given_prompts(root, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeff" + "\r\n".join(SHAPES.captions[24:96]), encoding="utf-8")
    words = [f"images={root / 'real.npz'}", f"real={root / 'made'}", "metric=prompt_accuracy", f"prompts={prompts}"]
    for n in ("null", "10"):  # all, and a random part with its own prompts
        assert scored(root, tmp_path / n, *words, f"n={n}")["cards"][0]["scores"]["prompt_accuracy"] == 1
    prompts.write_text("\n".join(SHAPES.captions[24:34]))
    with pytest.raises(ValueError, match="10 prompts for 72 pictures, of which n=10 are chosen at random; give one"):
        scored(root, tmp_path / "few", *words, "n=10")


def test_a_metric_that_fails_does_not_affect_the_others(root, tmp_path, capsys):
    score = "+metric.score={_target_: dit.metrics.inception_score.InceptionScore, name: score, layer: pool, splits: 30}"
    words = [f"images={root / 'made'}", f"real={root / 'real.npz'}", METRICS, "references=48"]
    network = "+metric.score.extractor=${metric.fd_shapes.extractor}"
    results = scored(root, tmp_path / "out", *words, score, network)
    card, floor = results["cards"][0]["scores"], results["floors"]["real"]["scores"]
    assert {"fd_shapes_24", "clip_shapes", "prompt_accuracy"} < set(card)
    assert "fd_shapes_24" in floor  # of pictures that have no captions
    assert {"clip_shapes", "prompt_accuracy"}.isdisjoint(floor)
    err = capsys.readouterr().err
    assert "warning: without score: score of 24 pictures: splits=30 needs at least as many" in err
    assert "warning: without clip_shapes, prompt_accuracy, score: clip_shapes: some pictures have no prompt" in err


def test_real_pictures_without_captions_give_no_prompts(root, tmp_path, tiny_run):
    words = [f"ckpt={tiny_run}", f"real={root / 'real.npz'}", METRICS, "n=2", "references=48"]
    with pytest.raises(
        ValueError, match=r"real\.npz has no captions to be prompts; give some, e\.g\. prompts=FILE\.txt"
    ):
        scored(root, tmp_path / "out", *words)


def test_statistics_replace_real_pictures(root, tmp_path, inception_weights, monkeypatch):
    from dit.metrics.frechet import FrechetDistance

    monkeypatch.setattr("dit.cli.evaluate.self_test", lambda *_: None)  # which takes Inception half of the time
    images = torch.from_numpy(SHAPES.images(np.arange(24, 32)))
    metric = FrechetDistance("fid", Inception(inception_weights))
    metric.update(images, real=True)
    mean, cov = metric.reference.gaussian()
    np.savez(tmp_path / "statistics.npz", mu=mean.numpy(), sigma=cov.numpy())
    words = ["metric=fid", f"metric.fid.extractor.weights={inception_weights}", "n=4"]
    results = scored(root, tmp_path / "out", f"images={root / 'made'}", f"real={tmp_path / 'statistics.npz'}", *words)
    metric.update(torch.from_numpy(SHAPES.images(subset_indices(24, 4))))
    assert results["cards"][0]["scores"]["fid_4"] == pytest.approx(metric.compute()["fid_4"], rel=1e-6)
    assert "statistics" in results["cards"][0]["protocol"]["reference"]["val"]
    assert results["floors"] == {}
    with pytest.raises(ValueError, match=r"fd_shapes.* cannot be computed from these statistics"):
        scored(root, tmp_path / "no", f"images={root / 'made'}", f"real={tmp_path / 'statistics.npz'}", METRICS)


def test_a_pipeline_of_diffusers_is_swept_over_steps_and_guidance(root, tmp_path):
    model = dit_folder(tmp_path / "model")
    words = [
        f"model={model}",
        f"real={root / 'real'}",
        "metric=fd_shapes",
        "prompts=['207',cock]",
        "n=3",
        "confirm=false",
    ]
    results = scored(root, tmp_path / "out", *words, "steps=[1,2]", "guidance.scale=[1,2]")
    cost = {(c["subject"]["steps"], c["subject"]["guidance"]): c["cost"]["nfe"] for c in results["cards"]}
    assert cost == {(1, 1.0): 1, (2, 1.0): 2, (1, 2.0): 2, (2, 2.0): 4}
    assert all(c["failed"] is None for c in results["cards"])
    names = names_of(read_results([tmp_path / "out"])[0])
    assert names == [f"steps {steps}, guidance {scale}" for steps in (1, 2) for scale in (1, 2)]
    assert (tmp_path / "out" / "report.html").is_file()


def test_bad_pictures_are_reported_and_the_others_scored(root, tmp_path, capsys):
    folder = tmp_path / "made"
    shutil.copytree(root / "made", folder)
    (folder / "030.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "031.png")
    Image.fromarray(np.zeros((32, 32, 4), np.uint8)).save(folder / "032.png")
    words = [f"real={root / 'real'}", METRICS, "references=48"]
    results = scored(root, tmp_path / "out", f"images={folder}", *words)
    err = capsys.readouterr().err
    assert results["cards"][0]["protocol"]["n"] == 26
    assert "030.png" in err
    assert "031.png" in err
    assert "032.png" in err
    Image.fromarray(np.zeros((48, 20, 3), np.uint8)).save(folder / "033.png")
    with pytest.raises(ValueError, match="size=") as refused:
        scored(root, tmp_path / "mixed", f"images={folder}", *words)
    assert "20x48" in str(refused.value)
    assert scored(root, tmp_path / "cropped", f"images={folder}", "size=32", *words)["cards"][0]["protocol"]["n"] == 27


@pytest.mark.parametrize(("guidance", "expected"), [
    ("classifier_free", [1]), ("interval", [1]), ("embedded", [1, 3.5]),
])  # fmt: skip
def test_scales_are_left_out_where_they_need_a_null_condition_that_the_run_does_not_have(guidance, expected, capsys):
    run = composed("train", ["caption_dropout=0"])
    cfg = composed("evaluate", [f"guidance={guidance}", "guidance.scale=[1,3.5]"])
    assert scales_of(cfg.guidance, run) == expected
    assert ("guidance.scale=3.5 left out" in capsys.readouterr().err) == (expected == [1])


@pytest.mark.parametrize(("words", "fault"), [
    (["images={made}"], "choose metrics"),
    (["images={made}", "metric=fd_shapes"], r"fd_shapes.* none are given"),
    (["images={made}", "metric=fd_shapes", "real={real}", "n=25"], "n=25 pictures are to be scored, and there are 24"),
    (["images={made}", "model=x", METRICS], "images=.* and .*model|model=x and images"),
    ([METRICS], "nothing is given to be scored"),
    (["images={made}", METRICS, "real=/no/where"], "/no/where does not exist"),
    (["images=/no/where.npz", METRICS], "/no/where.npz does not exist"),
    (["model={made}", METRICS, "real={real}", "prompts=[a]"], "is not a diffusers pipeline"),
    (["images={made}", METRICS, "real={real}", "prompts=/no/such.txt"], "cannot read /no/such.txt"),
    (["ckpt=[]", METRICS, "real={real}"], "ckpt is empty; give at least one"),
    (["model={made}", METRICS, "real={real}", "dtype=int8"], "dtype=int8: choose one of float32"),
])  # fmt: skip
def test_errors_are_one_line(root, tmp_path, words, fault):
    words = [word.format(made=root / "made", real=root / "real") if "{" in word else word for word in words]
    with pytest.raises(ValueError, match=fault):
        scored(root, tmp_path / "out", *words)
