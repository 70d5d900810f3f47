"""The model card of an exported run: complete, read back by the hub's own classes, and without a placeholder."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from dit.cli.export import export
from dit.cli.provenance import provenance

from ..conftest import composed

WORDS = re.compile(r"more information needed|\{\{|\}\}|\{%|todo|tbd|\bnone\b|\bnull\b|placeholder|lorem|\bnan\b", re.I)
CARD = {
    "subject": {"checkpoint": "run/step_0000006.ckpt", "weights": "ema", "sampler": "euler", "steps": 4, "guidance": 2.0, "again": "yes"},
    "protocol": {"n": 100, "size": [32, 32], "prompts_from": "held-out captions"}, "versions": {},
    "scores": {"prompt_accuracy": 0.99, "fd_shapes_100": 51.9}, "intervals": {"prompt_accuracy": [0.9455, 0.9982]},
    "headlines": {"prompt_accuracy": True, "fd_shapes_100": False},
}  # fmt: skip


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def exported(run, out, licence="cc-by-4.0"):
    return export(composed("export", [f"ckpt={run}", f"out={out}", "format=safetensors", f"licence={licence}"]))


@pytest.mark.slow
def test_the_card_has_no_placeholder_and_the_hub_reads_it(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"needs the licences of the training data.*: first python -m dit.cli.provenance"
    ):
        exported(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    provenance(composed("provenance", [f"ckpt={run}"]))
    text = (exported(run, tmp_path / "out") / "README.md").read_text()
    assert "## Scores" not in text, "it was not evaluated"
    (run / "evaluations/a").mkdir(parents=True)
    (run / "evaluations/a/results.json").write_text(json.dumps({"cards": [], "again": CARD}))
    scored = (exported(run, tmp_path / "scored") / "README.md").read_text()
    for found in (text, scored):
        assert WORDS.findall(found) == []
        assert not re.search(r"\n## [^\n]*\n+(## |$)", found), "a section is empty"
    card = ModelCard.load(tmp_path / "scored/README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("cc-by-4.0", "dit", "text-to-image")
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == CARD["scores"]
    assert "| prompt_accuracy | 0.990 [0.946, 0.998] | higher |" in scored
    assert "| no licence | " in scored  # of the pictures that dit draws
    other = CARD | {"subject": CARD["subject"] | {"weights": "raw"}}
    (run / "evaluations/a/results.json").write_text(json.dumps({"cards": [], "again": other}))
    assert (exported(run, tmp_path / "again") / "README.md").read_text() == text.replace("out", "again", 2)


@pytest.mark.parametrize("licence", ["Apache 2.0", "other", "unknown", "[x]"])
def test_a_licence_is_a_name_of_the_hub(run, tmp_path, licence):
    with pytest.raises(Exception, match="licence"):
        export(
            composed("export", [f"ckpt={run}", f"out={tmp_path / 'out'}", "format=safetensors", f"licence='{licence}'"])
        )
    assert not (tmp_path / "out").exists()
