"""A data set from a run at the command line."""

import json
from collections import Counter

import pytest
import torch

from dit.cli.synthesize import synthesize
from dit.data.folder import Folder
from dit.generation.audit import AuditLog, faults
from dit.generation.audited import replay
from dit.picture_files import read

from ..conftest import composed

WORDS = ["recipe.steps=1", "device=cpu", "n=12"]
TWO = ["a large red star on a black background", "a small blue circle on a white background"]
PROMPTS = f"prompts=[{','.join(TWO)}]"


def made(run, out, *words):
    return synthesize(composed("synthesize", [f"ckpt={run}", f"out={out}", *WORDS, *words]))


def test_the_captions_are_those_of_the_training_data(tiny_run, tmp_path):
    folder = made(tiny_run, tmp_path / "a", "checker=false", "duplicates=null")
    rows = [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == 12
    assert (tmp_path / "a_grid.png").is_file()
    assert "Checker: none" in (folder / "README.md").read_text()
    again = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    made(tiny_run, tmp_path / "a", "checker=false", "duplicates=null")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == again
    with pytest.raises(ValueError, match="another call, which differs in seed; choose another out"):
        made(tiny_run, tmp_path / "a", "checker=false", "duplicates=null", "seed=1")


def test_the_checker_of_the_run_rejects_what_is_wrong(tiny_run, tmp_path, capsys):
    """A run of six steps draws nothing that is right."""
    folder = made(tiny_run, tmp_path / "a", PROMPTS, "tries=2")
    rows = [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]
    assert Counter(row["prompt"] for row in rows) == dict.fromkeys({row["prompt"] for row in rows}, 12)
    assert all(row["rejected"].startswith("checker: wrong ") for row in rows)
    assert len(list((tmp_path / "a_rejects").glob("*.png"))) == 24
    assert "warning: fewer pictures than ordered of " in capsys.readouterr().err


@pytest.mark.slow
def test_the_policy_the_signature_and_the_log_are_those_of_generate(tiny_run, tmp_path):
    """Refused, rejected by the checker, and kept; a replay makes the picture again."""
    (tmp_path / "terms.txt").write_text("star\n")
    words = [PROMPTS, "n=2", "tries=1", "policy=blocklist", f"policy.blocklist.file={tmp_path / 'terms.txt'}"]
    made(tiny_run, tmp_path / "a", *words, f"audit={tmp_path / 'log'}")
    made(tiny_run, tmp_path / "b", *words, f"audit={tmp_path / 'log'}", "checker=false", "duplicates=null")
    log = AuditLog(tmp_path / "log", make=False)
    bodies = [json.loads(body) for _, body, _ in log.entries()]
    assert [body["kind"] for body in bodies] == ["key", "refusal", "rejection", "refusal", "delivery"]
    assert "star" not in json.dumps(bodies)
    assert faults(log) == []
    assert "policy.blocklist" in log.entry(2)["texts"]["rejected"]
    assert log.entry(3)["texts"]["rejected"].startswith("checker: wrong ")
    assert replay(log.entry(5), torch.from_numpy(read(tmp_path / "b" / log.entry(5)["file"]))) <= 1
    assert len(list((tmp_path / "a_rejects").glob("*.png"))) == 1  # of the checker; what is refused was not made


def test_training_reads_the_data_set(tiny_run, tmp_path):
    folder = made(tiny_run, tmp_path / "a", PROMPTS, "checker=false", "train_pictures=100")
    splits = [Folder(str(folder), 32, split, val_share=0.2) for split in ("train", "val")]
    assert Counter(caption for split in splits for caption in split.captions) == dict.fromkeys(TWO, 6)


@pytest.mark.parametrize(("words", "fault"), [
    (["prompts=nowhere.txt"], "cannot read nowhere.txt: No such file"),
    (["recipe.negative=star", "guidance.scale=1"], "negative='star' has no effect"),
])  # fmt: skip
def test_bad_settings_end_in_one_line(tiny_run, tmp_path, words, fault):
    with pytest.raises(Exception, match=fault):
        made(tiny_run, tmp_path / "a", *words)
    assert not (tmp_path / "a").exists()
