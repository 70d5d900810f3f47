"""A data card of the rows that a checkpoint was trained on: Croissant metadata (JSON-LD), and a summary with the
headings of the European Commission's template for the public summary of training content (AI Act, article 53(1)(d))."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from dit.data.provenance import NONE

UNRECORDED = "Not recorded."
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "recordSet": "cr:recordSet",
    "field": "cr:field",
    "source": "cr:source",
    "fileObject": "cr:fileObject",
    "extract": "cr:extract",
    "column": "cr:column",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
}
KINDS = {"int32": "sc:Integer", "int64": "sc:Integer", "double": "sc:Float", "string": "sc:Text"}


@dataclass(frozen=True)
class Trained:
    """What a card describes: the name and the step of a checkpoint, the seen rows with the column `uses`, the number of
    rows that training could have used, and the data section of the run's config."""

    name: str
    step: int
    rows: pa.Table
    available: int
    data: dict[str, Any]

    @property
    def uses(self) -> int:
        return sum(self.rows["uses"].to_pylist())


def values(rows: pa.Table, column: str, absent: str) -> list[str]:
    """Returns a column as texts, `absent` for rows without a value."""
    if column not in rows.column_names:
        return [absent] * len(rows)
    return [absent if value in (None, "") else str(value) for value in rows[column].to_pylist()]


def shares(rows: pa.Table, column: str, absent: str) -> list[tuple[str, int, int]]:
    """Returns the values of a column, the most used first: value, number of rows, number of uses."""
    found = values(rows, column, absent)
    counts, uses = Counter(found), Counter[str]()
    for value, times in zip(found, rows["uses"].to_pylist(), strict=True):
        uses[value] += times
    return [(value, counts[value], uses[value]) for value, _ in uses.most_common()]


def domains(rows: pa.Table) -> Counter[str]:
    """Returns the number of rows of each domain that a URL names."""
    hosts = (urlsplit(url).hostname for url in values(rows, "url", ""))
    return Counter(host for host in hosts if host)


def croissant(trained: Trained, file: str, sha256: str) -> dict[str, Any]:
    """Returns Croissant 1.0 metadata of the table of rows in a parquet file."""
    licences = sorted({value for value in values(trained.rows, "licence", NONE) if value != NONE})
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"rows/{column.name}",
            "name": column.name,
            "dataType": KINDS.get(str(column.type), "sc:Text"),
            "source": {"fileObject": {"@id": file}, "extract": {"column": column.name}},
        }
        for column in trained.rows.schema
    ]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": f"training data of {trained.name}",
        "description": (
            f"The {len(trained.rows)} images that {trained.name} was trained on until step {trained.step}, with their "
            f"provenance and how often each was used."
        ),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": licences or UNRECORDED,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": file,
                "name": file,
                "contentUrl": file,
                "encodingFormat": "application/vnd.apache.parquet",
                "sha256": sha256,
            }
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": fields}],
    }


def table(head: Sequence[str], lines: Sequence[Sequence[Any]], most: int = 20) -> str:
    """Returns a Markdown table of the first `most` lines; it says how many are left out."""
    rows = [head, ["---"] * len(head), *lines[:most]]
    text = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
    return text + (f"\n\n{len(lines) - most} more." if len(lines) > most else "")


def eu_summary(trained: Trained) -> str:
    """Returns the summary as Markdown. What the data do not record says so, to be filled in by the provider."""
    rows, data = trained.rows, trained.data
    sizes = sorted(zip(*(rows[name].to_pylist() for name in ("width", "height")), strict=True)) if (
        {"width", "height"} <= set(rows.column_names)
    ) else []  # fmt: skip
    of_domains, rules = domains(rows), {key: data[key] for key in ("size", "resize", "crop", "flip") if key in data}
    captions = shares(rows, "caption_origin", "not recorded")
    dates = sorted(value for value in values(rows, "retrieved_at", "") if value)
    opted = shares(rows, "opt_out", "not recorded")
    return f"""# Summary of the training content of {trained.name}, step {trained.step}

## 1. General information

### 1.1 Provider identification

{UNRECORDED}

### 1.2 Model identification

{trained.name}, step {trained.step}.

### 1.3 Modalities, overall size and other characteristics of the training data

Images with text. {trained.available} images were available, {len(rows)} were used, {trained.uses} times in total.
{f"Sizes from {sizes[0][0]} x {sizes[0][1]} to {sizes[-1][0]} x {sizes[-1][1]} pixels." if sizes else ""}
Origin of the captions: {", ".join(f"{value} ({count})" for value, count, _ in captions)}.

{table(["licence", "images", "uses"], shares(rows, "licence", NONE))}

## 2. List of data sources

### 2.1 Publicly available datasets

{table(["source", "images", "uses"], shares(rows, "source", "not recorded"))}

Path in the config: {data.get("path", "not recorded")}.

### 2.2 Private, not publicly available datasets obtained from third parties

{UNRECORDED}

### 2.3 Data crawled and scraped from online sources

{table(["domain", "images"], of_domains.most_common(), 50) if of_domains else "No image has a URL."}
{f"Retrieved from {dates[0]} to {dates[-1]}." if dates else ""}

### 2.4 User data

{UNRECORDED}

### 2.5 Synthetic data

{UNRECORDED}

### 2.6 Other sources of data

{UNRECORDED}

## 3. Data processing aspects

### 3.1 Respect of reservation of rights from the text and data mining exception or limitation

Filters: {data.get("filter") or "none"}. Verdicts on reservations of rights, as stored by who collected the images:

{table(["verdict", "images", "uses"], opted)}

### 3.2 Removal of illegal content

{UNRECORDED}

### 3.3 Other information

Processing: {", ".join(f"{key} {value}" for key, value in rules.items()) or "not recorded"}.
"""
