"""The folder of a call: its plan, what is finished, its tables and its manifest.

While it is written, OUT/unfinished has the plan and the rows of every finished shard. At the end the rows become
OUT/generated.jsonl, OUT/manifest.json is written last, and OUT/unfinished is removed. What each picture cost is in
OUT_costs.jsonl next to it, because the files of OUT are the same each time, and a measured cost is not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from dit.files import locked, parse_json, read_json, replacing, sha256_of, write_atomic
from dit.generation.rows import Row, json_of
from dit.generation.writers import WRITERS, Writer

FORMAT = 1
MANIFEST, TABLE, UNFINISHED, PLAN, LOCK = "manifest.json", "generated.jsonl", "unfinished", "plan.json", ".lock"
BatchSizes = Sequence[Sequence[int]]  # by model and size


class Shards(Protocol):
    """What is made, in shards: pictures by index, of which each shard has a range."""

    @property
    def shards(self) -> int: ...

    def __len__(self) -> int: ...

    def rows(self, shard: int) -> range: ...


class Output:
    """The folder of a call. fields: all that decides its files, besides the batch sizes, by name. Several processes of
    one call may use it."""

    def __init__(self, work: Shards, writer: Writer, fields: Mapping[str, Any]) -> None:
        self.work, self.writer, self.folder = work, writer, writer.folder
        self.fields = json.loads(json.dumps(fields))
        self.batch_sizes: BatchSizes = []

    def begin(self, batch_sizes: BatchSizes, chosen: bool, replace: bool | None = None) -> None:
        """Writes the plan, or takes over that of an unfinished folder, with its batch sizes if they are `chosen` by
        dit and not by the user. replace: remove the pictures of another call; None if a command cannot. Raises
        ValueError if the folder has them and they are not to be removed, or files that other software wrote."""
        self.batch_sizes = batch_sizes
        with locked(self.file(LOCK)):
            there = self.file(MANIFEST) if self.finished else self.unfinished / PLAN
            if there.is_file():
                found = read_json(there)
                fault = self.fault_of(found)
                if not fault:
                    self.batch_sizes = found["batch_sizes"] if chosen else batch_sizes
                    return
                if not replace:
                    raise ValueError(
                        f"{self.folder} {fault}; choose another out, or replace=true to remove its pictures"
                    )
                self.clear(found["layout"])
            self.check_free()
            write_atomic(self.unfinished / PLAN, json.dumps(self.described(), indent=1) + "\n")

    @property
    def layout(self) -> str:
        return type(self.writer).__name__

    @property
    def finished(self) -> bool:
        return self.file(MANIFEST).is_file()

    @property
    def unfinished(self) -> Path:
        return self.folder / UNFINISHED

    def file(self, name: str) -> Path:
        return self.folder / name

    def part(self, shard: int, kind: str = "jsonl") -> Path:
        return self.unfinished / f"{shard:05d}.{kind}"

    def described(self) -> dict[str, Any]:
        """Returns the content of the plan, with which the manifest begins."""
        described = {"format": FORMAT, "layout": self.layout, "fields": self.fields}
        return described | {"batch_sizes": self.batch_sizes}

    def fault_of(self, found: Any) -> str:
        """Returns why a plan or a manifest does not belong to this call, or files of it are missing; else ""."""
        fields = found.get("fields") if isinstance(found, dict) else None
        if not isinstance(fields, dict) or found.get("format") != FORMAT:
            raise ValueError(f"{self.folder} has files of another program or version; choose another out")
        differing = [name for name in self.fields | fields if self.fields.get(name) != fields.get(name)]
        if differing:
            return f"has the pictures of another call, which differs in {', '.join(differing)}"
        missing = self.missing(rows_in(self.file(TABLE))) if self.finished else []
        if missing:
            return f"is finished, but {len(missing)} of its files are missing, first {missing[0]}"
        return ""

    def missing(self, rows: Iterable[Row]) -> list[str]:
        """Returns the files of rows that are not there."""
        names = dict.fromkeys(row["file"] for row in rows if "file" in row)
        return [name for name in names if not self.file(name).is_file()]

    def own(self, layout: str) -> list[Path]:
        """Returns the files and folders with names that a layout writes, and the table."""
        below = [path for folder in (self.folder, self.file("train")) if folder.is_dir() for path in folder.iterdir()]
        names = next(kind.names for kind in WRITERS.values() if kind.__name__ == layout)
        found = [path for path in below if names.fullmatch(str(path.relative_to(self.folder)))]
        return found + [self.file(TABLE)] * self.file(TABLE).is_file()

    def abandon(self) -> None:
        """Removes the plan, and the folder if it is empty, after an error before any picture was written."""
        with locked(self.file(LOCK)):
            if {path.name for path in self.unfinished.glob("*")} <= {PLAN} and not self.own(self.layout):
                shutil.rmtree(self.unfinished, ignore_errors=True)
        for folder in (self.file("train"), self.folder):
            with suppress(OSError):  # it has files, or is not there
                folder.rmdir()

    def check_free(self) -> None:
        """Raises ValueError if the folder has files that could be overwritten."""
        if there := sorted(self.own(self.layout)):
            raise ValueError(
                f"{self.folder} has {there[0].relative_to(self.folder)}, which no unfinished call of this version "
                f"wrote; choose another out"
            )

    def clear(self, layout: str) -> None:
        """Removes the files of another call, the plan or the manifest last, so that a kill leaves one of them."""
        for path in [*self.own(layout), *self.unfinished.glob("[0-9]*"), self.unfinished, self.file(MANIFEST)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # it has other files, or is not there
            self.file("train").rmdir()

    def done(self, shard: int) -> bool:
        """Whether a shard is finished and its files are there."""
        return self.part(shard).is_file() and not self.missing(rows_in(self.part(shard)))

    def rows(self) -> Iterator[Row]:
        """Yields the rows of all pictures in order. Every shard must be finished."""
        for shard in range(self.work.shards):
            yield from rows_in(self.part(shard))

    def finish(self) -> None:
        """Writes the tables and the manifest, and removes what is not needed any more. Call it with the lock."""
        counts = self.write_tables()
        for leftover in self.folder.rglob(".*.tmp"):  # of killed processes
            leftover.unlink(missing_ok=True)
        shards = dict.fromkeys(row["file"] for row in self.rows() if "file" in row and not self.writer.single)
        tables = [TABLE, *([self.writer.metadata_file] if self.writer.metadata_file else [])]
        files = {name: sha256_of(self.file(name)) for name in [*tables, *shards]}
        write_atomic(self.file(MANIFEST), json.dumps(self.described() | counts | {"files": files}, indent=1) + "\n")

    def write_tables(self) -> dict[str, int]:
        """Writes generated.jsonl and OUT_costs.jsonl, and metadata.jsonl if the layout has it. Returns the number of
        pictures, and of those that were refused."""
        counts = {"pictures": 0, "refused": 0}
        with replacing(self.file(TABLE)) as table, open(table, "w", encoding="utf-8") as lines:
            for row in self.rows():
                lines.write(json_of(row) + "\n")
                counts["pictures" if "file" in row else "refused"] += 1
        costs = self.folder.with_name(f"{self.folder.name}_costs.jsonl")
        with replacing(costs) as table, open(table, "wb") as lines:
            for shard in range(self.work.shards):
                lines.write(self.part(shard, "cost").read_bytes())
        if self.writer.metadata_file:
            with replacing(self.file(self.writer.metadata_file)) as file, open(file, "w", encoding="utf-8") as lines:
                for row in self.rows():
                    if "file" in row:
                        lines.write(json_of(self.writer.metadata(row)) + "\n")
        return counts


def rows_in(file: Path) -> Iterator[Row]:
    """Yields the rows of a table, without reading all of it at once."""
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            yield parse_json(line, f"{file} line {number}")
