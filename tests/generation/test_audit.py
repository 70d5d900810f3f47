"""The audit log: every change is found and named, texts are erased, processes append at once, pictures are made again."""

import json
import os
import sqlite3
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dit.cli.audit import arguments, audit
from dit.cli.generate import generate
from dit.files import sha256_of
from dit.generation.audit import AuditLog, faults
from dit.generation.audit_checkpoint import signing_key
from dit.generation.audited import Audited
from dit.generation.audited import replay as again
from dit.generation.delivery import Delivery
from dit.generation.duplicates import Pdq
from dit.generation.encoding import Encoding
from dit.generation.reviews import holding_folder

from ..conftest import ROOT, composed


def written(file, count=3):
    log = AuditLog(file)
    for number in range(count):
        log.append("delivery", f"subject {number % 2}", {"seed": number, "score": 0.5}, {"prompt": f"prompt {number}"})
    return log


def changed(file, statement, *values):
    """Changes a log as its owner could, around the triggers."""
    base = sqlite3.connect(file)
    held = base.execute("SELECT name, sql FROM sqlite_master WHERE type='trigger'").fetchall()
    for name, _ in held:
        base.execute(f"DROP TRIGGER {name}")
    base.execute(statement, values)
    for _, sql in held:
        base.execute(sql)
    base.commit()
    base.close()


def test_a_log_that_was_not_changed_has_no_fault(tmp_path):
    log = written(tmp_path / "log")
    assert faults(log) == []
    assert [json.loads(body)["kind"] for _, body, _ in log.entries()] == [
        "key",
        "delivery",
        "key",
        "delivery",
        "delivery",
    ]
    assert log.entry(2)["texts"] == {"prompt": "prompt 0"}


PLACES = [
    ("entries", "body", 5),
    ("entries", "hash", 5),
    ("texts", "nonce", 3),
    ("texts", "ciphertext", 3),
    ("keys", "key", 2),
]


@pytest.mark.parametrize(("table", "column", "rows"), PLACES, ids=lambda x: str(x))
def test_a_flipped_byte_is_found_and_named(tmp_path, table, column, rows):
    """The first, a middle and the last byte of every row."""
    written(tmp_path / "log").close()
    whole = (tmp_path / "log").read_bytes()
    for row in range(rows):
        for place in (0, 0.5, 1):
            (tmp_path / "log").write_bytes(whole)
            base = sqlite3.connect(tmp_path / "log")
            key, value = base.execute(
                f"SELECT rowid, {column} FROM {table} ORDER BY rowid LIMIT 1 OFFSET {row}"
            ).fetchone()
            base.close()
            data = bytearray(value.encode() if isinstance(value, str) else value)
            data[int(place * (len(data) - 1))] ^= 1
            new = data.decode() if isinstance(value, str) else bytes(data)
            changed(tmp_path / "log", f"UPDATE {table} SET {column}=? WHERE rowid=?", new, key)
            found = faults(AuditLog(tmp_path / "log"))
            name = {"entries": f"entry {key}:", "texts": f"texts of entry {key} ", "keys": "the key of the subject"}[
                table
            ]
            assert any(name in fault for fault in found), (row, place, found)


def test_a_byte_flipped_in_the_file_is_found_or_changes_nothing(tmp_path):
    """Every 13th byte of the file, whatever sqlite keeps there."""
    log = written(tmp_path / "log")
    intact = list(log.entries())
    log.close()
    whole, missed = (tmp_path / "log").read_bytes(), []
    for place in range(0, len(whole), 13):
        data = bytearray(whole)
        data[place] ^= 0x40
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / "log").write_bytes(data)
        try:
            again = AuditLog(tmp_path / "log", make=False)
            if not faults(again) and (
                list(again.entries()) != intact or again.entry(2)["texts"] != {"prompt": "prompt 0"}
            ):
                missed.append(place)
            again.close()
        except ValueError:
            continue
    assert missed == []


@pytest.mark.parametrize(("statement", "message"), [
    ("DELETE FROM entries WHERE id=3", "entry 3 is missing"),
    ("DELETE FROM texts WHERE id=4", "texts of entry 4 are missing"),
    ("DELETE FROM keys WHERE subject='subject 1'", "key of the subject 'subject 1' is missing"),
    ("UPDATE keys SET key=NULL WHERE subject='subject 1'", "key of the subject 'subject 1' is not the one"),
    ("UPDATE keys SET subject='other' WHERE subject='subject 1'", "key of the subject 'other' is not the one"),
    ("INSERT INTO texts VALUES (99, x'00', x'00')", "texts of entry 99 are changed"),
    ("CREATE TABLE more (a)", "the tables or the triggers"),
])  # fmt: skip
def test_other_changes_are_named(tmp_path, statement, message):
    written(tmp_path / "log").close()
    changed(tmp_path / "log", statement)
    assert any(message in fault for fault in faults(AuditLog(tmp_path / "log")))


@pytest.mark.parametrize("statement", [
    "UPDATE entries SET body='{}'", "DELETE FROM entries", "DELETE FROM texts", "UPDATE texts SET nonce=x'00'",
    "DELETE FROM keys", "UPDATE keys SET key=x'00'",
])  # fmt: skip
def test_the_database_itself_forbids_changes(tmp_path, statement):
    log = written(tmp_path / "log")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        log._base.execute(statement)


def test_texts_are_erased_and_the_chain_still_checks(tmp_path):
    log = written(tmp_path / "log")
    key = log._base.execute("SELECT key FROM keys WHERE subject='subject 0'").fetchone()[0]
    log.erase("subject 0")
    assert faults(log) == []
    assert log.entry(2)["texts"] is None
    assert log.entry(4)["texts"] == {"prompt": "prompt 1"}
    assert not [file for file in tmp_path.iterdir() if key in file.read_bytes() or b"prompt 0" in file.read_bytes()]
    with pytest.raises(ValueError, match="is erased; use another name"):
        log.append("delivery", "subject 0", {}, {"prompt": "x"})
    with pytest.raises(ValueError, match="nothing to erase"):
        log.erase("subject 0")


def test_several_processes_append_at_once(tmp_path):
    code = (
        "import sys; from dit.generation.audit import AuditLog; log = AuditLog(sys.argv[1])\n"
        "for i in range(25): log.append('delivery', sys.argv[2], {'seed': i}, {'prompt': 'x'})"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "log")]
    for process in [subprocess.Popen([*words, f"s{n}"], cwd=ROOT) for n in range(3)]:
        assert process.wait(120) == 0
    log = AuditLog(tmp_path / "log")
    assert log.head()[0] == 78  # 75 deliveries and three keys
    assert faults(log) == []


def test_a_full_disk_and_another_version_are_one_line(tmp_path):
    log = written(tmp_path / "log")
    pages = log._base.execute("PRAGMA page_count").fetchone()[0]
    log._base.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(ValueError, match=r"cannot be read or written: database or disk is full$"):
        log.append("delivery", "subject 0", {}, {"prompt": "x" * 100_000})
    assert faults(log) == []
    log._base.execute("PRAGMA user_version=9")
    log.close()
    with pytest.raises(ValueError, match="version 9, and this is 1"):
        AuditLog(tmp_path / "log")
    (tmp_path / "text").write_text("not a log" * 1000)
    with pytest.raises(ValueError, match="is not a database"):
        AuditLog(tmp_path / "text")


@pytest.mark.parametrize("verb", [["check"], ["show"], ["export", "--key", "key.pem", "--out", "point.json"]])
def test_an_emptied_log_is_no_log_and_is_not_written_to(tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").touch()
    with pytest.raises(ValueError, match="log is no audit log: it is empty"):
        audit(arguments([verb[0], "log", *verb[1:]]))
    assert [(file.name, file.stat().st_size) for file in tmp_path.iterdir()] == [("log", 0)]


def test_a_damaged_table_is_one_line_in_every_verb(tmp_path):
    written(tmp_path / "log").close()
    base = sqlite3.connect(tmp_path / "log")
    base.execute("DROP TABLE entries")
    base.close()
    log = AuditLog(tmp_path / "log", make=False)
    for read in (log.head, lambda: list(log.entries()), lambda: log.entry(1)):
        with pytest.raises(ValueError, match="cannot be read or written: no such table: entries"):
            read()
    assert "the database is damaged" in faults(log)[-1]


def test_a_checkpoint_shows_a_log_that_was_cut_off_or_rebuilt(tmp_path, capsys):
    written(tmp_path / "log").close()
    export = [
        "export",
        str(tmp_path / "log"),
        "--key",
        str(tmp_path / "key.pem"),
        "--out",
        str(tmp_path / "point.json"),
    ]
    assert audit(arguments(export)) == 0
    check = ["--checkpoint", str(tmp_path / "point.json")]
    written(tmp_path / "log").close()  # more entries
    assert audit(arguments(["check", str(tmp_path / "log"), *check])) == 0
    written(tmp_path / "short", 1).close()
    written(tmp_path / "rebuilt", 9).close()
    for other, message in (("short", "the log ends at entry 2"), ("rebuilt", "the log was rebuilt")):
        assert faults(AuditLog(tmp_path / other)) == []  # the chain alone does not show it
        assert audit(arguments(["check", str(tmp_path / other), *check])) == 1
        assert message in capsys.readouterr().out
    held = json.loads((tmp_path / "point.json").read_text())
    (tmp_path / "point.json").write_text(json.dumps(held | {"entries": 2}))
    assert audit(arguments(["check", str(tmp_path / "log"), *check])) == 1
    assert "not signed with that key, or changed" in capsys.readouterr().out


def test_a_new_signing_key_is_never_readable_by_others(tmp_path, monkeypatch):
    """Also not before the first byte is written; the umask is open."""
    modes, opened, before = [], os.open, os.umask(0)

    def watched(path, *rest, **options):
        handle = opened(path, *rest, **options)
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    monkeypatch.setattr(os, "open", watched)
    monkeypatch.setattr("dit.files.write_atomic", None)
    try:
        key = signing_key(tmp_path / "key.pem")
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert signing_key(tmp_path / "key.pem").public_key() == key.public_key()


PROMPTS = "prompts=[a large red star on a black background,a small blue circle on a white background]"


def test_generate_logs_and_its_pictures_are_made_again(tiny_run, tmp_path, capsys):
    (tmp_path / "terms.txt").write_text("star\n")
    words = [f"ckpt={tiny_run}", PROMPTS, "seeds=[0,1]", "recipe.steps=2", f"out={tmp_path / 'out'}", "device=cpu"]
    policy = ["policy=blocklist", f"policy.blocklist.file={tmp_path / 'terms.txt'}", f"audit={tmp_path / 'log'}"]
    generate(composed("generate", [*words, *policy]))
    log = AuditLog(tmp_path / "log", make=False)
    assert faults(log) == []
    bodies = [json.loads(body) for _, body, _ in log.entries()]
    assert [body["kind"] for body in bodies] == ["key", "refusal", "refusal", "delivery", "delivery"]
    assert "star" not in "".join(map(json.dumps, bodies))  # prompts are encrypted, and not quoted elsewhere
    assert [one["allowed"] for body in bodies[1:] for one in body["decisions"]] == [False, False, True, True]
    entry = log.entry(4)
    with Image.open(tmp_path / "out" / entry["file"]) as picture:
        assert entry["texts"]["prompt"] == picture.text["prompt"]
        assert entry["pixels_sha256"] == picture.text["pixels_sha256"]
        pixels = np.asarray(picture).transpose(2, 0, 1)
    assert entry["file_sha256"] == sha256_of(tmp_path / "out" / entry["file"])
    assert bytes.fromhex(entry["pdq"]) == Pdq().describe(pixels[None])[0].tobytes()
    assert "pdq" not in log.entry(2)  # a refusal has no picture
    replay = ["replay", str(tmp_path / "log"), "5", "--picture", str(tmp_path / "out" / log.entry(5)["file"])]
    assert audit(arguments(replay)) == 0
    assert "differs by at most" in capsys.readouterr().out
    elsewhere = log.entry(5)
    elsewhere["texts"]["config"]["device"] = "cuda:31"  # the GPU of a process of another machine
    with Image.open(tmp_path / "out" / elsewhere["file"]) as picture:
        assert again(elsewhere, torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)) <= 1
    foreign = log.entry(5)  # of a log that somebody else wrote: it consents to its own code, which must not count
    foreign["texts"]["config"] |= {"trust": ["theirs"], "marks": {"_target_": "theirs.Mark"}}
    with pytest.raises(ValueError, match=r"marks.*theirs\.Mark"):
        again(foreign)
    with pytest.raises(ValueError, match="only a delivery can be made again"):
        audit(arguments(["replay", str(tmp_path / "log"), "2"]))
    assert audit(arguments(["erase", str(tmp_path / "log"), "local"])) == 0
    with pytest.raises(ValueError, match="is erased; its picture cannot be made again"):
        audit(arguments(replay))


def test_a_negative_prompt_that_is_refused_has_an_entry(tiny_run, tmp_path):
    (tmp_path / "terms.txt").write_text("star\n")
    words = [f"ckpt={tiny_run}", PROMPTS, f"out={tmp_path / 'out'}", "recipe.negative=a star", "guidance.scale=2"]
    policy = ["policy=blocklist", f"policy.blocklist.file={tmp_path / 'terms.txt'}", f"audit={tmp_path / 'log'}"]
    with pytest.raises(ValueError, match=r"negative='a star' is refused by policy.blocklist"):
        generate(composed("generate", [*words, *policy]))
    entry = AuditLog(tmp_path / "log", make=False).entry(2)
    assert (entry["kind"], entry["name"], entry["texts"]["prompt"]) == ("refusal", "negative", "a star")


def test_a_held_file_of_the_server_is_there_before_its_entry_and_not_without_one(tmp_path):
    """A picture whose entry cannot be written leaves no file."""
    log, hold, files = AuditLog(tmp_path / "log"), holding_folder(tmp_path / "hold"), []
    audited = Audited(Delivery(), log, "local", {}, hold)
    row, png = {"prompt": "x", "name": "seed_0"}, Encoding().file(torch.zeros(3, 32, 32, dtype=torch.uint8), {})

    def full(*given):
        files.extend(hold.iterdir())
        raise ValueError("the disk is full")

    log.append = full
    with pytest.raises(ValueError, match="the disk is full"):
        audited.log(row, [], png, {"file": "a.png"})
    assert files == [hold / "a.png"]
    assert not list(hold.iterdir())


def test_nothing_is_delivered_without_its_entry(tiny_run, tmp_path, monkeypatch):
    def full(self, *args):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(AuditLog, "_insert", full)
    words = [f"ckpt={tiny_run}", PROMPTS, "recipe.steps=1", f"out={tmp_path / 'out'}", f"audit={tmp_path / 'log'}"]
    with pytest.raises(ValueError, match="disk is full"):
        generate(composed("generate", words))
    assert not list((tmp_path / "out").rglob("*.png"))
