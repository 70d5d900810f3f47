"""Where images come from: the columns that travel from a source into caches and data cards, and filters of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from dit.data.rows import Row, jsonable
from dit.errors import shortened
from dit.files import read_lines
from dit.picture_files import Rules, Size

TEXTS = (  # columns of text, as PD12M, CommonCatalog and DataComp record them
    *("id", "sha256", "perceptual_hash", "url", "page_url", "source", "author", "licence", "licence_url"),
    *("retrieved_at", "crop", "caption_origin", "opt_out", "opt_out_date"),
)
NUMBERS = ("watermark", "aesthetic", "nsfw")
COLUMNS = (*TEXTS, *NUMBERS, "width", "height")
ALIASES = {  # names in the metadata of public data sets -> columns
    "license": "licence",
    "license_url": "licence_url",
    "image_url": "url",
    "artist": "author",
    "creator": "author",
    "phash": "perceptual_hash",
    "source_url": "page_url",
    "pwatermark": "watermark",
    "punsafe": "nsfw",
    "aesthetic_score": "aesthetic",
    "date_retrieved": "retrieved_at",
}
NONE = "no licence"  # what a row without one is counted as


def column(row: Row, name: str) -> Any:
    """Returns the value of a column of a row's metadata, None if it is absent or empty. The sha256 is the hash of the
    bytes at hand, not what the metadata says."""
    if name == "sha256" and row.picture is not None:
        return row.picture.digest.hex()
    names = (name, *(alias for alias, target in ALIASES.items() if target == name))
    value = next((row.metadata[key] for key in names if row.metadata.get(key) not in (None, "")), None)
    return row.name if name == "id" and value is None else value


def provenance_of(rows: Sequence[Row], size: Size | None, rules: Rules) -> pa.Table:
    """Returns a table with a row for each image: those of COLUMNS that any image has. width and height are those of the
    whole picture, crop the part of it that is used, "left,top,width,height" in its pixels."""
    found: dict[str, pa.Array] = {}
    for name in TEXTS:
        values = [column(row, name) for row in rows]
        if any(value is not None for value in values):
            texts = [value if value is None or isinstance(value, str) else str(jsonable(value)) for value in values]
            found[name] = pa.array(texts, pa.string())
    for name in NUMBERS:
        numbers = [number(column(row, name)) for row in rows]
        if any(value is not None for value in numbers):
            found[name] = pa.array(numbers, pa.float64())
    sizes = [(0, 0) if row.picture is None else row.picture.size for row in rows]
    found["width"], found["height"] = (pa.array([s[axis] for s in sizes], pa.int32()) for axis in (0, 1))
    if size is not None:
        found["crop"] = pa.array([",".join(map(str, rules.box(s, size))) for s in sizes], pa.string())
    return pa.table(found)


def number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def is_under(domain: str, listed: set[str]) -> bool:
    """Returns True if a domain or one that it belongs to is listed."""
    parts = domain.lower().split(".")
    return any(".".join(parts[start:]) in listed for start in range(len(parts)))


class Exclusions:
    """A list of rows that are not to be used: a UTF-8 file with an id, a sha256, a URL or a domain (which stands for
    all URLs of it and its subdomains) in each line; lines that begin with # are comments."""

    def __init__(self, file: str | Path) -> None:
        lines = (line.strip() for line in read_lines(file))
        self.entries = {line for line in lines if line and not line.startswith("#")}
        self.domains = {entry.lower() for entry in self.entries if "." in entry and not set(entry) & set("/ :")}
        if not self.entries:
            raise ValueError(f"{file} lists no id, URL or domain, one in each line; leave it out if none is excluded")

    def names(self, values: Mapping[str, Any]) -> bool:
        """Returns True if a row with these columns is listed."""
        if any(values.get(name) in self.entries for name in ("id", "sha256", "url", "page_url")):
            return True
        hosts = (urlsplit(str(values.get(name) or "")).hostname for name in ("url", "page_url"))
        return any(host is not None and is_under(host, self.domains) for host in hosts)


@dataclass(frozen=True)
class Filter:
    """Which rows of a source are used.

    licence: the licences that are allowed, compared without case; None allows all. exclude: the file of `Exclusions`.
    require_licence: True raises ValueError if a row has no licence.
    """

    licence: tuple[str, ...] | None = None
    exclude: str | None = None
    require_licence: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> Filter:
        """Returns the filter of a config's group. Raises ValueError for keys that it does not have."""
        options = dict(options or {})
        if unknown := options.keys() - {"licence", "exclude", "require_licence"}:
            raise ValueError(f"data.filter.{min(unknown)}: there are licence, exclude and require_licence")
        licence = options.pop("licence", None)
        licences = [licence] if isinstance(licence, str) else licence
        return cls(None if licences is None else tuple(map(str, licences)), **options)

    def __call__(self, where: object, rows: list[Row]) -> list[Row]:
        """Returns the rows that pass, and reports the others. Raises ValueError if none passes, or if a row has no
        licence and one is required."""
        rows = self._licensed(where, rows)
        if self.exclude is not None:
            listed, names = Exclusions(self.exclude), ("id", "sha256", "url", "page_url")
            kept = [row for row in rows if not listed.names({name: column(row, name) for name in names})]
            print(f"{where}: {self.exclude} excludes {len(rows) - len(kept)} of {len(rows)} images", file=sys.stderr)
            rows = kept
        if not rows:
            raise ValueError(f"{where}: data.filter leaves no image; allow more licences, or exclude fewer rows")
        return rows

    def _licensed(self, where: object, rows: list[Row]) -> list[Row]:
        if self.licence is None and not self.require_licence:
            return rows
        licences = [str(column(row, "licence") or NONE) for row in rows]
        counts = Counter(licences)
        if without := counts.get(NONE, 0):
            names = [row.name for row, licence in zip(rows, licences, strict=True) if licence == NONE]
            fault = f"{where}: {without} of {len(rows)} images have no licence ({', '.join(names[:3])}, ...)"
            if self.require_licence:
                raise ValueError(f"{fault}; record one in the metadata, or set data.filter.require_licence=false")
            print(f"warning: {fault}", file=sys.stderr)
        if self.licence is None:
            return rows
        allowed = {licence.lower() for licence in self.licence}
        if not any(licence.lower() in allowed for licence in counts):
            some = ", ".join(f"{shortened(name)} ({count})" for name, count in counts.most_common(5))
            raise ValueError(f"{where}: data.filter.licence={list(self.licence)} allows none of its licences: {some}")
        kept = [row for row, licence in zip(rows, licences, strict=True) if licence.lower() in allowed]
        left = {name: count for name, count in counts.items() if name.lower() not in allowed}
        if left:
            some = ", ".join(f"{count} of {shortened(name)}" for name, count in left.items())
            print(f"{where}: data.filter.licence leaves out {sum(left.values())} images: {some}", file=sys.stderr)
        return kept
