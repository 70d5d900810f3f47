"""Results side by side at the command line: what is printed, and what is refused."""

import csv
from dataclasses import replace

import pytest
import torch

from dit.cli.compare import compare
from dit.evaluation.card import Card, read_parts
from dit.evaluation.comparison import affects
from dit.evaluation.statistics import corrected, paired

from ..conftest import command, only_line_of

N = 400
SUBJECT = {
    "checkpoint": "/runs/big/last.ckpt", "step": 1000, "weights": "ema", "weights_sha256": "ab" * 32, "autoencoder": "sd",
    "text_encoder": "none", "sampler": "euler", "grid": "uniform", "steps": 4, "guidance": 2.0,
    "recipe": {"sampler": {"name": "euler"}, "guidance": {"kind": "cfg"}},
}  # fmt: skip
PROTOCOL = {
    "n": N, "seed": 0, "prompts_sha256": "c" * 16, "reference": {"val": {"pictures": "d" * 16, "count": 500}},
    "metrics": {"prompt_accuracy": {"checker": "shapes"}, "fd_shapes": {"extractor": {"resize": "bilinear"}}},
    "uint8": "round",
}  # fmt: skip
PRICE = {"nfe": 8.0, "seconds": 0.25}


def card_at(file, shift=0.0, subject=None, protocol=None, luck=0, **fields):
    """A card whose noise is that of all cards with the same luck; `shift` improves both scores."""
    noise = torch.Generator().manual_seed(luck)
    skill = torch.randn(N, generator=noise, dtype=torch.float64)
    own = torch.randn(N, generator=torch.Generator().manual_seed(int(1000 * shift) + 99), dtype=torch.float64)
    each = {"prompt_accuracy": skill + shift > 0, "fd_shapes_400": 20 - skill - 5 * shift + 0.1 * own, "extra": skill}
    scores = {name: float(part.double().mean()) for name, part in each.items()} | {"no_parts": 5.0}
    headlines = {"prompt_accuracy": True, "fd_shapes_400": False}
    card = Card(SUBJECT | (subject or {}), PROTOCOL | (protocol or {}), {"torch": "2.15"}, PRICE, scores,
                {"prompt_accuracy": [scores["prompt_accuracy"] - 0.04, scores["prompt_accuracy"] + 0.05]}, headlines)  # fmt: skip
    replace(card, **fields).write(file, each)
    return file


@pytest.fixture
def place(tmp_path):
    """A folder of results of 2, 4 and 10 steps, better with every step, and the other files of a sweep."""
    cells = tmp_path / "a" / "cells"
    for steps, shift in ((2, 0.0), (4, 0.5), (10, 0.501)):
        card_at(cells / f"euler_{steps}_2_abc.json", shift, {"steps": steps})
    (cells / "model_1.json").write_text('{"bits_per_dim": 3.0}')
    return tmp_path


def compared(*given, force=False, csv=None, columns=None):
    return compare(list(given), force, csv, columns)


def line_with(words, text):
    return next(line for line in text.splitlines() if words in line)


def test_a_folder_against_its_first_cell(place):
    text = compared(place / "a")
    scores, verdicts, notes = text.split("\n\n")
    head, first, second, third = scores.splitlines()
    assert " ".join(head.split()) == "N NFE seconds prompt_accuracy (higher is better) fd_shapes_400 (lower is better)"
    assert [line.split()[:5] for line in (first, second, third)] == [
        ["steps", n, "400", "8", "0.25"] for n in ("2", "4", "10")
    ], "2 steps stand before 10"
    share = float((torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) > 0).double().mean())
    assert f"{share:.3f} [{share - 0.04:.3f}, {share + 0.05:.3f}]" in first
    assert verdicts.splitlines()[0].split()[:4] == ["minus", "steps", "2", "prompt_accuracy"]
    assert verdicts.count("better") == 4
    assert "unpaired" not in text
    assert "4 intervals" in notes


def test_the_verdict_of_results_that_hardly_differ(place):
    text = compared(place / "a/cells/euler_4_2_abc.json", place / "a/cells/euler_10_2_abc.json").split("\n\n")[1]
    assert text.count("no difference") == 2
    same = compared(place / "a/cells/euler_4_2_abc.json", place / "a/cells/euler_2_2_abc.json").split("\n\n")[1]
    assert same.count("worse") == 2


def test_cells_come_by_name_and_the_winner_once_more_last(place):
    fresh = {"steps": 2, "again": "the winner on fresh noise"}
    card_at(place / "a/cells/euler_1_2_abc.json", 0.1, fresh, {"seed": 9}, luck=9)
    card_at(place / "a/cells/heun_1_2_abc.json", 0.2, {"sampler": "heun", "steps": 1})
    scores = compared(place / "a").split("\n\n")[0]
    names = [line.split("  ")[0] for line in scores.splitlines()[1:]]
    assert [name.split(", seed")[0] for name in names] == [
        "sampler euler, steps 2", "sampler euler, steps 4", "sampler euler, steps 10", "sampler heun, steps 1",
        "sampler euler, steps 2, again the winner on fresh noise",
    ]  # fmt: skip


def test_the_first_given_is_the_baseline_and_listed_once(place):
    text = compared(place / "a/cells/euler_10_2_abc.json", place / "a")
    assert text.splitlines()[1].startswith("steps 10 ")
    assert text.split("\n\n")[0].count("steps 10") == 1
    assert "minus steps 10" in text


def test_results_are_named_by_what_differs(place):
    files = [
        card_at(place / "1.json"),
        card_at(
            place / "2.json", subject={"sampler": "heun", "recipe": SUBJECT["recipe"] | {"sampler": {"name": "heun"}}}
        ),
        card_at(
            place / "3.json", subject={"checkpoint": "/runs/small/last.ckpt", "step": 7, "weights_sha256": "ef" * 32}
        ),
        card_at(place / "4.json", subject={"recipe": {"sampler": {"name": "euler"}, "guidance": {"kind": "interval"}}}),
        card_at(place / "5.json", protocol={"seed": 3}),
    ]
    names = [line.split("  ")[0] for line in compared(*files).splitlines()[1:6]]
    common = "checkpoint big, sampler {}, recipe.guidance.kind {}, seed {}"
    assert names == [
        common.format("euler", "cfg", 0), common.format("heun", "cfg", 0),
        common.format("euler", "cfg", 0).replace("big", "small"), common.format("euler", "interval", 0),
        common.format("euler", "cfg", 3),
    ]  # fmt: skip


def test_guidance_that_goes_with_the_sampler_is_not_in_the_names(place):
    """A teacher and its student: the checkpoint and the sampler say which guidance it is."""
    recipe = {"sampler": {"name": "flow_map"}, "guidance": {"kind": "embedded"}}
    student = {"checkpoint": "/runs/small/last.ckpt", "sampler": "flow_map", "recipe": recipe}
    files = [card_at(place / "1.json"), card_at(place / "2.json", subject=student)]
    names = [line.split("  ")[0] for line in compared(*files).splitlines()[1:3]]
    assert names == ["checkpoint big, sampler euler", "checkpoint small, sampler flow_map"]


def test_equal_names_get_the_fields_or_files_that_differ(place):
    other_weights = card_at(place / "b.json", subject={"weights_sha256": "ef" * 32})
    text = compared(card_at(place / "a.json"), other_weights)
    assert "weights_sha256 abababab" in text
    assert "weights_sha256 efefefef" in text
    text = compared(place / "a.json", card_at(place / "c.json"))
    assert "file a.json" in text
    assert "file c.json" in text


def test_somebodys_pictures_beside_a_model(place):
    theirs = card_at(place / "theirs.json", 0.2)
    card = Card.read(theirs)
    replace(card, subject={"images": "/data/theirs"}, cost={}).write(theirs, {})
    text = compared(card_at(place / "ours.json"), theirs)
    assert text.splitlines()[2].split()[:5] == ["images", "/data/theirs", "400", "-", "-"]
    assert line_with("images", text.split("\n\n")[1]).count("not known") == 2, "no parts, no significance"


def test_floors_are_shown_and_never_compared(place):
    for folder in ("a", "b"):
        subject = {"images": "real", "taken": 500, "n": 7}
        floor = card_at(place / folder / "cells/0real.json", 3.0, protocol={"n": 7, "seed": folder})
        replace(Card.read(floor), subject=subject).write(floor, {})
    card_at(place / "b/cells/heun.json", subject={"sampler": "heun", "steps": 3})
    scores, verdicts, _ = compared(place / "a", place / "b").split("\n\n")
    assert scores.splitlines()[-1].startswith("(real pictures)")
    assert scores.count("real") == 1
    assert "real" not in verdicts


def test_different_protocols_are_refused_and_marked_by_force(place):
    metrics = {**PROTOCOL["metrics"], "fd_shapes": {"extractor": {"resize": "bicubic"}}}
    files = [card_at(place / "1.json"), card_at(place / "2.json", 0.5, {"steps": 9}, {"metrics": metrics})]
    files.append(card_at(place / "3.json", 0.5, {"steps": 10}, {"uint8": "truncate", "prompts_sha256": "e" * 16}))
    with pytest.raises(ValueError) as refused:
        compared(*files)
    message = str(refused.value)
    assert "\n" not in message
    assert (
        "steps 9 not scored in the same way as steps 4: metrics.fd_shapes.extractor.resize (bicubic, not bilinear)"
        in message
    )
    assert "uint8 (truncate, not round)" in message
    assert "prompts_sha256 (eeeeeeee, not cccccccc)" in message
    assert "--force" in message
    text = compared(*files, force=True)
    nine, ten = (line_with(f"steps {n} ", text.split("\n\n")[1]) for n in (9, 10))
    assert nine.count("*") == 1, "the checker was the same, the resize of the distance was not"
    assert nine.endswith("better *")
    assert ten.count("**") == 2
    assert "(unpaired)" in ten
    assert (
        "\n* not scored in the same way as the first: metrics.fd_shapes.extractor.resize (bicubic, not bilinear)"
        in text
    )
    assert (
        "\n** not scored in the same way as the first: prompts_sha256 (eeeeeeee, not cccccccc), uint8 (truncate, not round)"
        in text
    )


def test_a_metrics_field_bears_on_its_own_columns():
    card = Card({}, {"metrics": {"fid": {}, "fid_dino": {}}}, {})
    assert affects("metrics.fid_dino.resize", "fid_dino_1k", card)
    assert not affects("metrics.fid.resize", "fid_dino_1k", card)
    assert affects("metrics.fid.resize", "fid_1k", card)
    assert affects("metrics.fid.resize", "accuracy_colour", card), "nobody knows whose column this is"
    assert affects("uint8", "fid_1k", card)


def test_other_seeds_are_compared_unpaired(place):
    one = card_at(place / "1.json")
    shared = compared(one, card_at(place / "2.json", 0.06, {"steps": 9})).split("\n\n")[1]
    text = compared(one, card_at(place / "3.json", 0.06, {"steps": 9}, {"seed": 1}, luck=1))
    assert "(unpaired)" in text
    assert "\nunpaired: " in text
    rows = [line_with("steps 9", shared), line_with("steps 9", text.split("\n\n")[1])]
    first = [row.split("]")[1].split("  ")[0] for row in rows]
    assert first == [" better", " no difference, within 0.15"], (
        "the same gain is significant only where the noise is shared"
    )


def test_a_metric_or_a_version_more_is_no_other_protocol(place):
    more = {
        "metrics": {**PROTOCOL["metrics"], "fid": {"name": "fid"}},
        "reference": {**PROTOCOL["reference"], "train": {"count": 9}},
    }
    headlines = {"prompt_accuracy": True, "fid_400": False}
    other = card_at(place / "2.json", 0.5, {"steps": 9}, more, versions={"torch": "2.14"}, headlines=headlines)
    card = Card.read(other)
    replace(card, scores={**card.scores, "fid_400": 3.0}).write(other, {})
    text = compared(card_at(place / "1.json"), other)
    assert line_with("steps 4 ", text).endswith("  -")
    assert line_with("Software", text) == "Software versions differ: torch 2.14 and 2.15"


def test_other_counts_are_other_scores(place):
    other = card_at(place / "2.json", 0.5, {"steps": 9}, {"n": 50_000})
    card = Card.read(other)
    renamed = {"prompt_accuracy": 0.5, "fd_shapes_50k": 3.0}
    replace(card, scores=renamed, headlines={"prompt_accuracy": True, "fd_shapes_50k": False}).write(other, {})
    with pytest.raises(ValueError, match=r"n \(50000, not 400\)"):
        compared(place / "a", other)
    assert "fd_shapes_400 and fd_shapes_50k are not compared" in compared(place / "a", other, force=True)


def test_failed_cells_are_listed_and_never_compared(place):
    card_at(place / "a/cells/euler_1_2_abc.json", 3.0, {"steps": 1}, failed="9 of 400 pictures are not finite")
    text = compared(place / "a")
    assert "\nfailed: steps 1: 9 of 400 pictures are not finite" in text
    assert "steps 1 " not in text.split("\n\n")[0]
    assert "minus steps 2" in text
    with pytest.raises(ValueError, match=r"euler_1_2_abc\.json has no scores to compare with: 9 of 400"):
        compared(place / "a/cells/euler_1_2_abc.json", place / "a")


def test_other_columns_by_name(place):
    text = compared(place / "a", columns=["extra", "no_parts"])
    assert text.splitlines()[0].split() == ["N", "NFE", "seconds", "extra", "no_parts"]
    assert line_with("steps 4 ", text.split("\n\n")[1]).split()[-2:] == ["not", "known"]
    with pytest.raises(ValueError, match=r"--column extr: none .* mean 'extra'"):
        compared(place / "a", columns=["extr"])


def test_a_table_for_other_programs(place):
    compared(place / "a", csv=place / "out.csv")
    rows = list(csv.DictReader(open(place / "out.csv")))
    assert [(r["result"], r["column"]) for r in rows][2:4] == [
        ("steps 4", "prompt_accuracy"),
        ("steps 4", "fd_shapes_400"),
    ]
    assert rows[0]["verdict"] == ""
    assert {(r["verdict"], r["paired"], r["unlike"]) for r in rows[2:]} == {("better", "True", "")}
    difference = float(rows[2]["score"]) - float(rows[0]["score"])
    assert float(rows[2]["difference"]) == pytest.approx(difference)
    assert float(rows[2]["difference_low"]) < difference < float(rows[2]["difference_high"])
    one, other = (read_parts(place / f"a/cells/euler_{steps}_2_abc.json")["fd_shapes_400"] for steps in (2, 4))
    (interval,) = paired(one, [other], corrected(4))
    assert (float(rows[3]["difference_low"]), float(rows[3]["difference_high"])) == pytest.approx(interval)


@pytest.mark.parametrize(("given", "fault"), [
    ("nowhere", "no such file or folder"), ("empty", "contains no result cards"), ("broken", "is not JSON"),
    ("a/cells/model_1.json", "is not a result card"), ("lonely.json", "score it again"),
])  # fmt: skip
def test_what_is_no_result_ends_in_one_line(place, given, fault):
    (place / "empty").mkdir()
    (place / "broken/cells").mkdir(parents=True)
    (place / "broken/cells/x.json").write_text('{"subject": ')
    card_at(place / "lonely.json").with_suffix(".safetensors").unlink()
    with pytest.raises(ValueError, match=fault) as refused:
        compared(place / given)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_command(place):
    words = ("-m", "dit.cli.compare")
    done = command(*words, str(place / "a"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip() == compared(place / "a")
    other = card_at(place / "2.json", protocol={"uint8": "truncate"})
    done = command(*words, str(place / "a"), str(other))
    assert done.returncode == 2
    assert only_line_of(done).startswith("error: ")
    quick = command("-X", "importtime", *words, "--help")
    assert "--force" in quick.stdout
    assert " torch" not in quick.stderr, "--help waits for nothing heavy"


def test_runs_are_answered_by_the_command_that_scores_them(place):
    for name in ("one", "two"):
        (place / name / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError) as refused:
        compared(place / "one", place / "two")
    assert str(refused.value).endswith(f"evaluate.py ckpt=[{place / 'one'},{place / 'two'}]")
    with pytest.raises(
        ValueError, match=r"step_7\.ckpt is a run, .*score it first: .*evaluate\.py ckpt=.*step_7\.ckpt"
    ):
        compared(place / "one" / "checkpoints" / "step_7.ckpt")
