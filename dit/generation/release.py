"""From a holding folder to the folder that was asked for: approved pictures only, each release with its entry."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from dit.errors import some
from dit.files import locked, read_json, sha256_of, write_atomic
from dit.generation.audit import AuditLog, faults
from dit.generation.encoding import Encoding
from dit.generation.output import LOCK, MANIFEST, PLAN, TABLE, Output, rows_in
from dit.generation.reviews import (
    APPROVED,
    PENDING,
    REJECTED,
    Held,
    agreements_of,
    counts_of,
    held_in,
    log_release,
    reasons_of,
)
from dit.generation.rows import Row, json_of
from dit.generation.sheet import write_sheet
from dit.generation.work import Table
from dit.generation.writers import WRITERS, Add

CARD = "README.md"  # of a synthesized data set


def release(log: AuditLog, hold: Path, some_only: bool = False) -> tuple[Path, dict[str, int]]:
    """Writes the approved pictures of a holding folder of generate or synthesize to the folder of its command, in its
    format, and returns that folder and the number of pictures in each state. The holding folder stays as it is.

    A folder of an earlier release from which some were left out is written anew when more of them are decided.

    some_only: leave pending pictures out. Raises ValueError if some are pending, for a synthesized data set also with
    `some_only`, if the log or a file was changed, and if the folder has pictures of another call."""
    if not (hold / MANIFEST).is_file():
        raise ValueError(f"{hold} has no {MANIFEST}: it is not finished, repeat the command; or it is of the server")
    if found := faults(log):
        raise ValueError(f"{log.file} was changed, and nothing is released: {found[0]}")
    manifest, pictures = read_json(hold / MANIFEST), held_in(log, hold)
    fields, rows = manifest["fields"], list(rows_in(hold / TABLE))
    synthesized = any("label" in row for row in rows)
    check_unchanged(log, hold, manifest["files"], rows, pictures)
    check_decided([pictures.get(row["file"]) for row in rows if "file" in row], hold, some_only and not synthesized)
    out = Path(fields["out"])
    states = {file: held.state for file, held in pictures.items()}
    writer = WRITERS[fields["format"]](out, Encoding(**fields.get("encoding", {})))
    output = Output(Table(len(rows), fields["shard_size"]), writer, fields | {"review": states})
    output.begin(manifest["batch_sizes"], False, grown(output))
    if output.finished:  # every picture is there, and has its entry
        return out, counts_of(pictures)
    for shard in range(output.work.shards):
        if not output.done(shard):
            picked = [rows[index] for index in output.work.rows(shard)]
            with output.writer.shard(shard) as add:
                kept = list(released(log, hold, pictures, picked, add, partial(output.writer.file_of, shard)))
            costs = [cost_of(row, pictures.get(row.get("file", ""))) for row in picked]
            for kind, table in (("cost", costs), ("jsonl", kept)):
                write_atomic(output.part(shard, kind), "".join(json_of(row) + "\n" for row in table))
    with locked(output.file(LOCK)):
        if not output.finished:
            write_sheet(output, fields["sheet"])
            if synthesized:
                card = (hold / CARD).read_text(encoding="utf-8")
                write_atomic(out / CARD, card + section(pictures))
            output.finish()
        shutil.rmtree(output.unfinished, ignore_errors=True)
    return out, counts_of(pictures)


def check_unchanged(
    log: AuditLog, hold: Path, files: Mapping[str, str], rows: Sequence[Row], pictures: Mapping[str, Held]
) -> None:
    """Raises ValueError if the tables of a holding folder, with their SHA-256 in `files`, or the files of its approved
    pictures are not those that were written, or a row says something else than the entry of its picture."""
    for name, hashed in files.items():
        if not (hold / name).is_file() or sha256_of(hold / name) != hashed:
            raise ValueError(f"{hold / name} is missing or was changed, and nothing is released; give back the file")
    for row in rows:
        held = pictures.get(row.get("file", ""))
        if held is None:
            continue
        texts = log.entry(held.entry)["texts"]
        logged = {**held.body, **(texts or {})}
        names = [name for name in row if name != "index" and (texts is not None or name in logged)]
        if differing := [name for name in names if name not in logged or logged[name] != row[name]]:
            where = f"the row of {row['file']} in {hold / TABLE} is not that of entry {held.entry}"
            raise ValueError(f"{where}, and nothing is released: it differs in {', '.join(differing)}")
        if held.state == APPROVED:
            held.content(hold)


def grown(output: Output) -> bool:
    """Whether the folder has an earlier release of the same pictures, of which some were pending and are not now."""
    file = output.file(MANIFEST) if output.finished else output.unfinished / PLAN
    found = read_json(file).get("fields", {}) if file.is_file() else {}
    before, now = found.get("review", {}), output.fields["review"]
    return found | {"review": now} == output.fields and all(
        state in (PENDING, now.get(of)) for of, state in before.items()
    )


def check_decided(found: list[Held | None], hold: Path, some_only: bool) -> None:
    """Raises ValueError if pictures are not in the log, or are pending and may not be."""
    if None in found:
        raise ValueError(f"{found.count(None)} pictures of {hold} have no entry in the log: they cannot be delivered")
    pending = [held.file for held in found if held is not None and held.state == PENDING]
    if pending and not some_only:
        raise ValueError(
            f"{len(pending)} of {len(found)} pictures in {hold} are pending ({some(pending, 3)}): two reviewers must "
            f"agree about each; --partial leaves them out, but not from a synthesized data set"
        )


def released(
    log: AuditLog,
    hold: Path,
    pictures: Mapping[str, Held],
    rows: Sequence[Row],
    add: Add,
    file_of: Callable[[str], str],
) -> Iterator[Row]:
    """Yields the rows of a shard as they are delivered, after an entry for each picture that is."""
    for row in rows:
        held = pictures.get(row.get("file", ""))
        if held is None or held.state == PENDING:
            yield row if held is None else without_file(row, "pending")
        elif held.state == REJECTED:
            yield without_file(row, f"rejected: {reasons_of(log, held)}")
        else:
            new, png = row | {"file": file_of(row["name"])}, held.content(hold)
            log_release(log, held, new["file"])
            add(new, png)
            yield new


def cost_of(row: Row, held: Held | None) -> Row:
    """Returns the row of the table of costs."""
    return {"index": row["index"], "name": row["name"], **(held.body.get("cost", {}) if held is not None else {})}


def without_file(row: Row, why: str) -> Row:
    return {name: value for name, value in row.items() if name != "file"} | {"rejected": f"review: {why}"}


def section(pictures: Mapping[str, Held]) -> str:
    """Returns what a data card says of the review."""
    counts, agreements = counts_of(pictures), agreements_of(pictures)
    lines = "\n".join(f"- {' and '.join(names)}: {found}." for names, found in agreements.items())
    return f"""
## Review

Of the pictures that are counted above as kept, reviewers approved {counts[APPROVED]}, which are in this data set, and
rejected {counts[REJECTED]}, whose reasons are in `{TABLE}`. A picture is decided when two reviewers agree; neither
sees the verdict of the other. Agreement, with Cohen's kappa and its 95 % interval:

{lines}
"""
