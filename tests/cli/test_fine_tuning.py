"""A fine-tuned run at the command line: its checkpoints are swept, and the report has the trade-off."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit.cli.evaluate import evaluate
from dit.cli.train import train
from dit.data.shapes import Shapes

from ..conftest import TINY, command, composed, train_tiny

SMALL = ["n=6", "references=32", "steps=[1,2]", "guidance.scale=2", "sampler=euler", "shown=2", "wandb.mode=disabled"]
MEASURED = ["metric=fine_tuning_shapes", "checkpoints=all", "confirm=false", *SMALL]


@pytest.fixture(scope="module")
def tuned(tiny_run, tmp_path_factory) -> Path:
    """The tiny run, trained on: checkpoints of steps 1, 2, 4 and 6."""
    more = [f"init={tiny_run}", "callbacks.checkpoints.keep=9", "seed=1", "optimizer.lr=0.01"]
    return train_tiny(tmp_path_factory.mktemp("tuned") / "run", *more)


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    for i, image in enumerate(Shapes("unseen", 4).images(np.arange(4))):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    return folder


def sweep(run: Path, *overrides: str) -> Path:
    return evaluate(composed("evaluate", [f"ckpt={run}", f"cache_dir={run.parent / 'cache'}", *MEASURED, *overrides]))


@pytest.fixture(scope="module")
def results(tuned, subject, tmp_path_factory):
    return sweep(tuned, f"subject={subject}", f"out={tmp_path_factory.mktemp('results')}")


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(open(folder / "results.csv")))


def test_the_base_and_every_checkpoint_are_scored(results):
    rows = rows_of(results)
    names = [row["checkpoint"].rpartition("/")[2].removesuffix(".ckpt") for row in rows]
    assert names == [name for name in ("base", *(f"step_{i:07d}" for i in (2, 4, 6))) for _ in range(2)]
    columns = ("clip_i_shapes", "prompt_accuracy", "nearest_subject_shapes_copies", "prior_drift_shapes_6")
    for row in rows:
        assert all(np.isfinite(float(row[column])) for column in columns)
        assert float(row["prior_drift_shapes_6_low"]) <= float(row["prior_drift_shapes_6_high"])


def test_the_drift_of_the_base_is_0_and_grows_with_training(results):
    drifts = [float(row["prior_drift_shapes_6"]) for row in rows_of(results) if row["steps"] == "2"]
    assert drifts[0] == pytest.approx(0, abs=1e-6)
    assert 0 < drifts[1] < drifts[-1]


def test_the_base_is_the_run_that_training_started_from(tiny_run, results, tmp_path):
    """Its scores are those of the tiny run itself, scored alone."""
    words = [f"cache_dir={tmp_path / 'cache'}", f"out={tmp_path / 'own'}", "metric=prompt_accuracy", *SMALL]
    evaluate(composed("evaluate", [f"ckpt={tiny_run}", "confirm=false", *words]))
    cards = json.loads((results / "results.json").read_text())["cards"]
    [own, *_] = json.loads((tmp_path / "own" / "results.json").read_text())["cards"]
    assert cards[0]["subject"]["weights_sha256"] == own["subject"]["weights_sha256"]
    assert cards[0]["scores"]["prompt_accuracy"] == own["scores"]["prompt_accuracy"]
    assert cards[0]["subject"]["step"] == 0
    assert cards[2]["subject"]["weights_sha256"] != own["subject"]["weights_sha256"]


def test_the_cards_name_the_extractor_and_both_kinds_of_prompts(results):
    card = json.loads((results / "results.json").read_text())["cards"][-1]
    extractor = card["protocol"]["metrics"]["clip_i_shapes"]["extractor"]
    assert extractor["network"] == "shapes_clip of open_clip"
    assert len(extractor["weights"]) == 16
    assert card["protocol"]["reference"]["subject"]["count"] == 4
    prior = card["protocol"]["prior"]
    assert prior["metrics"]["prior_drift_shapes"]["extractor"] == extractor
    assert prior["prompts_sha256"] != card["protocol"]["prompts_sha256"]
    assert card["headlines"] == {
        "prompt_accuracy": True,
        "clip_i_shapes": True,
        "nearest_subject_shapes_copies": False,
        "prior_drift_shapes_6": False,
    }


def test_the_report_begins_with_the_trade_off(results):
    found = json.loads((results / "results.json").read_text())["fine_tuning"]
    assert found[0].startswith(
        "Copying does not rise up to the last checkpoint, step_0000006: no cell copies more than the base"
    )
    page = (results / "report.html").read_text()
    assert page.index("Copying does not rise") < page.index("Best by")
    Image.open(results / "plots/trade_off.png").verify()


def test_finished_cells_of_the_drift_are_kept(tuned, subject, results, monkeypatch):
    from dit.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: pytest.fail("a finished cell was sampled again"))
    before = rows_of(results)
    assert sweep(tuned, f"subject={subject}", f"out={results}") == results
    assert rows_of(results) == before


def test_what_is_missing_is_named(tiny_run, tuned, subject, tmp_path):
    with pytest.raises(ValueError, match=r"run was trained from random weights.* give one with base=RUN"):
        sweep(tiny_run, f"out={tmp_path / 'a'}")
    with pytest.raises(ValueError, match=r"^the model before fine-tuning: .*; say where it is with base=PATH$"):
        sweep(tuned, f"out={tmp_path / 'b'}", f"base={tmp_path / 'gone'}")
    with pytest.raises(ValueError, match=r"^prior drift is measured on runs of dit: give ckpt=RUN"):
        evaluate(composed("evaluate", [f"images={subject}", "metric=fine_tuning_shapes", "wandb.mode=disabled"]))


@pytest.mark.slow
def test_a_run_from_random_weights_is_compared_with_a_given_base(tiny_run, tuned, tmp_path):
    words = [f"base={tiny_run}", "class_prompts=[a large red star on a black background]", "checkpoints=newest"]
    rows = rows_of(sweep(tiny_run, f"out={tmp_path}", *words))
    assert [row["checkpoint"].rpartition("/")[2] for row in rows] == [*2 * ["base"], *2 * ["step_0000006.ckpt"]]
    assert all(float(row["prior_drift_shapes_6"]) == pytest.approx(0, abs=1e-9) for row in rows)  # the same weights


@pytest.mark.slow
def test_an_adapter_at_scale_0_is_the_base(tiny_run, subject, tmp_path):
    """Adapter scale x checkpoint x guidance in one sweep; scale 0 has not drifted at all."""
    more = [f"init={tiny_run}", "adapter=lora", "adapter.rank=2", "callbacks.checkpoints.keep=9", "optimizer.lr=0.05"]
    run = train_tiny(tmp_path / "run", *more)
    rows = rows_of(sweep(run, f"subject={subject}", "adapter_scale=[0,0.5,1]", "steps=2", "guidance.scale=[1,2]"))
    assert len(rows) == 2 + 3 * 3 * 2
    drifts = {}
    for row in rows:
        drifts.setdefault(row["adapter_scale"], []).append(float(row["prior_drift_shapes_6"]))
    assert max(drifts[""] + drifts["0.0"]) < 1e-9
    assert max(drifts["1.0"]) > 1e-6
    report = json.loads(next((run / "evaluations").glob("*/results.json")).read_text())
    assert re.match("Its highest subject fidelity is that with .*adapter scale ", report["fine_tuning"][1])


TAUGHT = ["then_evaluate=fine_tuning_shapes", "then_evaluate.n=4", "then_evaluate.guidance.scale=2"]


@pytest.mark.slow
def test_one_command_trains_and_sweeps(tiny_run, tmp_path, capsys):
    """The whole of it as a user would say it: training from a run, and then its checkpoints beside the base."""
    run = tmp_path / "run"
    places = [f"run_dir={run}", f"cache_dir={tmp_path / 'cache'}", f"init={tiny_run}"]
    done = command("train.py", *TINY, *places, *TAUGHT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    results = Path(lines[-1])
    assert results.parent == run / "evaluations"
    assert lines[-3].startswith("Copying ")
    rows = rows_of(results)
    steps = [row["checkpoint"].rpartition("/")[2] for row in rows]
    assert steps == ["base", *(f"step_{step:07d}.ckpt" for step in (2, 4, 6))]
    assert {row["n"] for row in rows} == {"4"}
    assert {row["sampler"] for row in rows} == {"euler"}
    train(composed("train", [*TINY, *places, *TAUGHT, "resume=auto"]))  # a finished run: the sweep alone
    output = capsys.readouterr()
    assert "is finished and not repeated" in output.err
    assert output.out.splitlines()[-1] == str(results)


@pytest.mark.parametrize(("word", "message"), [
    ("+then_evaluate.samples=3", "then_evaluate.samples: evaluate.py has no such key"),
    ("then_evaluate.n=0", "n=0"),
    ("+then_evaluate.sampler=oiler", "oiler"),
    ("+then_evaluate.sampler={_target_:a.b}", "choose parts by their names"),
])  # fmt: skip
def test_a_wrong_setting_of_the_sweep_ends_the_command_before_training(word, message, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        train_tiny(run, *TAUGHT, word)
    assert not run.exists()


def test_missing_weights_of_a_metric_end_the_command_before_training(tmp_path):
    with pytest.raises(Exception, match=r"vit_small_patch16_224\.dino.* cannot be loaded"):
        train_tiny(tmp_path / "run", "then_evaluate=fine_tuning")
    assert not (tmp_path / "run").exists()
