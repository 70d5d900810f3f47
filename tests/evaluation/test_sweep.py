"""A sweep over what a config names: grids, weights, checkpoints, processes; what fails, and what is refused."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dit.cli.compare import compare
from dit.cli.evaluate import evaluate
from dit.evaluation.card import Card, read_parts
from dit.evaluation.selftest import faults_of
from dit.metrics.clip import ClipScore
from dit.metrics.extractors import Extractor, open_clip_model
from dit.metrics.frechet import FrechetDistance
from dit.metrics.inception_score import InceptionScore
from dit.metrics.prompt_accuracy import PromptAccuracy

from ..conftest import ROOT, composed

SMALL = ["n=6", "references=32", "steps=[1,2]", "guidance.scale=[2]", "shown=2", "wandb.mode=disabled", "confirm=false"]


def words_of(run: Path, *overrides: str) -> list[str]:
    return [f"ckpt={run}", f"cache_dir={run.parent / 'cache'}", *SMALL, "sampler=euler", *overrides]


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def sweep(run: Path, *overrides: str) -> Path:
    return evaluate(composed("evaluate", words_of(run, *overrides)))


@pytest.fixture(scope="module")
def plain(tiny_run, tmp_path_factory):
    return sweep(tiny_run, f"out={tmp_path_factory.mktemp('plain')}")


def test_grids_and_weights_and_checkpoints_are_cells_of_one_table(tiny_run, plain, tmp_path):
    first = sorted((tiny_run / "checkpoints").iterdir())[0]
    words = [
        "weights=[ema,raw]",
        "grids=[uniform_time,uniform_log_snr]",
        "steps=[1]",
        f"ckpt=[{tiny_run},{first},{tiny_run}]",
    ]
    cards = results_of(sweep(tiny_run, f"out={tmp_path}", *words))["cards"]
    subjects = [(c["subject"]["checkpoint"], c["subject"]["weights"], c["subject"]["grid"]) for c in cards]
    assert len(subjects) == len(set(subjects)) == 2 * 2 * 2
    assert len({c["subject"]["weights_sha256"] for c in cards}) == 4
    assert all(c["failed"] is None and c["scores"]["prompt_accuracy"] >= 0 for c in cards)


def test_sizes_are_cells_of_one_sweep_and_are_not_compared(tiny_run, plain, tmp_path, capsys):
    words = ["size=[[32,32],[48,32]]", "confirm=true", "metric=[prompt_accuracy,clip_shapes]"]
    folder = sweep(tiny_run, f"out={tmp_path / 'two'}", *words)
    results = results_of(folder)
    assert [(card["subject"]["size"], card["subject"]["steps"]) for card in results["cards"]] == [
        ("32x32", 1), ("32x32", 2), ("48x32", 1), ("48x32", 2),
    ]  # fmt: skip
    assert [card["protocol"]["size"] for card in results["cards"]] == [[32, 32]] * 2 + [[48, 32]] * 2
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["size"] for row in rows] == ["32x32", "32x32", "48x32", "48x32"]
    for one, two in zip(results_of(plain)["cards"], results["cards"], strict=False):
        assert two["scores"].items() <= one["scores"].items(), "another size beside it changes nothing"
    assert set(results["sizes"]["32x32"]["floors"]) == {"real", "autoencoder"}
    assert results["sizes"]["48x32"]["floors"] == {}
    assert all(found["again"]["subject"]["size"] == size for size, found in results["sizes"].items())
    with Image.open(next((folder / "cells").glob("euler_1_2_48x32_*.png"))) as strip:
        assert strip.size == (2 * 48, 32)
    text = (folder / "report.html").read_text()
    assert "48x32 pixels</h1>" in text
    assert "the real pictures are 32x32 and cannot be cropped: there are no floors" in text
    assert "the checker of shapes reads pictures of 32x32 or 48x48 pixels, and these are 48x32" in text
    assert (folder / "plots" / "prompt_accuracy_against_nfe_32x32.png").is_file()
    assert (folder / "plots" / "clip_shapes_against_nfe_48x32.png").is_file()
    assert (folder / "samples" / "prompt_0_32x32.png").is_file()
    with pytest.raises(ValueError, match=r"not scored in the same way as .*: .*size \(\[48, 32\], not \[32, 32\]\)"):
        compare([folder], force=False, csv=None, columns=None)


def test_a_size_joins_the_sizes_that_are_there(tiny_run, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    metric = "metric=[clip_shapes]"
    sweep(tiny_run, f"out={tmp_path / 'out'}", metric)
    shapes, original = [], Pipeline.__call__

    def recorded(self, *args, **named):
        shapes.append(named["shape"])
        return original(self, *args, **named)

    monkeypatch.setattr(Pipeline, "__call__", recorded)
    sweep(tiny_run, f"out={tmp_path / 'out'}", "size=32", metric)
    assert shapes == []
    sweep(tiny_run, f"out={tmp_path / 'out'}", "size=[[32,32],[32,48]]", metric)
    assert {tuple(shape) for shape in shapes} == {(3, 48, 32)}, "height before width, and 32x32 is not sampled again"


@pytest.mark.parametrize(("words", "fault"), [
    (["size=[48,32]", "metric=[fd_shapes]"], r"size=48x32: the real pictures are 32x32 and cannot be cropped, and fd_shapes"),
    (["size=[48,32,3]"], r"size"), (["size=[[48,32],[48]]"], "size"), (["size=[]"], "size"),
    (["size=[48,32]", "metric=[bits_per_dim]"], r"size=\[48, 32\]: bits_per_dim is of the size of training; omit size"),
], ids=lambda value: value[-1] if isinstance(value, list) else "")  # fmt: skip
def test_sizes_that_cannot_be_scored_are_refused(tiny_run, tmp_path, monkeypatch, words, fault):
    from dit.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: pytest.fail("sampled before it was refused"))
    with pytest.raises(ValueError, match=fault):
        sweep(tiny_run, f"out={tmp_path / 'out'}", *words)


def test_pictures_of_another_size_than_the_protocol_says_fail_their_cell(tiny_run, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    original = Pipeline.__call__
    monkeypatch.setattr(
        Pipeline, "__call__", lambda self, *args, shape, **named: original(self, *args, shape=(3, 32, 48), **named)
    )
    with pytest.raises(ValueError, match="the pictures are 48x32, not size=32x32 as their protocol says"):
        sweep(tiny_run, f"out={tmp_path}", "steps=[1]")


def test_a_card_has_the_rules_of_the_training_pictures_and_of_the_references_in_words(plain):
    rules = {"resize": "none, as the source gives them", "crop": "none", "flip": "none"}
    [card, _] = results_of(plain)["cards"]
    assert card["subject"]["training_data"] == rules
    assert rules.items() <= card["protocol"]["reference"]["val"].items()
    text = (plain / "report.html").read_text()
    assert "<dt>training_data.resize</dt>" in text
    assert "<dt>reference.val.crop</dt>" in text


def test_what_makes_the_same_pictures_under_another_name_is_one_cell(tiny_run, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tiny_run)
    words = ["grids=[run,uniform_time]", "steps=[1]", f"ckpt=[{tiny_run},{tmp_path / 'link'}]"]
    [card] = results_of(sweep(tiny_run, f"out={tmp_path / 'out'}", *words))["cards"]
    assert (card["subject"]["checkpoint"].split("/")[0], card["subject"]["grid"]) == (tiny_run.name, "run")
    assert "warning: 3 of 4 cells equal others with another name: left out" in capsys.readouterr().err


def test_results_are_compared_and_those_of_other_references_refused(tiny_run, plain, tmp_path):
    other = sweep(tiny_run, f"out={tmp_path / 'raw'}", "weights=raw")
    assert "ema" in compare([plain, other], force=False, csv=None, columns=None)
    fewer = sweep(tiny_run, f"out={tmp_path / 'fewer'}", "references=16")
    with pytest.raises(ValueError, match=r"reference\.val\.count"):
        compare([plain, fewer], force=False, csv=None, columns=None)
    assert "reference.val.count" in compare([plain, fewer], force=True, csv=None, columns=None)


def test_an_unknown_grid_is_named(tiny_run, tmp_path):
    with pytest.raises(ValueError, match=r"grids=kerras: there is no such grid. Did you mean 'karras'"):
        sweep(tiny_run, f"out={tmp_path / 'out'}", "grids=[kerras]")


def test_the_score_and_its_interval_come_with_the_parts_of_every_picture(plain):
    files = list((plain / "cells").glob("euler_*.json"))
    assert len(files) == 2
    for file in files:
        card, parts = Card.read(file), read_parts(file)
        assert card.subject["grid"] == "uniform_time"  # as conf/ calls the run's own
        assert len(parts["prompt_accuracy"]) == 6
        for name, part in parts.items():
            assert card.scores[name] == pytest.approx(float(part.double().mean()), rel=1e-6)
            assert card.intervals[name][0] <= card.scores[name] <= card.intervals[name][1]


@pytest.mark.slow
def test_two_processes_score_as_one(tiny_run, plain, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = words_of(tiny_run, f"out={tmp_path}")
    done = subprocess.run([*command, "evaluate.py", *words], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path)
    for one, two in zip(results_of(plain)["cards"], results_of(tmp_path)["cards"], strict=True):
        assert one["subject"] == two["subject"]
        assert one["cost"]["nfe"] == two["cost"]["nfe"]
        for name, score in one["scores"].items():
            assert two["scores"][name] == pytest.approx(score, rel=1e-3), name
    strips = [sorted(file.name for file in (folder / "cells").glob("*.png")) for folder in (plain, tmp_path)]
    assert strips[0] == strips[1]
    assert len(strips[0]) == 2


def test_pictures_that_are_not_finite_fail_their_cell_alone(tiny_run, tmp_path, monkeypatch, capsys):
    from dit.pipeline import Pipeline

    original = Pipeline.__call__

    def sometimes_nan(self, prompts, seeds, recipe, *rest, **named):
        made = original(self, prompts, seeds, recipe, *rest, **named)
        broken = torch.full_like(made.images[:1], torch.nan)
        return replace(made, images=torch.cat([broken, made.images[1:]])) if recipe.steps == 2 else made

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "__call__", sometimes_nan)
        folder = sweep(tiny_run, f"out={tmp_path}")
    one, two = results_of(folder)["cards"]
    assert one["failed"] is None
    assert "1 of 6 pictures are not finite" in two["failed"]
    assert two["scores"] == {}
    assert "not finite" in capsys.readouterr().err
    assert "not finite" in (folder / "report.html").read_text()
    healed = results_of(sweep(tiny_run, f"out={tmp_path}"))[
        "cards"
    ]  # what failed is tried again, what is there is kept
    assert healed[1]["failed"] is None
    assert healed[0] == one


def test_cells_of_another_protocol_never_answer_for_this_one(tiny_run, plain, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(plain, folder)
    (folder / "protocol.json").unlink()
    cards = results_of(sweep(tiny_run, f"out={folder}", "n=7"))["cards"]
    assert {card["protocol"]["n"] for card in cards} == {7}
    (folder / "protocol.json").write_text("{half")
    with pytest.raises(ValueError, match=r"protocol\.json is not JSON"):
        sweep(tiny_run, f"out={folder}", "n=7")


def test_a_sweep_of_which_nothing_could_be_scored_fails(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="nothing could be scored"):
        sweep(tiny_run, f"out={tmp_path}", "n=1", "shown=1", "metric=[fd_shapes]")
    assert (tmp_path / "report.html").is_file()


def test_a_metric_that_cannot_score_is_named_on_the_card_and_in_the_report(tiny_run, tmp_path):
    folder = sweep(tiny_run, f"out={tmp_path}", "n=1", "shown=1", "steps=[1]", "metric=[fd_shapes,prompt_accuracy]")
    (card,) = results_of(folder)["cards"]
    assert "at least 2 pictures" in card["lost"]["fd_shapes"]
    assert "prompt_accuracy" in card["scores"]
    assert "fd_shapes is missing where it could not score" in (folder / "report.html").read_text()


def test_the_winner_is_scored_again_on_other_noise(tiny_run, tmp_path):
    results = results_of(sweep(tiny_run, f"out={tmp_path}", "confirm=true"))
    assert results["again"]["protocol"]["seed"] == 6
    assert len(results["cards"]) == 2
    same = ("sampler", "steps", "guidance", "grid")
    assert any(all(results["again"]["subject"][k] == c["subject"][k] for k in same) for c in results["cards"])


class Constant(Extractor):
    """Every picture looks the same to it."""

    dims = {"pool": 4}
    protocol = {"network": "none"}

    def extract(self, images):
        return {"pool": torch.ones(len(images), 4)}


@pytest.fixture(scope="module")
def real():
    import numpy as np

    from dit.data.shapes import Shapes

    source = Shapes("val", 48)
    return torch.from_numpy(source.images(np.arange(48))), list(source.captions)


def test_a_sound_evaluator_passes_its_self_test(real):
    from dit.data.shapes_checker import ShapesChecker

    clip = open_clip_model("shapes_clip")
    metrics = [FrechetDistance("fd", clip), ClipScore("clip", clip), PromptAccuracy(ShapesChecker())]
    assert faults_of(dict(zip("abc", metrics, strict=True)), *real) == []


def test_the_self_test_expects_no_agreement_with_prompts_of_a_score_that_ignores_them(real):
    score = InceptionScore("score", open_clip_model("shapes_clip"), "pool")
    assert faults_of({"score": score}, *real) == []


def test_the_self_test_of_pictures_too_small_to_blur_says_so(real):
    images, captions = real
    faults = faults_of({"fd": FrechetDistance("fd", open_clip_model("shapes_clip"))}, images[..., :1, :1], captions)
    assert any("grow with blur" in fault for fault in faults)


def test_a_broken_evaluator_is_found_out(real):
    images, captions = real
    faults = faults_of({"fd": FrechetDistance("fd", Constant(8))}, images, captions)
    assert [fault.partition(" (")[0] for fault in faults] == [f"fd does not grow with {it}" for it in ("noise", "blur")]
    blind = PromptAccuracy(lambda images, prompts: {"any": torch.ones(len(prompts), dtype=torch.bool).numpy()})
    [fault] = faults_of({"it": blind}, images, captions)
    assert fault.startswith("prompt_accuracy is 1 with true captions and 1 with shuffled ones (a metric that reads no")


def test_a_broken_evaluator_refuses_to_report(tiny_run, tmp_path, monkeypatch):
    from dit.metrics.extractors import OpenClip
    from dit.pipeline import Pipeline

    monkeypatch.setattr(OpenClip, "extract", lambda self, images: {"pool": torch.ones(len(images), 64)})
    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: pytest.fail("sampled with a broken evaluator"))
    with pytest.raises(ValueError, match="self-test"):
        sweep(tiny_run, f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}", "metric=[fd_shapes]")


def test_the_cache_of_references_is_not_used_for_other_pictures(tiny_run, tmp_path, monkeypatch):
    from dit.data.shapes import Shapes

    words = [f"cache_dir={tmp_path / 'cache'}", "metric=[fd_shapes]", "steps=[1]"]
    reads = []
    original = Shapes.images
    monkeypatch.setattr(Shapes, "images", lambda self, index: reads.append(len(index)) or original(self, index))
    first = results_of(sweep(tiny_run, f"out={tmp_path / 'a'}", *words))["cards"][0]["scores"]
    first_reads = len(reads)
    again = results_of(sweep(tiny_run, f"out={tmp_path / 'b'}", *words))["cards"][0]["scores"]
    assert len(reads) - first_reads < first_reads  # the floor alone is read again
    assert again == first
    fewer = results_of(sweep(tiny_run, f"out={tmp_path / 'c'}", *words, "references=16"))["cards"][0]["scores"]
    assert fewer != first
    for file in (tmp_path / "cache").glob("reference_*"):
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"reference_\w+\.safetensors is damaged: .*; delete it"):
        sweep(tiny_run, f"out={tmp_path / 'd'}", *words)
