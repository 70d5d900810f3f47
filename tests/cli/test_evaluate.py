"""The sweep at the command line, and all files that it writes."""

import copy
import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dit.cli.compare import compare
from dit.cli.evaluate import evaluate
from dit.cli.generate import generate

from ..conftest import command, composed

SMALL = ["n=6", "references=32", "steps=[1,2]", "guidance.scale=[1,2]", "shown=2", "wandb.mode=disabled"]


def sweep(run: Path, *overrides: str) -> Path:
    """The features of real pictures are cached next to the run, for all tests."""
    return evaluate(composed("evaluate", [f"ckpt={run}", f"cache_dir={run.parent / 'cache'}", *SMALL, *overrides]))


@pytest.fixture(scope="module")
def results(tiny_run, tmp_path_factory):
    price = ["cost.price_per_hour=7.2", "cost.currency=EUR"]
    return sweep(tiny_run, f"out={tmp_path_factory.mktemp('results')}", *price)


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(open(folder / "results.csv")))


def timeless(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    timed = ("second", "thousand", "joules")
    return [{k: v for k, v in row.items() if not any(word in k for word in timed)} for row in rows]


def test_the_table_has_every_cell_and_column(results):
    rows = rows_of(results)
    assert {(r["sampler"], r["steps"], r["guidance"]) for r in rows} == {
        (s, n, g) for s in ("euler", "heun", "dpmpp_2m") for n in ("1", "2") for g in ("1.0", "2.0")
    }
    labels = ["checkpoint", "weights", "sampler", "grid", "steps", "guidance", "size"]
    assert list(rows[0])[:10] == [*labels, "nfe", "seconds", "images_per_second"]
    for metric in ("prompt_accuracy", "accuracy_colour", "accuracy_shape", "fd_shapes_6", "clip_shapes"):
        assert all(torch.tensor(float(r[metric])).isfinite() for r in rows)
    for row in rows:
        seconds = 1000 * float(row["seconds"])
        assert float(row["seconds_per_thousand"]) == pytest.approx(seconds)
        assert float(row["EUR_per_thousand"]) == pytest.approx(seconds * 7.2 / 3600)
    assert "EUR / 1000 pictures" in (results / "report.html").read_text()
    nfe = {(r["sampler"], r["steps"], r["guidance"]): float(r["nfe"]) for r in rows}
    assert nfe["euler", "2", "1.0"] == 2
    assert nfe["euler", "2", "2.0"] == 4
    assert nfe["heun", "2", "2.0"] == 6


def test_equal_samplers_score_equally(results):
    """With one step every sampler is the same jump; so equal noise and prompts must give equal scores."""
    one_step = [r for r in rows_of(results) if (r["steps"], r["guidance"]) == ("1", "2.0")]
    assert len({(r["prompt_accuracy"], r["fd_shapes_6"], r["clip_shapes"]) for r in one_step}) == 1


def test_files_plots_and_pictures(results):
    output = json.loads((results / "results.json").read_text())
    assert len(output["cards"]) == 12
    assert {card["protocol"]["n"] for card in output["cards"]} == {6}
    assert set(output["floors"]) == {"real", "autoencoder"}
    assert output["floors"]["real"]["scores"]["prompt_accuracy"] == 1
    assert output["headlines"] == {"prompt_accuracy": True, "fd_shapes_6": False, "clip_shapes": True}
    plots = {p.name for p in (results / "plots").iterdir()}
    assert {
        "prompt_accuracy_against_steps.png",
        "prompt_accuracy_against_nfe.png",
        "fd_shapes_6_against_nfe.png",
    } <= plots
    grids = sorted((results / "samples").iterdir())
    assert [g.name for g in grids] == ["prompt_0.png", "prompt_1.png"]
    for picture in [*grids, *(results / "plots").glob("*.png")]:
        Image.open(picture).verify()


def test_the_report_is_one_file(results):
    page = (results / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page.split("<pre>")[0].replace("data:image", "")
    assert page.count("data:image/png;base64,") == len(list((results / "plots").glob("*.png"))) + 2
    assert "viewport" in page


def test_an_interrupted_sweep_continues_with_the_missing_cells(tiny_run, results, tmp_path, monkeypatch):
    folder = tmp_path / "again"
    shutil.copytree(results, folder)
    before = rows_of(folder)
    lost = sorted((folder / "cells").glob("heun_2_*.json"))[0]
    lost.unlink()
    calls = []
    from dit.pipeline import Pipeline

    original = Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))
    sweep(tiny_run, f"out={folder}")
    assert len(calls) == 1
    assert timeless(rows_of(folder)) == timeless(before)


def test_batch_size_changes_no_score(tiny_run, results, tmp_path):
    other = rows_of(sweep(tiny_run, f"out={tmp_path}", "batch_size=4", "sampler=euler"))
    ours = [r for r in rows_of(results) if r["sampler"] == "euler"]
    for a, b in zip(ours, other, strict=True):
        assert a["prompt_accuracy"] == b["prompt_accuracy"]
        assert float(a["fd_shapes_6"]) == pytest.approx(float(b["fd_shapes_6"]), rel=1e-3)


def test_scores_of_another_protocol_are_not_mixed_in(tiny_run, results):
    with pytest.raises(ValueError, match=r"differs in .*seed"):
        sweep(tiny_run, f"out={results}", "seed=5")


def test_the_model_itself_is_scored_once(tiny_run, tmp_path):
    words = ["metric=[prompt_accuracy,bits_per_dim]", "metric.bits_per_dim.count=4", "metric.bits_per_dim.steps=4"]
    folder = sweep(tiny_run, f"out={tmp_path}", "sampler=euler", *words)
    output = json.loads((folder / "results.json").read_text())
    assert torch.tensor(output["models"][0]["bits_per_dim"]).isfinite()
    assert "bits_per_dim" not in output["cards"][0]["scores"]
    assert "bits per dim" in (folder / "report.html").read_text()


BITS = ["metric=[bits_per_dim]", "metric.bits_per_dim.steps=2"]


def bits_of(folder: Path) -> float:
    return json.loads((folder / "results.json").read_text())["models"][0]["bits_per_dim"]


def test_a_model_can_be_scored_without_pictures(tiny_run, tmp_path, monkeypatch):
    from dit.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: pytest.fail("sampled without a metric of pictures"))
    folder = sweep(tiny_run, *BITS, "metric.bits_per_dim.count=4", "weights=[ema,raw]")
    output = json.loads((folder / "results.json").read_text())
    assert output["cards"] == []
    assert output["floors"] == {}
    assert [row["model"].rpartition(", ")[2] for row in output["models"]] == ["ema", "raw"]
    rows = rows_of(folder)
    assert [*rows[0]] == ["model", "bits_per_dim", "bits_per_dim_error"]
    assert float(rows[0]["bits_per_dim"]) == output["models"][0]["bits_per_dim"] != float(rows[1]["bits_per_dim"])
    page = (folder / "report.html").read_text()
    assert "bits per dim" in page
    assert "No cell has scores" not in page
    assert "weights_sha256" in page
    with pytest.raises(ValueError, match=r"bits_per_dim is a score of models: give a run, ckpt=RUN"):
        evaluate(composed("evaluate", [f"images={folder}/../../samples", *BITS, "wandb.mode=disabled"]))


def test_a_model_score_is_kept_by_the_settings_of_its_metric(tiny_run, tmp_path):
    """In one folder: 6 pictures after 4 are 6 pictures."""
    few = bits_of(sweep(tiny_run, f"out={tmp_path / 'a'}", *BITS, "metric.bits_per_dim.count=4"))
    many = bits_of(sweep(tiny_run, f"out={tmp_path / 'a'}", *BITS, "metric.bits_per_dim.count=6"))
    fresh = bits_of(sweep(tiny_run, f"out={tmp_path / 'b'}", *BITS, "metric.bits_per_dim.count=6"))
    assert many == fresh != few
    assert len(list((tmp_path / "a" / "cells").glob("model_*.json"))) == 2


def only_card(folder: Path) -> dict:
    [card] = json.loads((folder / "results.json").read_text())["cards"]
    return card


ONE_CELL = ["sampler=euler", "steps=2", "guidance.scale=2", "metric=[clip_shapes]", "confirm=false"]


def changed_copy(run: Path, folder: Path, change) -> Path:
    """A run whose only checkpoint is that of another after a change."""
    from dit.checkpoints.native import newest_checkpoint

    path, checkpoint = newest_checkpoint(run)
    changed = copy.deepcopy(checkpoint)
    change(changed)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(changed, folder / "checkpoints" / path.name)
    return folder


def test_a_score_with_autoguidance_is_kept_by_the_weak_networks_weights(tiny_run, tmp_path):
    """The weak run is trained further in its directory: the score of its earlier weights is not reused."""

    def train_on(checkpoint):
        checkpoint["global_step"] += 10
        for averages in checkpoint["callbacks"]["EMA"]["averages"].values():
            for tensor in averages.values():
                tensor += 0.5

    weak = changed_copy(tiny_run, tmp_path / "weak", lambda checkpoint: None)
    words = [f"out={tmp_path / 'out'}", "guidance=auto", f"guidance.network.ckpt={weak}", *ONE_CELL]
    first = only_card(sweep(tiny_run, *words))
    changed_copy(tiny_run, weak, train_on)
    second = only_card(sweep(tiny_run, *words))
    fresh = only_card(sweep(tiny_run, *words, f"out={tmp_path / 'fresh'}"))
    assert second["scores"] == fresh["scores"] != first["scores"]
    networks = [card["subject"]["recipe"]["guidance"]["network"] for card in (first, second)]
    assert networks[1]["step"] == networks[0]["step"] + 10
    assert networks[1]["weights_sha256"] != networks[0]["weights_sha256"]


def test_equal_weights_with_another_time_conditioning_are_another_cell(tiny_run, tmp_path):
    def other_conditioning(checkpoint):
        c_noise = {"_target_": "dit.diffusion.prediction.reversed_time", "_partial_": True}
        checkpoint["dit_config"]["prediction"]["c_noise"] = c_noise

    other = changed_copy(tiny_run, tmp_path / "other", other_conditioning)
    folder = sweep(tiny_run, f"out={tmp_path / 'out'}", *ONE_CELL, f"ckpt=[{tiny_run},{other}]")
    one, two = json.loads((folder / "results.json").read_text())["cards"]
    assert one["subject"]["weights_sha256"] == two["subject"]["weights_sha256"]
    found = [card["subject"]["networks"]["prediction"].get("c_noise", {}).get("_target_") for card in (one, two)]
    assert found == [None, "dit.diffusion.prediction.reversed_time"]


def test_a_cached_score_is_used_only_with_the_code_that_computed_it(tiny_run, tmp_path, monkeypatch):
    """As if the file of a sampler changed between two commands."""
    from dit import code_digest

    tree = tmp_path / "dit"
    shutil.copytree(code_digest.ROOT, tree, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    folders = [sweep(tiny_run, *ONE_CELL)]
    monkeypatch.setattr(code_digest, "ROOT", tree)
    for addition in ("# a comment\n", "ADDED = 0\n"):
        with open(tree / "diffusion" / "sampler" / "ddim.py", "a") as file:
            file.write(addition)
        code_digest.code_digest.cache_clear()
        folders.append(sweep(tiny_run, *ONE_CELL))
    with pytest.raises(ValueError, match=r"it differs in versions\.code"):
        sweep(tiny_run, *ONE_CELL, f"out={folders[0]}")
    monkeypatch.undo()
    code_digest.code_digest.cache_clear()
    assert folders[0] == folders[1] != folders[2], "a comment makes no other numbers"
    text = compare([folders[0], folders[2]], force=False, csv=None, columns=None)
    assert "Software versions differ: code " in text


def test_every_checkpoint_is_read_once(tiny_run, tmp_path, monkeypatch):
    from dit.checkpoints import native

    read = []
    monkeypatch.setattr(
        native, "read_checkpoint", lambda path, *rest, of=native.read_checkpoint: read.append(path) or of(path, *rest)
    )
    first = sorted((tiny_run / "checkpoints").iterdir())[0]
    weak = changed_copy(tiny_run, tmp_path / "weak", lambda checkpoint: None)
    read.clear()
    words = ["guidance=auto", f"guidance.network.ckpt={weak}", "metric=[clip_shapes,bits_per_dim]", *BITS[1:]]
    words += ["metric.bits_per_dim.count=2", f"ckpt=[{tiny_run},{first}]", "weights=[ema,raw]"]
    sweep(tiny_run, f"out={tmp_path / 'out'}", *[word for word in ONE_CELL if "metric" not in word], *words)
    assert len(read) == len(set(read)) == 3


def test_precision_is_one_setting_and_is_recorded_on_the_card(tiny_run, tmp_path):
    plain = only_card(sweep(tiny_run, f"out={tmp_path / 'a'}", *ONE_CELL))
    brief = only_card(sweep(tiny_run, f"out={tmp_path / 'b'}", *ONE_CELL, "precision=bf16"))
    assert (plain["subject"]["recipe"]["precision"], plain["subject"]["recipe"]["compile"]) == ("32", False)
    assert brief["subject"]["recipe"]["precision"] == "bf16"
    assert brief["scores"] != plain["scores"]
    assert brief["scores"]["clip_shapes"] == pytest.approx(plain["scores"]["clip_shapes"], abs=1)
    for wrong in ("16", "tf32"):
        with pytest.raises(ValueError, match=f"precision={wrong}"):
            sweep(tiny_run, f"out={tmp_path / 'c'}", *ONE_CELL, f"precision={wrong}")


def test_every_setting_of_the_guidance_makes_another_protocol(tiny_run):
    folders = {
        sweep(tiny_run, "sampler=euler", "guidance=interval", f"guidance.highest={highest}").name
        for highest in (0.7, 0.9)
    }
    assert len(folders) == 2


def test_autoguidance_takes_another_run(tiny_run, results, tmp_path):
    """Autoguidance with the same network gives the unguided pictures, at twice the cost."""
    folder = sweep(tiny_run, f"out={tmp_path}", "guidance=auto", f"guidance.network.ckpt={tiny_run}", "sampler=euler")
    cells = {(r["steps"], r["guidance"]): r for r in rows_of(folder)}
    plain = {(r["steps"], r["guidance"]): r for r in rows_of(results) if r["sampler"] == "euler"}
    assert float(cells["2", "2.0"]["nfe"]) == 4
    assert float(cells["2", "2.0"]["fd_shapes_6"]) == pytest.approx(float(plain["2", "1.0"]["fd_shapes_6"]), rel=1e-3)


@pytest.mark.parametrize(("words", "fault"), [
    (["guidance=cfg_plus_plus", "guidance.scale=[0.5]", "sampler=heun"], "CfgPlusPlus guidance works only with ddim, ddpm"),
    (["guidance=cfg_plus_plus", "sampler=ddim"], r"scale=2.0 must be in \[0, 1\]"),
    (["sampler=ddim", "sampler.ddim.eta=7"], "eta=7"),
    (["grid=karras", "grid.sigma_min=90"], "sigma_min=90"),
    (["guidance=auto", "guidance.network.ckpt=nowhere"], "nowhere"),
])  # fmt: skip
def test_a_cell_that_cannot_be_walked_stops_the_sweep_before_it_begins(tiny_run, tmp_path, words, fault):
    with pytest.raises(Exception, match=fault):
        sweep(tiny_run, f"out={tmp_path / 'out'}", *words)
    assert not (tmp_path / "out").exists()


def test_a_second_network_of_another_path_is_refused(tiny_run):
    from omegaconf import OmegaConf

    from dit.runs import check_second_network

    guidance = OmegaConf.create({"network": {"ckpt": str(tiny_run)}})
    run = OmegaConf.load(tiny_run / "config.yaml")
    check_second_network(guidance, run)
    run.path._target_ = "dit.diffusion.path.Cosine"
    with pytest.raises(ValueError, match="differs from ckpt in its path"):
        check_second_network(guidance, run)


def test_prompts_of_ones_own(tiny_run, tmp_path):
    folder = sweep(
        tiny_run,
        f"out={tmp_path}",
        "prompts=[a large red star on a black background]",
        "sampler=euler",
        "steps=1",
        "n=3",
    )
    assert {r["n"] for r in rows_of(folder)} == {"3"}


@pytest.mark.parametrize(("words", "fault"), [
    (["steps=0"], "steps=0"), (["steps=[]"], "steps is empty"), (["n=0"], "n=0"), (["prompts=[]"], "list of prompts is empty"),
    (["prompts=[a zebra]"], "not trained with 'zebra'"), (["weights=average"], "weights='average'"), (["guidance.scale=-1"], "scale=-1"),
    (["metric=fid", "metric.fid.extractor.weights=/no/file"], "do not exist"),
])  # fmt: skip
def test_mistakes_are_reported_before_anything_is_sampled(tiny_run, tmp_path, words, fault, monkeypatch):
    from hydra.errors import InstantiationException

    from dit.cli.front import cause_of
    from dit.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: pytest.fail("sampled before the mistake was reported"))
    with pytest.raises((ValueError, InstantiationException)) as output:
        sweep(tiny_run, f"out={tmp_path / 'out'}", *words)
    assert fault in str(cause_of(output.value))


def test_a_missing_checkpoint_and_one_that_names_foreign_code(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="no such run"):
        sweep(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        sweep(tmp_path)
    from dit.checkpoints.native import CONFIG, newest_checkpoint

    checkpoint = dict(newest_checkpoint(tiny_run)[1])
    checkpoint[CONFIG] |= {"backbone": {"_target_": "os.system", "command": "true"}}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"os\.system"):
        sweep(tmp_path / "evil.ckpt")
    checkpoint[CONFIG] |= {"backbone": {"_target_": "dit.backbones.gone.Gone"}}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"dit\.backbones\.gone\.Gone does not exist in this version"):
        sweep(tmp_path / "old.ckpt")


def test_generate_gives_the_same_picture_in_any_batch(tiny_run, tmp_path):
    prompts = "prompts=[a large red star on a black background,a small blue circle on a white background]"
    words = [f"ckpt={tiny_run}", prompts, "recipe.steps=2"]
    generate(composed("generate", [*words, "seeds=[0,1,2]", f"out={tmp_path / 'many'}"]))
    generate(composed("generate", [*words, "seeds=1", f"out={tmp_path / 'one'}"]))
    assert len(list((tmp_path / "many").glob("prompt_*.png"))) == 6
    one, many = (Image.open(tmp_path / f / "prompt_1_seed_1.png").convert("RGB") for f in ("one", "many"))
    difference = torch.tensor(list(one.tobytes())).int() - torch.tensor(list(many.tobytes())).int()
    assert difference.abs().max() <= 1
    assert (tmp_path / "many_grid.png").is_file()


def test_the_front_door_prints_the_directory_last(tiny_run, tmp_path):
    output = command("evaluate.py", f"ckpt={tiny_run}", *SMALL, "sampler=euler", "steps=1", "metric=prompt_accuracy")
    assert output.returncode == 0, output.stderr
    folder = Path(output.stdout.splitlines()[-1])
    assert folder.parent == tiny_run / "evaluations"
    assert (folder / "report.html").is_file()
