"""Verdicts about held pictures: blind, in the log, and nothing is released without two that approve."""

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest

from dit.cli.audit import arguments, audit
from dit.cli.generate import generate
from dit.cli.synthesize import synthesize
from dit.files import sha256_of
from dit.generation.agreement import agreement_of, kappa_of
from dit.generation.audit import AuditLog, faults
from dit.generation.output import MANIFEST, TABLE, rows_in
from dit.generation.reviews import APPROVED, PENDING, REJECTED, counts_of, give, held_in, reasons_of

from ..conftest import composed

PROMPTS = "prompts=[a large red star on a black background,a small blue circle on a white background]"


def held(run, folder, *words, command=generate, name="generate"):
    places = [f"out={folder / 'out'}", f"review={folder / 'hold'}", f"audit={folder / 'log'}"]
    command(composed(name, [f"ckpt={run}", PROMPTS, "recipe.steps=1", "device=cpu", *places, *words]))
    return AuditLog(folder / "log", make=False), folder / "hold"


def judge(log, hold, file, **verdicts):
    for reviewer, verdict in verdicts.items():
        give(log, held_in(log, hold)[file], reviewer, verdict, "blurred" if verdict == REJECTED else "")


def run(verb, log, hold, *words):
    return audit(arguments([verb, str(log.file), str(hold), *words]))


def test_only_what_two_reviewers_approve_is_released(tiny_run, tmp_path, capsys):
    log, hold = held(tiny_run, tmp_path, "seeds=[0,1]", "format=parquet")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "hold_grid.png").exists()
    assert stat.S_IMODE(hold.stat().st_mode) == 0o700
    files = list(held_in(log, hold))
    assert len(files) == 4
    assert {body["kind"] for body in map(json.loads, (text for _, text, _ in log.entries()))} == {"key", "pending"}
    judge(log, hold, files[0], ann=APPROVED, bob=APPROVED)
    judge(log, hold, files[1], ann=APPROVED, bob=REJECTED, eve=REJECTED)
    judge(log, hold, files[2], ann=APPROVED, bob=REJECTED)
    pictures = held_in(log, hold)
    assert [pictures[file].state for file in files] == [APPROVED, REJECTED, PENDING, PENDING]
    assert pictures[files[2]].waits_for("eve")
    assert not pictures[files[0]].waits_for("eve")
    with pytest.raises(ValueError, match=r"2 of 4 pictures in .* are pending .* two reviewers must agree"):
        run("release", log, hold)
    assert not (tmp_path / "out").exists()
    assert run("release", log, hold, "--partial") == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'out'}\n")
    rows = list(rows_in(tmp_path / "out" / "generated.jsonl"))
    assert [row.get("rejected") for row in rows] == [None, "review: rejected: blurred"] + ["review: pending"] * 2
    import pyarrow.parquet as pq

    [picture] = pq.read_table(tmp_path / "out" / "00000.parquet")["image"].to_pylist()
    assert picture["bytes"] == (hold / files[0]).read_bytes()
    assert not (tmp_path / "out/unfinished").exists()
    assert [body["of"] for body in map(json.loads, (t for _, t, _ in log.entries())) if body["kind"] == "release"] == [
        2
    ]
    assert faults(log) == []


@pytest.mark.slow
def test_a_partial_release_is_repeated_without_new_entries_and_completed_later(tiny_run, tmp_path):
    """Of pictures of two sizes, which have a sheet each."""
    log, hold = held(tiny_run, tmp_path, "size=[[32,32],[48,32]]", "format=webdataset")
    files = list(held_in(log, hold))
    for file in files[:3]:
        judge(log, hold, file, ann=APPROVED, bob=APPROVED)
    run("release", log, hold, "--partial")
    assert sorted(file.name for file in tmp_path.glob("out_grid*")) == ["out_grid_32x32.png", "out_grid_48x32.png"]
    table, entries = (tmp_path / "out" / TABLE).read_bytes(), log.head()
    run("release", log, hold, "--partial")
    assert ((tmp_path / "out" / TABLE).read_bytes(), log.head()) == (table, entries)
    judge(log, hold, files[3], ann=APPROVED, bob=APPROVED)
    run("release", log, hold)
    assert all("file" in row for row in rows_in(tmp_path / "out" / TABLE))
    assert faults(log) == []
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    manifest["fields"]["review"][files[0]] = REJECTED  # a decision that is taken back is of another call
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="has the pictures of another call, which differs in review"):
        run("release", log, hold)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new", "fault"), [
    (TABLE, b"red star", b"blue dog", r"generated.jsonl is missing or was changed, and nothing is released"),
    (MANIFEST, b"", b"", r"the row of prompt_0_seed_0.png in .* is not that of entry 2, .* it differs in prompt, seed$"),
])  # fmt: skip
def test_a_table_that_was_changed_releases_nothing(tiny_run, tmp_path, name, old, new, fault):
    log, hold = held(tiny_run, tmp_path)
    for file in held_in(log, hold):
        judge(log, hold, file, ann=APPROVED, bob=APPROVED)
    if name == TABLE:
        (hold / TABLE).write_bytes((hold / TABLE).read_bytes().replace(old, new))
    else:  # who changes the table can give the manifest its new hash
        rows = list(rows_in(hold / TABLE))
        rows[0] |= {"prompt": "a dog", "seed": 7}
        (hold / TABLE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        manifest = json.loads((hold / MANIFEST).read_text())
        manifest["files"][TABLE] = sha256_of(hold / TABLE)
        (hold / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=fault):
        run("release", log, hold)
    assert not (tmp_path / "out").exists()


def test_reasons_are_erased_with_the_prompt_that_they_may_quote(tiny_run, tmp_path):
    log, hold = held(tiny_run, tmp_path, "audit_subject=customer-7")
    first, second = held_in(log, hold)
    judge(log, hold, first, ann=REJECTED, bob=REJECTED)
    assert reasons_of(log, held_in(log, hold)[first]) == "blurred"
    log.erase("customer-7")
    assert reasons_of(log, held_in(log, hold)[first]) == "(erased)"
    judge(log, hold, second, ann=REJECTED, bob=REJECTED)  # it can still be decided
    assert reasons_of(log, held_in(log, hold)[second]) == "(erased)"
    assert faults(log) == []


def test_what_has_prompts_is_for_its_owner_alone(tiny_run, tmp_path):
    (tmp_path / "terms.txt").write_text("star\n")
    before = os.umask(0)
    try:
        words = [
            "n=2",
            "tries=1",
            "duplicates=null",
            "policy=blocklist",
            f"policy.blocklist.file={tmp_path / 'terms.txt'}",
        ]
        log, hold = held(tiny_run, tmp_path, *words, command=synthesize, name="synthesize")
        generate(composed("generate", [f"ckpt={tiny_run}", PROMPTS, f"out={tmp_path / 'out'}", f"audit={log.file}",
                                       f"review={tmp_path / 'more'}", "recipe.steps=1", "device=cpu"]))  # fmt: skip
        assert audit(arguments(["tasks", str(log.file), str(tmp_path / "more"), "--out", str(tmp_path / "tasks")])) == 0
    finally:
        os.umask(before)
    for file in ("log", "log-wal", "tasks"):
        assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600, file
    assert stat.S_IMODE(hold.stat().st_mode) == 0o700
    assert (hold / "refused.jsonl").is_file()
    assert len(list((hold / "rejects").glob("*.png"))) == 1
    assert "They are kept in `hold/rejects`" in (hold / "README.md").read_text()
    left = {file.name for file in tmp_path.iterdir()} - {"log", "log-wal", "log-shm", "tasks", "terms.txt"}
    assert left == {"hold", "hold_costs.jsonl", "more", "more_costs.jsonl"}


def test_a_verdict_is_given_once_and_a_rejection_has_a_reason(tiny_run, tmp_path):
    log, hold = held(tiny_run, tmp_path)
    first, second = held_in(log, hold)
    judge(log, hold, first, ann=APPROVED)
    for reviewer, verdict, reason, fault in (
        ("ann", REJECTED, "no", "ann has given a verdict about entry 2 already"),
        ("bob", REJECTED, " ", "a rejection needs a reason"),
        ("bob", "maybe", "", "a verdict is approved or rejected, not 'maybe'"),
    ):
        with pytest.raises(ValueError, match=fault):
            give(log, held_in(log, hold)[first], reviewer, verdict, reason)
    judge(log, hold, first, bob=APPROVED)
    with pytest.raises(ValueError, match="is decided already, without eve"):
        judge(log, hold, first, eve=APPROVED)
    with pytest.raises(ValueError, match=r"has no held pictures of .*; it has those of .*hold"):
        held_in(log, tmp_path / "other")
    (hold / second).write_bytes((hold / first).read_bytes())
    judge(log, hold, second, ann=APPROVED, bob=APPROVED)
    with pytest.raises(ValueError, match="is not the file of entry 3"):
        run("release", log, hold)


@pytest.mark.slow
def test_the_first_two_equal_verdicts_decide_also_for_who_read_the_log_before(tiny_run, tmp_path):
    log, hold = held(tiny_run, tmp_path)
    file, other = held_in(log, hold)
    before = held_in(log, hold)[file]
    judge(log, hold, file, ann=REJECTED, bob=REJECTED)
    with pytest.raises(ValueError, match="is decided already, without eve"):
        give(log, before, "eve", APPROVED)
    with pytest.raises(ValueError, match="ann has given a verdict about entry 2 already"):
        give(log, before, "ann", APPROVED)
    assert held_in(log, hold)[other].state == PENDING
    verdicts = {"ann": REJECTED, "bob": APPROVED, "eve": REJECTED, "dan": APPROVED}  # whatever a log has
    assert replace(before, verdicts=verdicts).state == REJECTED
    assert faults(log) == []


def test_a_log_that_was_changed_releases_nothing(tiny_run, tmp_path):
    from .test_audit import changed

    log, hold = held(tiny_run, tmp_path)
    for file in held_in(log, hold):
        judge(log, hold, file, ann=REJECTED, bob=REJECTED)
    log.close()
    changed(tmp_path / "log", "UPDATE entries SET body=replace(body, '\"rejected\"', '\"approved\"')")
    with pytest.raises(ValueError, match="was changed, and nothing is released: entry"):
        run("release", AuditLog(tmp_path / "log"), hold)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_synthesized_set_is_released_as_a_whole(tiny_run, tmp_path):
    words = ["n=2", "checker=false", "duplicates=null"]
    log, hold = held(tiny_run, tmp_path, *words, command=synthesize, name="synthesize")
    first, second = held_in(log, hold)
    judge(log, hold, first, ann=APPROVED, bob=APPROVED)
    with pytest.raises(ValueError, match=r"1 of 2 pictures in .* are pending"):
        run("release", log, hold, "--partial")
    judge(log, hold, second, ann=REJECTED, bob=REJECTED)
    assert run("release", log, hold) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "reviewers approved 1, which are in this data set, and\nrejected 1," in card
    assert "ann and bob: 100.0% of 2 verdicts are equal" in card
    assert card.startswith("---\ntags: [synthetic]\npretty_name: out\n")
    assert len(list((tmp_path / "out" / "train").rglob("*.png"))) == 1
    assert (tmp_path / "out_grid.png").is_file()


def test_kappa_and_its_interval():
    """Two reviewers approve half of 100 pictures each, and give 80 the same verdict: by chance 50 would be equal, so
    that kappa is (0.8 - 0.5) / (1 - 0.5) = 0.6."""
    pairs = [(True, True)] * 40 + [(True, False)] * 10 + [(False, True)] * 10 + [(False, False)] * 40
    found = agreement_of(pairs)
    assert (found.count, found.share, found.kappa) == (100, pytest.approx(0.8), pytest.approx(0.6))
    assert 0.41 < found.interval[0] < 0.45
    assert 0.73 < found.interval[1] < 0.77  # by the large-sample error, 0.6 -+ 0.157
    assert np.isnan(agreement_of([(True, True)] * 5).kappa)
    assert agreement_of([(True, True)] * 5).interval[0] < 0  # five equal verdicts say little
    assert kappa_of(np.array([[0.0, 0.5], [0.5, 0.0]])) == pytest.approx(-1)
    with pytest.raises(ValueError, match="no picture that two reviewers judged"):
        agreement_of([])


def test_what_is_held_needs_a_log(tiny_run, tmp_path):
    words = [f"ckpt={tiny_run}", PROMPTS, f"out={tmp_path / 'out'}", f"review={tmp_path / 'hold'}"]
    with pytest.raises(ValueError, match="needs the log that keeps the verdicts: audit=LOG"):
        generate(composed("generate", words))


def test_two_reviewers_and_counts(tiny_run, tmp_path, capsys):
    """The table says nothing of a single verdict."""
    log, hold = held(tiny_run, tmp_path)
    first, _ = held_in(log, hold)
    judge(log, hold, first, ann=APPROVED)
    assert counts_of(held_in(log, hold)) == {PENDING: 2, APPROVED: 0, REJECTED: 0}
    assert run("verdicts", log, hold) == 0
    shown = capsys.readouterr().out
    assert "2 pending, 0 approved, 0 rejected" in shown
    assert "ann: 1 of 2" in shown
    judge(log, hold, first, bob=APPROVED)
    assert run("tasks", log, hold, "--out", str(tmp_path / "tasks.json")) == 0
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [len(task["annotations"]) for task in tasks] == [1, 0]
    assert tasks[0]["data"]["prompt"] == "a large red star on a black background"
    assert tasks[0]["data"]["image"].startswith("data:image/png;base64,")


def test_the_page_is_blind_escaped_and_only_at_its_address(tiny_run, tmp_path):
    from starlette.testclient import TestClient

    from dit.generation.review_page import page_of

    log, hold = held(tiny_run, tmp_path)
    first, second = held_in(log, hold).values()
    judge(log, hold, first.file, ann=REJECTED)
    pages = {name: TestClient(page_of(log, hold, name, "token")) for name in ("ann", "<b>bob</b>")}
    ann, bob = pages.values()
    assert f"entry {second.entry}," in ann.get("/token/").text
    seen = bob.get("/token/").text
    assert f"entry {first.entry}," in seen  # as if ann had given none
    assert "ann" not in seen
    assert "blurred" not in seen
    assert "&lt;b&gt;bob&lt;/b&gt;: 0 of 2 judged, 2 left for you" in seen
    assert bob.get(f"/token/picture/{first.entry}").content == (hold / first.file).read_bytes()
    for path, status in (("/", 404), ("/other/", 404), ("/token/picture/1", 404), ("/token/picture/../1", 404)):
        assert bob.get(path).status_code == status
    assert bob.post("/verdict", data={"entry": first.entry, "verdict": APPROVED}).status_code == 404
    for data, fault in (
        ({"entry": first.entry, "verdict": REJECTED}, "a rejection needs a reason"),
        ({"entry": 99, "verdict": APPROVED}, "is not the entry of a picture"),
        ({"entry": first.entry, "verdict": "maybe"}, "a verdict is approved or rejected"),
        ({"reason": "x" * 20_000}, "has more than 10000 bytes"),
    ):
        refused = bob.post("/token/verdict", data=data)
        assert refused.status_code in (400, 413)
        assert fault in refused.text
    whole = (hold / first.file).read_bytes()
    (hold / first.file).unlink()
    assert f"Left out, because the file is missing or changed: {first.file}" in bob.get("/token/").text
    assert f"entry {second.entry}," in bob.get("/token/").text
    assert run("tasks", log, hold, "--out", str(tmp_path / "tasks.json")) == 0
    assert [task["data"]["file"] for task in json.loads((tmp_path / "tasks.json").read_text())] == [second.file]
    (hold / first.file).write_bytes(whole)
    assert bob.post("/token/verdict", data={"entry": first.entry, "verdict": APPROVED}).url.path == "/token/"
    assert held_in(log, hold)[first.file].verdicts == {"ann": REJECTED, "<b>bob</b>": APPROVED}
    assert "has given a verdict" in bob.post("/token/verdict", data={"entry": first.entry, "verdict": APPROVED}).text
    assert faults(log) == []
