"""Results side by side: what they are called, what forbids comparing them, and how they differ from the first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor

from dit.evaluation.card import Card, Fields, differences, read_parts
from dit.evaluation.statistics import Interval, corrected, paired, unpaired, verdict
from dit.files import read_json
from dit.plain_values import flat

Unlike = Mapping[str, tuple[Any, Any]]
PAIRS = ("n", "seed", "prompts_sha256")  # of the protocol: where they agree, pictures pair off
WHOSE = ("checkpoint", "images", "model", "again")  # of subjects: that only some have one tells them apart
SAID_BY = {  # fields and what they hold, by the fields that say it in plainer words, unless they are too few
    "step": ("checkpoint",),
    "weights_sha256": ("checkpoint", "weights"),
    "recipe.sampler": ("sampler",),
    "recipe.grid": ("grid",),
    "pipeline.scheduler": ("pipeline.scheduler.class",),
}


@dataclass(frozen=True)
class Result:
    """A card, the file it was read from, and every picture's part in its scores by column."""

    file: Path
    card: Card
    each: Mapping[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """value: of a score less the first result's. interval: None where no parts are known, and so no verdict either."""

    value: float
    interval: Interval | None
    verdict: str


def files_in(given: Path) -> list[Path]:
    """A file itself, or the cards of a results folder, 2 steps before 10. Raises ValueError where there are none."""
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise ValueError(f"{given}: no such file or folder; name a results folder of evaluate.py, or a cell's .json")
    found = sorted(given.glob("cells/*.json"), key=lambda file: re.sub(r"\d+", lambda n: n[0].zfill(9), file.name))
    cards = [file for file in found if is_card(file)]
    if not cards:
        raise ValueError(f"{given} holds no result cards (cells/*.json); make them with evaluate.py")
    return cards


def is_card(file: Path) -> bool:
    """Or another of the files among the cells. Raises ValueError for broken JSON."""
    try:
        held = read_json(file, nan=True)
    except ValueError as error:
        raise ValueError(f"{error}; delete it, and let evaluate.py make it again") from None
    return isinstance(held, dict) and "subject" in held and "protocol" in held


def is_floor(result: Result) -> bool:
    """Real pictures, scored among a sweep's cells as what a perfect sampler would get."""
    return "taken" in result.card.subject


def read(given: Sequence[Path]) -> tuple[list[Result], list[Result]]:
    """The results, each file once, and apart from them the floors in the folders. The first is the one to compare with.

    Raises ValueError where the first given has no scores.
    """
    results: dict[Path, Result] = {}
    floors: dict[str, Result] = {}
    for where in given:
        here = [read_result(file) for file in files_in(where)]
        if where.is_dir():
            floors |= {str((r.card.subject, r.card.scores)): r for r in here if is_floor(r)}
            here = sorted((r for r in here if not is_floor(r)), key=lambda r: "again" in r.card.subject)
        for result in here:
            results.setdefault(result.file.resolve(), result)
        if where is given[0] and all(result.card.failed for result in here):
            why = f": {here[0].card.failed}" if here else ""
            raise ValueError(f"{where} has no scores to compare with{why}; name another first")
    return list(results.values()), list(floors.values())


def read_result(file: Path) -> Result:
    card = Card.read(file)
    return Result(file, card, {} if card.failed else read_parts(file))


def brief(value: Any, limit: int = 48) -> str:
    """A value in a line: of long ones, hashes and code, the beginning."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if re.fullmatch(r"[0-9a-f]{16,}", text):
        return text[:8]
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def names_of(results: Sequence[Result]) -> list[str]:
    """A name for each result: what differs in their subjects, and the seed; the file where these are alike."""
    facts = [{**flat(r.card.subject), "seed": r.card.protocol.get("seed")} for r in results]
    names = [""] * len(results)
    fields = dict.fromkeys(field for fact in facts for field in fact)
    for field in sorted(fields, key="seed".__eq__):
        values = [fact.get(field) for fact in facts]
        distinct = {str(value) for value in values if value is not None}
        if (len(distinct) > 1 or (field in WHOSE and None in values)) and not _is_said(field, facts):
            told = _shown(values)
            names = [f"{n}{', ' * bool(n)}{field} {v}" if v else n for n, v in zip(names, told, strict=True)]
    alike = [name for name in names if names.count(name) > 1]
    files = _shown([result.file for result in results])
    return [f"{n}{', ' * bool(n)}file {f}" if n in alike else n or f for n, f in zip(names, files, strict=True)]


def _is_said(field: str, facts: Sequence[Fields]) -> bool:
    """Whether plainer fields that are equal never leave this one to differ."""
    by = next((by for of, by in SAID_BY.items() if field == of or field.startswith(f"{of}.")), ())
    pairs_of = {(tuple(str(fact.get(name)) for name in by), str(fact.get(field))) for fact in facts}
    return field not in by and len({plain for plain, _ in pairs_of}) == len(pairs_of)


def _shown(values: Sequence[Any]) -> list[str]:
    """The values in brief, paths without the folders that all have in common; nothing for None."""
    paths = {str(value): Path(value).parts for value in values if "/" in str(value)}
    common = len(list(takewhile(lambda level: len(set(level)) == 1, zip(*paths.values(), strict=False))))
    shown = ["/".join(paths[str(v)][common:]) if len(paths) > 1 and str(v) in paths else v for v in values]
    return ["" if value is None else brief(value) for value in shown]


def unlike(one: Card, other: Card) -> dict[str, tuple[Any, Any]]:
    """Why two results must not be compared: the fields of their protocols that differ, with both values. Not the seed,
    which only unpairs the pictures, not where prompts come from that are alike, and not a metric that one of them
    lacks, nor the real pictures for that alone."""
    found = differences(one.protocol, other.protocol)
    harmless = ("seed", "prompts_from")
    return {name: values for name, values in found.items() if name not in harmless and not _is_lacking(name, *values)}


def _is_lacking(field: str, a: Any, b: Any) -> bool:
    whole = re.fullmatch(r"(metrics|reference)\.[^.]+", field)
    return whole is not None and (a is None or b is None) and isinstance(a or b, Mapping)


def touches(field: str, column: str, card: Card) -> bool:
    """Whether a field of the protocol bears on a column: those of a metric leave alone what plainly is another's."""
    if not field.startswith("metrics."):
        return True
    owners = [name for name in card.protocol.get("metrics", {}) if column == name or column.startswith(f"{name}_")]
    return not owners or field.startswith(f"metrics.{max(owners, key=len)}.")


def pairs(one: Card, other: Card) -> bool:
    """Whether picture i of both has the same prompt and the same noise."""
    return all(one.protocol.get(field) == other.protocol.get(field) for field in PAIRS)


def headlines_of(results: Sequence[Result]) -> dict[str, bool]:
    """The headline columns of all, and whether higher is better."""
    return {column: up for result in results for column, up in result.card.headlines.items()}


def other_counts(columns: Sequence[str]) -> Iterator[list[str]]:
    """Columns of one score that names several numbers of pictures, as fid_1k, fid_50k and fid_50k_ref1024."""
    scores: dict[str, list[str]] = {}
    for column in columns:
        scores.setdefault(re.sub(r"_\d+k?(_ref\d+k?)?$", "", column), []).append(column)
    return (alike for alike in scores.values() if len(alike) > 1)


def compared(
    first: Result, others: Sequence[Result], columns: Sequence[str], better: Mapping[str, bool]
) -> list[dict[str, Difference]]:
    """For each other result its difference to the first in every column that both have. The intervals hold all together
    with 95 %, and the verdicts with them. better: the columns in which it is known whether higher is better."""
    shared = [[c for c in columns if c in first.card.scores and c in other.card.scores] for other in others]
    known = [[c for c in own if c in first.each and c in o.each] for o, own in zip(others, shared, strict=True)]
    confidence = corrected(sum(map(len, known)))
    intervals: dict[tuple[int, str], Interval] = {}
    for column in columns:
        asked = [i for i, own in enumerate(known) if column in own]
        alike = [i for i in asked if pairs(first.card, others[i].card)]
        here = paired(first.each[column], [others[i].each[column] for i in alike], confidence) if alike else []
        intervals |= {(i, column): interval for i, interval in zip(alike, here, strict=True)}
        for i in set(asked) - set(alike):
            intervals[i, column] = unpaired(first.each[column], others[i].each[column], confidence)
    found: list[dict[str, Difference]] = []
    for i, (other, own) in enumerate(zip(others, shared, strict=True)):
        row = {}
        for column in own:
            interval = intervals.get((i, column))
            says = "not known" if interval is None else verdict(interval, better.get(column))
            row[column] = Difference(other.card.scores[column] - first.card.scores[column], interval, says)
        found.append(row)
    return found
