"""A step cache as a part of a sweep's recipe: its cells, cards, costs and plots."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from dit.cli.evaluate import evaluate
from dit.cli.generate import generate

from ..conftest import command, composed, only_line_of, train_tiny

SMALL = ["n=6", "references=32", "guidance.scale=[2]", "shown=2", "wandb.mode=disabled", "confirm=false"]
THRESHOLDS = ["cache=first_block", "cache.threshold=[0,0.2,1e9]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("deep") / "run", "backbone.depth=3")


def sweep(run: Path, *overrides: str) -> Path:
    words = [f"ckpt={run}", f"cache_dir={run.parent / 'cache'}", *SMALL, "sampler=euler", "steps=[4]", *overrides]
    return evaluate(composed("evaluate", words))


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """Cells without a cache, then cells with one, which join them."""
    out = tmp_path_factory.mktemp("out") / "sweep"
    sweep(run, f"out={out}")
    return sweep(run, f"out={out}", *THRESHOLDS)


def cards_of(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["cards"]


def test_a_threshold_is_a_part_of_the_recipe_and_the_card_has_it(folder):
    cards = cards_of(folder)
    assert [card["subject"]["cache"] for card in cards] == [0.0, 0.2, 1e9]
    assert [card["subject"]["recipe"]["cache"] for card in cards] == [
        {
            "_target_": "dit.layers.step_cache.FirstBlockCache",
            "threshold": threshold,
            "warmup_calls": 1,
            "most_reuses": None,
        }
        for threshold in (0.0, 0.2, 1e9)
    ]
    assert len(list((folder / "cells").glob("euler_*.json"))) == 4
    assert len(list((folder / "cells").glob("euler_4_2_0.2_32x32_*.json"))) == 1


def test_costs_count_the_blocks_and_add_up(folder):
    rows = list(csv.DictReader((folder / "results.csv").open()))
    for row in rows:
        computed, saved = float(row["blocks_computed"]), float(row["blocks_saved"])
        assert float(row["nfe"]) == 8
        assert computed + saved == 8 * 3
        assert float(row["effective_nfe"]) == pytest.approx(computed / 3)
        assert float(row["seconds"]) > 0
    assert [float(row["blocks_saved"]) for row in (rows[0], rows[2])] == [0, 2 * 3 * 2]
    assert 0 < float(rows[1]["blocks_saved"]) <= 12


def test_threshold_zero_scores_as_without_a_cache(run, folder):
    [plain] = [json.loads(f.read_text()) for f in (folder / "cells").glob("euler_4_2_32x32_*.json")]
    assert plain["scores"] == cards_of(folder)[0]["scores"]
    assert set(plain["cost"]) - {"joules_rapl"} == {"nfe", "seconds", "images_per_second", "total_seconds"}
    assert "cache" not in plain["subject"]
    strips = [next((folder / "cells").glob(f"euler_4_2_{part}32x32_*.png")) for part in ("", "0_")]
    assert strips[0].read_bytes() == strips[1].read_bytes()


def test_the_report_shows_quality_against_speed_and_the_threshold(folder):
    plots = {file.name for file in (folder / "plots").glob("*.png")}
    assert {"prompt_accuracy_against_effective_nfe.png", "prompt_accuracy_against_seconds.png"} <= plots
    page = (folder / "report.html").read_text()
    for text in ("cache 0.2", "effective NFE", "blocks saved"):
        assert text in page


def test_cells_with_and_without_a_cache_have_one_folder(run):
    assert sweep(run) == sweep(run, *THRESHOLDS[:1])


def test_generate_takes_a_cache(run, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    made, original = [], Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: made.append(original(*a, **k)) or made[-1])

    def pixels(name: str, *words: str) -> bytes:
        given = [f"ckpt={run}", f"out={tmp_path / name}", "prompts=['a large red star']", "guidance.scale=3", *words]
        return Image.open(generate(composed("generate", given)) / "prompt_0_seed_0.png").tobytes()

    plain = pixels("plain")
    assert pixels("zero", "cache=first_block", "cache.threshold=0") == plain
    pixels("large", "cache=first_block", "cache.threshold=1e9", "cache.warmup_calls=6")
    assert [one.cached and one.cached.saved for one in made] == [None, 0, 2 * 2 * (16 - 6)]


@pytest.mark.parametrize(("words", "fault"), [
    (["cache=first_block", "cache.threshold=-1"], "cache.threshold=-1.0 must be 0, for no reuse, or more"),
    (["cache=first_block", "cache.warmup_calls=0"], "cache.warmup_calls"),
    (["cache=first_block", "compile=true"], "cache and compile=true"),
], ids=lambda value: value[-1] if isinstance(value, list) else "")  # fmt: skip
def test_a_cache_that_cannot_work_is_refused_before_anything_is_sampled(run, words, fault, monkeypatch):
    from omegaconf import OmegaConf

    from dit.config_check import check_config
    from dit.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: pytest.fail("sampled before it was refused"))
    cfg = composed("evaluate", [f"ckpt={run}", *SMALL, *words])

    def checked_and_scored() -> None:
        check_config("evaluate", OmegaConf.to_container(cfg, resolve=True), trusted=True)
        evaluate(cfg)

    with pytest.raises(Exception, match=fault):
        checked_and_scored()


def test_a_cache_is_for_runs_only(tmp_path):
    words = [f"images={tmp_path}", "cache=first_block", "metric=[prompt_accuracy]"]
    assert "cache is a step cache for runs of dit: give ckpt=RUN" in only_line_of(command("evaluate.py", *words))
