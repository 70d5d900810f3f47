"""Review of held pictures: verdicts are entries of the audit log, and a picture is decided when two reviewers agree.

A held picture lies in a holding folder, and its entry has the kind `pending`. Who opens the log's file can read all
verdicts; the review page shows nobody those of others.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dit.generation.agreement import Agreement, agreement_of
from dit.generation.audit import AuditLog, digest

AGREEING = 2  # reviewers
PENDING, APPROVED, REJECTED = "pending", "approved", "rejected"


@dataclass(frozen=True)
class Held:
    """A picture in a holding folder. entry: its number in the log; file: relative to the folder; body: of the entry;
    verdicts: by reviewer, in the order in which they were given; where: their entries."""

    entry: int
    file: str
    body: Mapping[str, Any]
    verdicts: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, int] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """pending until two reviewers agree; a third one decides where the first two do not. Later ones change nothing:
        the log may have them, as any program can append to it."""
        counts = Counter[str]()
        for verdict in self.verdicts.values():
            counts[verdict] += 1
            if counts[verdict] == AGREEING:
                return verdict
        return PENDING

    def waits_for(self, reviewer: str) -> bool:
        return self.state == PENDING and reviewer not in self.verdicts

    def is_in(self, folder: Path) -> bool:
        """Whether its file is there, as it was logged."""
        try:
            return bool(self.content(folder))
        except ValueError:
            return False

    def content(self, folder: Path) -> bytes:
        """Returns the content of its file. Raises ValueError if it is not the one that was logged."""
        file = folder / self.file
        content = file.read_bytes() if file.is_file() else b""
        if digest(content) != self.body["file_sha256"]:
            raise ValueError(
                f"{file} is missing or is not the file of entry {self.entry}; give back the file that was held"
            )
        return content


def holding_folder(folder: str | Path) -> Path:
    """Returns a holding folder, which is made if it is missing, and which only its owner can read."""
    found = Path(folder).absolute()
    try:
        found.mkdir(parents=True, exist_ok=True)
        found.chmod(0o700)
    except OSError as error:
        raise ValueError(f"review={folder} cannot be a holding folder: {error.strerror or error}") from None
    return found


def held_in(log: AuditLog, folder: Path, empty: bool = False) -> dict[str, Held]:
    """Returns the held pictures of a folder by their file, in the order of the log, with their verdicts. A picture that
    was made again, after a kill, keeps its verdicts if it has the same pixels. Raises ValueError if there are none,
    unless it may be `empty`."""
    hold, others = str(folder.absolute()), dict[str, None]()
    found, files = dict[str, Held](), dict[int, str]()
    for number, body in parsed(log):
        if body["kind"] == PENDING:
            others[body["hold"]] = None
            if body["hold"] == hold:
                earlier, new = found.get(body["file"]), Held(number, body["file"], body)
                if earlier is not None and earlier.body["pixels_sha256"] == body["pixels_sha256"]:
                    new = replace(new, verdicts=earlier.verdicts, where=earlier.where)
                found[new.file], files[number] = new, new.file
        elif body["kind"] == "verdict" and body["of"] in files:
            held, reviewer = found[files[body["of"]]], body["reviewer"]
            if body["pixels_sha256"] == held.body["pixels_sha256"] and reviewer not in held.verdicts:
                verdicts = {**held.verdicts, reviewer: body["verdict"]}
                found[held.file] = replace(held, verdicts=verdicts, where={**held.where, reviewer: number})
    if not found and not empty:
        known = f"it has those of {', '.join(others)}" if others else "make some with review=FOLDER"
        raise ValueError(f"{log.file} has no held pictures of {hold}; {known}")
    return found


def parsed(log: AuditLog) -> Any:
    """Yields the number and the body of every entry."""
    for number, body, _ in log.entries():
        yield number, json.loads(body)


def give(log: AuditLog, held: Held, reviewer: str, verdict: str, reason: str = "") -> None:
    """Appends a verdict. Raises ValueError for a second one of a reviewer, about a picture that is decided, also if the
    log has that only since `held` was read, and for a rejection without a reason."""

    def check() -> None:
        now = held_in(log, Path(held.body["hold"]))[held.file]
        if reviewer in now.verdicts:
            raise ValueError(f"{reviewer} has given a verdict about entry {held.entry} already; it stays")
        if now.state != PENDING:
            raise ValueError(f"entry {held.entry} is decided already, without {reviewer}")

    if verdict not in (APPROVED, REJECTED):
        raise ValueError(f"a verdict is {APPROVED} or {REJECTED}, not {verdict!r}")
    if verdict == REJECTED and not reason.strip():
        raise ValueError("a rejection needs a reason")
    body = {"of": held.entry, "pixels_sha256": held.body["pixels_sha256"], "reviewer": reviewer, "verdict": verdict}
    # A reason may quote the prompt: it is erased with it, and not kept if that is erased already.
    erased = log.entry(held.entry)["texts"] is None
    texts = {"reason": reason.strip()} if reason.strip() and not erased else None
    log.append("verdict", held.body["subject"], body, texts, check)


def reasons_of(log: AuditLog, held: Held) -> str:
    """Returns why a picture is rejected, in the words of those who rejected it."""
    entries = [log.entry(held.where[name]) for name, verdict in held.verdicts.items() if verdict == REJECTED]
    reasons = dict.fromkeys(entry["texts"]["reason"] if entry["texts"] else "(erased)" for entry in entries)
    return "; ".join(reasons)


def log_release(log: AuditLog, held: Held, file: str) -> None:
    """Appends the entry of a picture that is given out. Raises ValueError unless it is approved."""
    if held.state != APPROVED:
        raise ValueError(f"entry {held.entry} is {held.state}: it cannot be delivered")
    same = {name: held.body[name] for name in ("pixels_sha256", "file_sha256")}
    log.append("release", held.body["subject"], {"of": held.entry, "file": file, **same})


def counts_of(pictures: Mapping[str, Held]) -> dict[str, int]:
    """Returns the number of pictures in each state."""
    states = [held.state for held in pictures.values()]
    return {state: states.count(state) for state in (PENDING, APPROVED, REJECTED)}


def agreements_of(pictures: Mapping[str, Held]) -> dict[tuple[str, str], Agreement]:
    """Returns the agreement of each two reviewers, over the pictures of which they gave the first two verdicts: those
    that a third one sees are the ones on which two did not agree."""
    pairs = defaultdict(list)
    for held in pictures.values():
        if len(held.verdicts) >= AGREEING:
            first, second = sorted(list(held.verdicts)[:2])
            pairs[first, second].append((held.verdicts[first] == APPROVED, held.verdicts[second] == APPROVED))
    return {names: agreement_of(found) for names, found in sorted(pairs.items())}
