"""The table over runs: what it shows, marks and writes."""

import csv
import json
import re
import sys

import pytest

from dit.cli.runs import end_sweep, main, show_runs
from dit.evaluation.run_records import read_runs
from dit.evaluation.run_settings import Origin, settings_of, short_keys, text_of
from dit.evaluation.statistics import winner_over_runs
from dit.files import try_lock

from ..conftest import command
from ..evaluation.test_report import Reader

CONFIG = {
    "name": "tiny", "seed": 0, "batch_size": 8, "optimizer": {"_target_": "dit.training.optimizer.adamw", "lr": 4e-3},
    "backbone": {"width": 32}, "data": {"module": {"seed": 0, "batch_size": 8}}, "run_dir": None, "cache_dir": "cache",
    "wandb": {"project": "dit", "mode": "disabled", "group": None}, "optimized_metric": None, "budget_minutes": None,
}  # fmt: skip


def made(folder, loss, right, seed=0, lr=4e-3, words=None, finished=True, **config):
    """A run's directory as train.py leaves it."""
    from omegaconf import OmegaConf

    module = {"seed": seed, "batch_size": config.get("batch_size", 8)}
    own = {**CONFIG, "seed": seed, "optimizer": {**CONFIG["optimizer"], "lr": lr}, "data": {"module": module}, **config}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(own))
    given = (
        {}
        if words == "unknown"
        else {"overrides": [f"optimizer.lr={lr}", f"seed={seed}"] if words is None else words, "choices": {}}
    )
    (folder / "environment.json").write_text(json.dumps({"command": ["train.py"], **given}))
    rows = [f"{step},{loss + 1 / step},{0.01 * step}" for step in (10, 20, 30)]
    (folder / "metrics.csv").write_text("step,val/loss,train/lr\n" + "\n".join(rows) + "\n")
    if finished:
        summary = {"steps": 30, "train_seconds": 2.0, "val/loss": loss, "prompt_accuracy": right}
        headlines = {"val/loss": False, "prompt_accuracy": True}
        (folder / "summary.json").write_text(json.dumps({"overrides": [], "higher_is_better": headlines, **summary}))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two learning rates with three seeds each, the second clearly better; one run of each other state."""
    for seed in range(3):
        made(tmp_path / str(seed), 0.5 + 0.01 * seed, 0.80 + 0.01 * seed, seed, lr=1e-3)
        made(tmp_path / str(seed + 3), 0.2 + 0.01 * seed, 0.95 + 0.01 * seed, seed)
    made(tmp_path / "10", 0.3, 0, 0, lr=2e-3, finished=False)
    (made(tmp_path / "11", 0.3, 0, 1, lr=2e-3, finished=False) / "error.txt").write_text("ValueError: out of paint\n")
    made(tmp_path / "12", 0.3, 0, 2, lr=2e-3, finished=False)
    return tmp_path


def test_seeds_are_folded_into_mean_and_interval_and_the_best_is_marked(sweep, capsys):
    with try_lock(sweep / "12" / ".lock"):
        found, _ = show_runs(sweep)
    assert [run.state for run in found.runs] == ["finished"] * 6 + ["interrupted", "failed", "running"]
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["lr"].split() == ["lr", "runs", "prompt_accuracy", "val/loss", "train_seconds"]
    # Student's t with two degrees of freedom: 4.303 * 0.01 / sqrt(3) = 0.0248
    assert re.search(r"1e-3 +3 +0\.810 \[0\.785, 0\.835\] +0\.510 \[0\.485, 0\.535\] +2$", lines["1e-3"])
    assert re.search(r"4e-3 +3 +0\.960 \[0\.935, 0\.985\] ★ +0\.210 \[0\.185, 0\.235\] ★ +2$", lines["4e-3"])
    assert re.search(r"2e-3 +0, 1 running, 1 interrupted, 1 failed +- +- +-$", lines["2e-3"])
    assert (
        "Best by prompt_accuracy: lr=4e-3, 0.960 [0.935, 0.985] (3 runs). Not significantly different: 0 of 1 others."
        in text
    )
    assert f"failed at step 30: {sweep / '11'} (ValueError: out of paint)" in text
    assert text.splitlines()[-1] == str(sweep / "overview")


def test_what_is_written(sweep):
    show_runs(sweep)
    out = sweep / "overview"
    single = list(csv.DictReader((out / "runs.csv").open()))
    assert [(row["lr"], row["seed"], row["state"]) for row in single[:2]] == [
        ("1e-3", "0", "finished"),
        ("1e-3", "1", "finished"),
    ]
    assert len(single) == 9
    assert single[8]["run"] == str(sweep / "12")
    folded = list(csv.DictReader((out / "settings.csv").open()))
    assert [(row["lr"], row["runs"], row["all_runs"]) for row in folded] == [
        ("1e-3", "3", "3"),
        ("4e-3", "3", "3"),
        ("2e-3", "0", "3"),
    ]
    assert float(folded[1]["prompt_accuracy_high"]) == pytest.approx(0.96 + 4.3027 * 0.01 / 3**0.5, rel=1e-4)
    tex = (out / "runs.tex").read_text()
    assert r"4e-3 & 3 & $\mathbf{0.960_{-0.025}^{+0.025}}$" in tex
    assert {file.name for file in (out / "plots").iterdir()} >= {"val_loss.pdf", "val_loss.svg", "train_lr.png"}


def test_the_page_is_one_file_with_its_curves(sweep):
    _, plots = show_runs(sweep)
    page = Reader((sweep / "overview" / "runs.html").read_text())
    assert sorted(plots) == ["train/lr", "val/loss"]
    assert len(page.addresses) == 2
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    settings, runs = page.tables
    assert [row[0] for row in settings] == ["lr", "1e-3", "4e-3", "2e-3"]
    assert len(runs) == 10


def test_a_logged_sweep_logs_its_tables_curves_and_page(sweep, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for file in sweep.glob("*/config.yaml"):
        file.write_text(file.read_text().replace("mode: disabled", "mode: auto"))
    end_sweep(sweep)
    (media,) = sweep.glob("wandb/offline-run-*/files/media")
    tables = [json.loads(file.read_text()) for file in media.glob("table/*.json")]
    settings, runs = sorted(tables, key=lambda table: len(table["data"]))
    assert [row[settings["columns"].index("lr")] for row in settings["data"]] == ["1e-3", "4e-3", "2e-3"]
    assert "prompt_accuracy_low" in settings["columns"]
    assert len(runs["data"]) == 9
    assert len([*media.glob("images/**/*.png")]) == 2
    assert len([*media.glob("html/*.html")]) == 1


def test_settings_are_what_was_overridden_and_differs():
    def origin(lr=4e-3, seed=0, words=(), choices=None, **config):
        own = {**CONFIG, "seed": seed, "optimizer": {"lr": lr}, "data": {"module": {"seed": seed}}, **config}
        return Origin(own, words, choices or {})

    plain, other = settings_of([origin(words=["batch_size=8"]), origin(1e-3, 1, ["batch_size=8", "optimizer.lr=1e-3"])])
    assert (plain.name, plain.seed) == ("lr=4e-3", 0)
    assert (other.name, other.seed) == ("lr=1e-3", 1)
    groups = [
        origin(choices={"backbone": "small"}),
        origin(words=["backbone=big"], choices={"backbone": "big"}, backbone={"width": 64}),
    ]
    assert [setting.name for setting in settings_of(groups)] == ["backbone=small", "backbone=big"]
    groups[0] = origin()
    assert [setting.name for setting in settings_of(groups)] == ["backbone=unknown", "backbone=big"]
    unknown = [origin(), origin(batch_size=16, data={"module": {"seed": 0, "batch_size": 16}}, run_dir="elsewhere")]
    assert [setting.name for setting in settings_of(unknown)] == ["batch_size=8", "batch_size=16"]
    hidden = [origin(words=["seed=0"]), origin(words=["seed=1"], seed=1, backbone={"width": 48})]
    assert [setting.name for setting in settings_of(hidden)] == ["width=32", "width=48"], "no seeds of one setting"
    fitted = [origin(budget_minutes=8.0, lr=lr, seed=seed) for seed, lr in enumerate((1e-3, 2e-3))]
    assert [setting.name for setting in settings_of(fitted)] == ["", ""], "a budget chooses the learning rate"


def test_overrides_that_cannot_change_results_are_no_settings():
    words = ["+trainer.max_time=1", "data.module.cache_dir=x", "wandb.mode=offline", "seed=1", "hydra/launcher=joblib"]
    assert Origin(CONFIG, words).keys == ["trainer.max_time"]


def test_names_of_keys_and_values():
    assert short_keys(["optimizer.lr", "backbone.width", "other.width"]) == {
        "optimizer.lr": "lr", "backbone.width": "backbone.width", "other.width": "other.width",
    }  # fmt: skip
    values = [4e-3, 1.5e-4, 0.05, 3.0, True, None, [1, 0.001], "heun", 100000]
    assert [text_of(value) for value in values] == [
        "4e-3",
        "1.5e-4",
        "0.05",
        "3",
        "true",
        "null",
        "[1, 1e-3]",
        "heun",
        "100000",
    ]


def test_one_run_of_each_setting_says_nothing_of_significance(tmp_path, capsys):
    for place, lr in enumerate((1e-3, 2e-3)):
        made(tmp_path / str(place), 0.5 - place / 10, 0.5, lr=lr)
    found, _ = show_runs(tmp_path, ["val/loss"])
    assert found.bests[0].tied is None
    text = capsys.readouterr().out
    assert "0.4 ★" in text
    assert "≈" not in text
    assert "One run of each setting" in text


def test_a_diverged_run_is_not_the_best_and_not_left_out(tmp_path):
    for seed in range(2):
        made(tmp_path / f"bad{seed}", 0.1, 0.5, seed, lr=1e-1)
        made(tmp_path / f"good{seed}", 0.5 + seed / 100, 0.5, seed)
    summary = tmp_path / "bad1" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"val/loss": None}))
    found, _ = show_runs(tmp_path, ["val/loss"])
    assert [row["lr"] for row in (best.row for best in found.bests)] == [], "one setting has a mean"
    assert "nan" in found.text()


def test_a_run_that_cannot_be_read_is_left_out_with_a_warning(tmp_path, capsys):
    for place in range(2):
        made(tmp_path / str(place), 0.5, 0.5, place)
    (tmp_path / "1" / "metrics.csv").write_text("a,b\n1,2\n")
    found, _ = show_runs(tmp_path)
    assert [run.path.name for run in found.runs] == ["0"]
    assert f"warning: {tmp_path / '1'} is left out: " in capsys.readouterr().err


def test_a_sweep_has_the_runs_of_others_that_it_continued(tmp_path):
    earlier = made(tmp_path / "earlier" / "0", 0.5, 0.5)
    made(tmp_path / "later" / "1", 0.5, 0.5, 1)
    (tmp_path / "later" / "0.run").write_text(f"{earlier}\n")
    assert sorted(run.path for run in read_runs(tmp_path / "later")) == [earlier, tmp_path / "later" / "1"]
    assert len(read_runs(tmp_path)) == 2, "each run once"


def test_the_same_seed_twice_counts_once(tmp_path):
    for place in range(2):
        made(tmp_path / str(place), 0.5 + place, 0.5)
    found, _ = show_runs(tmp_path)
    assert found.rows[0].states == "1"
    assert found.folded[0]["val/loss"] == 1.5
    assert "repeat the seed of another" in found.text()


def test_welchs_test_over_runs():
    best, tied = winner_over_runs([[0.5, 0.51, 0.52], [0.2, 0.21, 0.22], [0.21, 0.22, 0.23]], higher_is_better=False)
    assert (best, tied) == (1, [1, 2])
    assert winner_over_runs([[0.5], [0.2]], False) == (1, None)
    assert winner_over_runs([[0.5], [0.2, 0.21]], False) == (1, [0, 1]), "a single run differs significantly from none"


@pytest.mark.parametrize(("words", "parts"), [
    (["nowhere"], ["nowhere: no such folder"]), (["."], ["holds no runs"]),
    (["sweep", "--metric", "val/los"], ["--metric val/los", "'val/loss'"]),
])  # fmt: skip
def test_what_cannot_be_shown_ends_in_one_line(words, parts, tmp_path, monkeypatch, capsys):
    made(tmp_path / "elsewhere" / "sweep" / "0", 0.5, 0.5)
    (tmp_path / "empty").mkdir()
    places = {"nowhere": tmp_path / "nowhere", ".": tmp_path / "empty", "sweep": tmp_path / "elsewhere"}
    monkeypatch.setattr(sys, "argv", ["runs", *(str(places.get(word, word)) for word in words)])
    with pytest.raises(SystemExit):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts)


def test_help_is_quick():
    output = command("-X", "importtime", "-m", "dit.cli.runs", "--help")
    assert "--metric" in output.stdout
    assert " torch" not in output.stderr
    assert " matplotlib" not in output.stderr


def test_a_run_keeps_the_overrides_that_started_it(tmp_path, monkeypatch):
    from dit.training import run_directory

    def given(*words):
        monkeypatch.setattr(run_directory, "given", lambda: {"overrides": list(words), "choices": {}})

    given("seed=3", "+trainer.max_time=00:00:01:00")
    run_directory.describe(tmp_path, {"seed": 3})
    given("resume=auto", "trainer.max_time=null")
    run_directory.describe(tmp_path, {"seed": 3}, {"step": 2})
    assert run_directory.overrides_of(tmp_path) == ["seed=3", "resume=auto", "trainer.max_time=null"]
