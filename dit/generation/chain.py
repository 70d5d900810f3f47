"""From a picture to all that it came from: credentials, log, entry, weights, run, training data; each link checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from dit.checkpoints.native import read_run_config
from dit.errors import first_line
from dit.files import read_json, sha256_of
from dit.generation.audit import AuditLog, faults
from dit.generation.audit_checkpoint import checkpoint_faults
from dit.generation.credentials import Credentials, read_credentials
from dit.generation.model import weights_hash
from dit.generation.reviews import PENDING
from dit.generation.rows import pixels_sha256
from dit.picture_files import read
from dit.plain_values import plain
from dit.runs import Run, load_run

Entry = Mapping[str, Any]
# How weights were loaded, where the entry does not say it any more.
DEFAULTS: dict[str, Any] = {"weights": "ema", "adapters": None, "adapter_scale": 1}


@dataclass(frozen=True)
class Link:
    """closed: whether it was checked and holds. text: what was found, and what to do if it is open."""

    name: str
    closed: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok' if self.closed else 'OPEN':<4}  {self.name}: {self.text}"


def links(
    log: AuditLog,
    picture: Path,
    anchors: Path | None = None,
    ckpt: str | None = None,
    checkpoint: Path | None = None,
    public_key: str | None = None,
    trust: Sequence[str] = (),
) -> Iterator[Link]:
    """Yields the links in order, each checked by hashes, and ends where one cannot be followed further. anchors:
    certificates that are trusted. ckpt: the run, if it is not where the entry says. checkpoint, public_key: of the log,
    kept by somebody else. trust: packages from outside dit whose code the run may name. Raises ValueError for a file
    that is no picture."""
    pixels = pixels_sha256(torch.from_numpy(read(picture)))
    credentials, link = credentials_link(picture, pixels, anchors)
    yield link
    yield log_link(log, checkpoint, public_key)
    entry, link = entry_link(log, picture, pixels, credentials)
    yield link
    if entry is None:
        return
    run, link = weights_link(entry, ckpt, trust)
    yield link
    if run is None:
        return
    yield run_link(run)
    yield data_link(run)
    yield manifest_link(run)


def credentials_link(picture: Path, pixels: str, anchors: Path | None) -> tuple[Credentials | None, Link]:
    def link(closed: bool, text: str) -> Link:
        return Link("credentials", closed, text)

    try:
        found = read_credentials(picture, anchors)
    except ValueError as error:
        return None, link(False, str(error))
    if found.state == "missing":
        lost = "none in the file; saving a picture again loses them, and generate writes them with certificate=FILE"
        return None, link(False, f"{lost} certificate_key=FILE. The pixels are looked for in the log")
    if found.state == "unreadable":
        return found, link(False, f"they cannot be read: {', '.join(found.problems)}")
    if found.state == "changed":
        return found, link(False, f"the file was changed after it was signed ({', '.join(found.problems)})")
    if found.fields.get("pixels_sha256") != pixels:
        return found, link(False, "they are those of other pixels; get the file that was delivered")
    if anchors is not None and found.state != "trusted":
        return found, link(False, f"signed by {found.signer}, whom {anchors} does not trust")
    trust = "trusted" if anchors is not None else "give --anchors FILE to see whether that signer is trusted"
    return found, link(True, f"{found.manifest} signed by {found.signer}, {trust}")


def log_link(log: AuditLog, checkpoint: Path | None, public_key: str | None) -> Link:
    found = faults(log)
    if not found and checkpoint is not None:
        found = checkpoint_faults(log, checkpoint, public_key)
    if found:
        return Link("log", False, found[0])
    against = f"fits {checkpoint}" if checkpoint else "give --checkpoint FILE to see that it was not rebuilt"
    return Link("log", True, f"{log.head()[0]} entries are as they were written; {against}")


def entry_link(log: AuditLog, picture: Path, pixels: str, credentials: Credentials | None) -> tuple[Entry | None, Link]:
    found, released = list[dict[str, Any]](), set[int]()
    for _, text, _ in log.entries():
        if pixels in text:
            body = json.loads(text)
            if body["kind"] in ("delivery", PENDING) and body.get("pixels_sha256") == pixels:
                found.append(body)
            elif body["kind"] == "release":
                released.add(body["of"])
    if not found:
        missing = f"no entry has these pixels (SHA-256 {pixels}): the picture was changed, or is of another log"
        return None, Link("entry", False, missing)
    of_file = sha256_of(picture)
    same = [body for body in found if body.get("file_sha256") == of_file] or found
    entry = log.entry(same[-1]["id"])
    say = f"{entry['id']} of {entry['time']}, {'held for a review' if entry['kind'] == PENDING else 'delivered'}"
    if credentials is not None and entry.get("manifest", credentials.manifest) != credentials.manifest:
        return entry, Link("entry", False, f"{say} with other credentials, {entry['manifest']}")
    if "file_sha256" not in entry:
        return entry, Link("entry", False, f"{say} by dit {entry['version']}, which logged no hash of the file")
    if entry["file_sha256"] != of_file:
        return entry, Link("entry", False, f"{say}: these pixels in another file; get the file that was delivered")
    if entry["kind"] == PENDING and entry["id"] not in released:
        return entry, Link("entry", False, f"{say} and not released: it must not be used")
    say += " and released" if entry["kind"] == PENDING else ""
    return entry, Link("entry", True, f"{say}; pixels and file have its hashes")


def weights_link(entry: Entry, ckpt: str | None, trust: Sequence[str] = ()) -> tuple[Run | None, Link]:
    config: dict[str, Any] = DEFAULTS if entry["texts"] is None else DEFAULTS | entry["texts"]["config"]
    places = [ckpt] if ckpt else [entry["model"], config.get("ckpt")]  # the server's model is a name
    found = [place for place in places if isinstance(place, str) and Path(place).exists()]
    if not found:
        where = ", ".join(str(place) for place in dict.fromkeys(places) if place)
        return None, Link("weights", False, f"{where} is not there; say where the run is: --ckpt RUN")
    try:
        run = load_run(found[0], config["weights"], "cpu", trust, config["adapters"])
        run.scale_adapters(config["adapter_scale"])
    except ValueError as error:
        return None, Link("weights", False, f"they cannot be read: {str(error).replace('say trust=', 'say --trust ')}")
    now = weights_hash(run, config["adapter_scale"])
    if now != entry["weights"]:
        erased = "; the settings with which they were loaded are erased" if entry["texts"] is None else ""
        return None, Link("weights", False, f"{run.path} has {now}, the entry {entry['weights']}{erased}: --ckpt RUN")
    return run, Link("weights", True, f"{run.path}, step {run.step}, has {now}, as in the entry")


def run_link(run: Run) -> Link:
    folder = run.path.parents[1]
    file = folder / "config.yaml"
    try:
        same = read_run_config(file) == plain(run.config)
    except ValueError as error:
        return Link("run", False, f"{first_line(error)}; give back {file}")
    if not same:
        return Link("run", False, f"{file} is not the config in {run.path.name}; give back the file of the training")
    recorded = read_json(folder / "environment.json", nan=True) if (folder / "environment.json").is_file() else {}
    commit = f"at commit {recorded['git_commit']}" if recorded.get("git_commit") else "at a commit that is not recorded"
    return Link("run", True, f"{folder} {commit}; config.yaml, SHA-256 {sha256_of(file)}, is that of the weights")


def data_link(run: Run) -> Link:
    folder = run.path.parents[1]
    file = folder / "environment.json"
    recorded = read_json(file, nan=True).get("data", {}) if file.is_file() else {}
    if not recorded:
        return Link("data", False, f"{file} does not record them: train with this version")
    try:
        now = instantiate(run.config.data.module).description
    except (ValueError, OSError, OmegaConfBaseException) as error:
        return Link("data", False, f"they cannot be read: {first_line(error)}; give back the files of the training")
    then = {name: found.get("fingerprint") for name, found in recorded.items()}
    other = [name for name, hashed in then.items() if now.get(name, {}).get("fingerprint") != hashed]
    if other:
        return Link("data", False, f"{', '.join(other)} changed since the training; give back its files")
    return Link("data", True, ", ".join(f"{name} {hashed}" for name, hashed in then.items()) + ", as in the training")


def manifest_link(run: Run) -> Link:
    """The rows that were used, with their licences, as `provenance` writes them."""
    folder, name = run.path.parents[1], f"{run.path.parents[1].name}/{run.path.name}"
    summary, rows = folder / "provenance" / "summary.json", folder / "provenance" / "rows.parquet"
    make = f"python -m dit.cli.provenance ckpt={run.path}"
    if not summary.is_file() or not rows.is_file():
        return Link("data manifest", False, f"{rows.parent} has none; write it: {make}")
    held, [listed] = read_json(summary), read_json(rows.parent / "croissant.json")["distribution"]
    if (held["checkpoint"], held["step"]) != (name, run.step):
        return Link("data manifest", False, f"{rows.parent} is that of {held['checkpoint']}; write it again: {make}")
    hashed = hashlib.sha256(rows.read_bytes()).hexdigest()
    if hashed != listed["sha256"]:
        return Link("data manifest", False, f"{rows} was changed; write it again: {make}")
    licences = ", ".join(f"{name} ({found['rows']})" for name, found in held["licences"].items())
    return Link("data manifest", True, f"{held['rows']} rows, SHA-256 {hashed}; licences: {licences}")
