"""Evaluations of several runs: their names, and one row for runs that differ only in the seed."""

import csv
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from dit.evaluation.folding import Folded, fold, folded_models
from dit.evaluation.model_scores import ModelScores
from dit.evaluation.page import Section, all_cells, page
from dit.evaluation.report import write_report
from dit.evaluation.results import Results, checkpoint_names
from dit.evaluation.run_settings import Setting
from dit.evaluation.subject import Model

from ..conftest import composed, train_tiny
from .test_report import PROMPT, N, Reader, card_of

SHARES = {("1e-3", 0): 0.5, ("1e-3", 1): 0.55, ("1e-3", 2): 0.6, ("4e-3", 0): 0.9, ("4e-3", 1): 0.94, ("4e-3", 2): 0.95}


def results_of(shares, steps=(4,), step="step_0000007"):
    cards, parts, settings = [], [], []
    for (lr, seed), share in shares.items():
        for number in steps:
            subject = {
                "checkpoint": f"{len(cards)}/{step}.ckpt",
                "step": 7,
                "weights": "ema",
                "sampler": "euler",
                "steps": number,
            }
            card, part = card_of(share - 0.1 * (number < 4), subject, nfe=float(number))
            cards.append(card)
            parts.append(part)
            settings.append(Setting({"lr": lr}, seed))
    strips = [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)] * len(cards)
    return Results("tiny: 6 runs", cards, parts, strips, [PROMPT] * N, {"accuracy": True}, settings=settings)


def test_checkpoints_are_named_by_settings_seeds_and_steps():
    settings = [Setting({"lr": "1e-3"}, 0), Setting({"lr": "1e-3"}, 1), None]
    labels = ["0/step_0000007.ckpt", "1/step_0000007.ckpt", "0/base"]
    assert checkpoint_names(labels, settings) == ["lr=1e-3, seed=0", "lr=1e-3, seed=1", "base"]
    assert checkpoint_names(["0/step_0000007.ckpt", "0/step_0000100.ckpt"], settings[:1] * 2) == [
        "lr=1e-3, step 7", "lr=1e-3, step 100",
    ]  # fmt: skip


def test_runs_that_differ_in_the_seed_are_one_row():
    results = results_of(SHARES, steps=(2, 4))
    folded = fold(results)
    assert isinstance(folded, Folded)
    names = [folded.name_of(row) for row in folded.named]
    assert names == ["lr=1e-3, 2 steps", "lr=1e-3, 4 steps", "lr=4e-3, 2 steps", "lr=4e-3, 4 steps"]
    scores = [card.scores["accuracy"] for card in results.cards[1:6:2]]
    card = folded.cards[1]
    mean, spread = torch.tensor(scores).mean().item(), torch.tensor(scores).std().item()
    assert card.scores["accuracy"] == pytest.approx(mean)
    half = 4.30265 * spread / 3**0.5  # Student's t with two degrees of freedom
    assert card.intervals["accuracy"] == pytest.approx((mean - half, mean + half), abs=1e-5)
    assert card.subject["runs"] == 3
    assert folded.scores[0].share, "a share stays a share, though its parts are means over runs"


def test_settings_are_compared_over_runs_and_samplers_picture_by_picture():
    shares = {("1e-3", 0): 0.5, ("1e-3", 1): 0.8, ("4e-3", 0): 0.9, ("4e-3", 1): 0.94}
    few = fold(results_of(shares, steps=(2, 4)))
    best = few.best(few.scores[0])
    assert few.name_of(best.row) == "lr=4e-3, 4 steps"
    tied = [few.name_of(row) for row in best.tied]
    assert "lr=4e-3, 2 steps" not in tied, "a tenth of the pictures, the same in all runs, is significant"
    assert "lr=1e-3, 4 steps" in tied, "two runs of each setting say little"
    many = fold(
        results_of({(lr, s): share + 0.01 * s for lr, share in (("1e-3", 0.5), ("4e-3", 0.8)) for s in range(5)})
    )
    assert many.best(many.scores[0]).tied == []


def test_a_setting_of_one_run_keeps_the_interval_of_its_pictures():
    results = results_of({key: share for key, share in SHARES.items() if key != ("4e-3", 1) and key != ("4e-3", 2)})
    folded = fold(results)
    assert folded.cards[1].intervals == results.cards[3].intervals
    assert [card.subject["runs"] for card in folded.cards] == [3, 1]


def test_a_failed_cell_does_not_count():
    results = results_of(SHARES)
    cards = [replace(results.cards[0], scores={}, intervals={}, failed="9 pictures are not finite"), *results.cards[1:]]
    folded = fold(replace(results, cards=cards))
    assert [card.subject["runs"] for card in folded.cards] == [2, 3]
    assert folded.cards[0].failed is None


def test_without_repeated_settings_nothing_is_folded():
    results = results_of({("1e-3", 0): 0.5, ("4e-3", 1): 0.9})
    assert fold(results) is results
    alone = replace(results, settings=[])
    assert fold(alone) is alone
    assert [results.name_of(row) for row in results.named] == ["lr=1e-3, seed=0", "lr=4e-3, seed=1"]


def test_the_report_has_folded_rows_and_the_csv_single_ones(tmp_path):
    results = results_of(SHARES)
    write_report(tmp_path, [results])
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["setting"], row["training_seed"]) for row in rows[:4]] == [
        ("lr=1e-3", "0"), ("lr=1e-3", "1"), ("lr=1e-3", "2"), ("lr=4e-3", "0"),
    ]  # fmt: skip
    assert len(json.loads((tmp_path / "results.json").read_text())["cards"]) == 6
    tex = (tmp_path / "results.tex").read_text()
    assert r"checkpoint & runs & accuracy" in tex
    assert tex.count("lr=") == 2
    assert "different settings by Welch's test over runs" in " ".join(tex.replace("%", "").split())
    table = Reader((tmp_path / "report.html").read_text()).tables[-1]
    assert [row[:2] for row in table] == [["checkpoint", "runs"], ["lr=1e-3", "3"], ["lr=4e-3", "3"]]


def scored_model(bits, group, setting):
    scores = {"bits_per_dim": bits, "bits_per_dim_error": 0.1}
    name = group if setting is None else f"{group}, seed={setting.seed}"
    return {"model": name, "group": group, "setting": setting, "scores": scores, "made_with": {"seed": 0}}


def test_scores_of_models_are_folded_over_seeds(tmp_path):
    models = [
        scored_model(bits, f"lr={lr}", Setting({"lr": lr}, seed))
        for lr, seed, bits in (("1e-3", 0, 3.0), ("1e-3", 1, 3.4), ("4e-3", 0, 2.5))
    ]
    results = Results("tiny: 3 runs", [], [], [], [], {}, models=models)
    first, second = folded_models(results)
    low, high = first.pop("intervals")["bits_per_dim"]
    assert first == {"model": "lr=1e-3", "runs": 2, "bits_per_dim": pytest.approx(3.2)}
    assert (low + high, high - low) == pytest.approx((6.4, 2 * 12.7062 * 0.2), abs=1e-4)  # Student's t, one degree
    assert second == {"model": "lr=4e-3", "runs": 1, "bits_per_dim": 2.5, "bits_per_dim_error": 0.1, "intervals": {}}
    write_report(tmp_path, [results])
    for name in ("results.csv", "models.csv"):
        rows = list(csv.DictReader((tmp_path / name).open()))
        assert [(row["setting"], row["training_seed"]) for row in rows] == [
            ("lr=1e-3", "0"), ("lr=1e-3", "1"), ("lr=4e-3", "0"),
        ]  # fmt: skip
    tex = (tmp_path / "models.tex").read_text()
    assert r"lr=1e-3 & 2 & $3.2_{-2.5}^{+2.5}$ &  \\" in tex
    assert r"lr=4e-3 & 1 & $2.5$ & $0.1$ \\" in tex
    assert "interval of the mean over runs" in tex
    assert "standard error over the pictures" in tex
    (table,) = Reader((tmp_path / "report.html").read_text()).tables
    assert [row[:2] for row in table] == [["model", "runs"], ["lr=1e-3", "2"], ["lr=4e-3", "1"]]
    two_runs = replace(results, models=models[1:])
    assert folded_models(two_runs) == two_runs.model_rows, "runs of different settings stay as they are"
    write_report(tmp_path, [two_runs])
    assert "Small numbers" not in (tmp_path / "models.tex").read_text(), "nothing is folded: there are no intervals"


def test_single_runs_of_a_model_score_are_in_a_file_of_their_own_beside_cells(tmp_path):
    results = replace(results_of({("1e-3", 0): 0.5}), models=[scored_model(3.0, "lr=1e-3", Setting({"lr": "1e-3"}, 0))])
    write_report(tmp_path, [results])
    (row,) = csv.DictReader((tmp_path / "models.csv").open())
    assert (row["setting"], row["training_seed"], row["bits_per_dim"]) == ("lr=1e-3", "0", "3.0")
    assert "accuracy" in (tmp_path / "results.csv").read_text()


def test_a_model_that_is_given_twice_is_one_row(tmp_path, capsys):
    """The same checkpoint by two paths, RUN and RUN/checkpoints/step_7.ckpt, is no second run."""
    names = ["lr=1e-3, seed=0", "lr=1e-3, seed=0", "copy", "lr=1e-3, seed=1"]
    content = ["first", "first", "first", "second"]
    models = [Model(name, "lr=1e-3", None, {"weights_sha256": c}) for name, c in zip(names, content, strict=True)]
    subject = SimpleNamespace(models=lambda: iter(models), sizes=())
    scores = {"bits": lambda pipeline, real, seed, batch_size: {"bits": 3.0}}
    real = {"val": SimpleNamespace(fingerprint="pictures")}
    made = ModelScores(subject, scores, OmegaConf.create({"bits": {}}), real, seed=0)
    assert [row["model"] for row in made.rows(tmp_path, 4)] == ["lr=1e-3, seed=0", "lr=1e-3, seed=1"]
    assert capsys.readouterr().err == "warning: copy is the same model as lr=1e-3, seed=0: left out\n"


def test_a_section_without_single_results_is_its_own():
    results = results_of(SHARES)
    assert "lr=1e-3, seed=0" in page([Section(results, [results.best(results.scores[0])], {}, {})])
    assert all_cells(results, [])["labels"] == 1


@pytest.mark.slow
def test_two_seeds_at_the_command_line(tiny_run, tmp_path, capsys):
    from dit.cli.evaluate import evaluate

    other = train_tiny(tmp_path / "other", "seed=1")
    slow = [train_tiny(tmp_path / f"slow{seed}", "optimizer.lr=1e-5", f"seed={seed}") for seed in range(2)]
    words = [
        f"ckpt=[{tiny_run},{other},{slow[0]},{slow[1]}]",
        "n=6",
        "sampler=[euler]",
        "steps=[1,2]",
        "guidance.scale=[1]",
        "shown=1",
    ]
    words += ["metric=[clip_shapes,bits_per_dim]", "metric.bits_per_dim.steps=2", "metric.bits_per_dim.count=2"]
    words += ["references=16", "wandb.mode=disabled", f"out={tmp_path / 'out'}"]
    folder = evaluate(composed("evaluate", [*words, f"cache_dir={tiny_run.parent / 'cache'}"]))
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["setting"], row["training_seed"], row["steps"]) for row in rows] == [
        (setting, seed, steps)
        for setting, seed in (("lr=4e-3", "0"), ("lr=4e-3", "1"), ("lr=1e-5", "0"), ("lr=1e-5", "1"))
        for steps in "12"
    ]
    content = json.loads((folder / "results.json").read_text())
    assert content["title"] == "shapes_pixels: 4 runs"
    tex = (folder / "results.tex").read_text()
    found = [line.split(" & ")[:3] for line in tex.splitlines() if line.startswith("lr=")]
    assert found == [["lr=4e-3", "1", "2"], ["lr=4e-3", "2", "2"], ["lr=1e-5", "1", "2"], ["lr=1e-5", "2", "2"]]
    assert [row["model"] for row in content["models"]] == [
        f"{setting}, seed={seed}, ema" for setting in ("lr=4e-3", "lr=1e-5") for seed in range(2)
    ]
    bits = [row["bits_per_dim"] for row in content["models"]]
    rows = (folder / "models.tex").read_text().split(r"\midrule")[1].strip().splitlines()
    for row, name, runs in zip(rows[:2], ("lr=4e-3", "lr=1e-5"), (bits[:2], bits[2:]), strict=True):
        number = re.match(rf"{name}, ema & 2 & \$([-0-9.]+)_", row)[1]
        places = len(number.partition(".")[2])
        assert float(number) == pytest.approx(sum(runs) / 2, abs=0.5001 * 10**-places)
    winner = content["again"]
    files = [file for file in (folder / "cells").glob("*.json") if not file.name.startswith("model_")]
    again = [json.loads(file.read_text()) for file in files]
    again = [card["scores"]["clip_shapes"] for card in again if "again" in card["subject"]]
    assert winner["scores"]["clip_shapes"] == pytest.approx(sum(again) / len(again))
    assert len(again) == winner["subject"]["runs"] == 2
