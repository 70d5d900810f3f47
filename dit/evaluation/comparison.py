"""The comparison of results: their names, which protocols may be compared, and the differences to the first result."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dit.evaluation.card import Card, Fields, differences, read_parts
from dit.evaluation.results import short_paths
from dit.evaluation.run_records import in_order
from dit.evaluation.statistics import Interval, corrected, paired, unpaired, verdict
from dit.files import read_json
from dit.plain_values import flat

FieldDifferences = Mapping[str, tuple[Any, Any]]  # the value in the first result and in the other, by field
PAIRED_BY = ("n", "seed", "prompts_sha256")  # protocol fields: if they are equal, picture i of both can be paired
KIND_FIELDS = ("checkpoint", "images", "model", "again")  # subject fields that distinguish results even where missing
IMPLIED_BY = {  # fields, with all below them, that names leave out because plainer fields imply them
    "step": ("checkpoint", "weights"),
    "posthoc": ("checkpoint", "weights"),
    "weights_sha256": ("checkpoint", "weights"),
    "training_data": ("checkpoint",),
    "recipe.sampler": ("sampler",),
    "recipe.grid": ("grid",),
    "recipe.guidance": ("checkpoint", "sampler", "guidance"),
    "pipeline.scheduler": ("pipeline.scheduler.class",),
}


@dataclass(frozen=True)
class Result:
    """A card, the file it was read from, and the parts of its scores by column (`Card.write`)."""

    file: Path
    card: Card
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """value: a score minus that of the first result. interval: None if no parts are known; then the verdict is
    "not known"."""

    value: float
    interval: Interval | None
    verdict: str

    @property
    def within(self) -> float | None:
        """The largest difference, in either direction, that the interval does not exclude: the results are equivalent
        within it. None without a finite interval."""
        bound = math.inf if self.interval is None else max(map(abs, self.interval))
        return bound if math.isfinite(bound) else None


def card_files(path: Path) -> list[Path]:
    """Returns the file itself, or the cards of a results folder, 2 steps before 10. Raises ValueError if there are
    none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder; name a results folder of evaluate.py, or a cell's .json")
    files = sorted(path.glob("cells/*.json"), key=lambda file: in_order(file.name))
    cards = [file for file in files if is_card(file)]
    if not cards:
        raise ValueError(f"{path} contains no result cards (cells/*.json); make them with evaluate.py")
    return cards


def is_card(file: Path) -> bool:
    """Returns False for the other files among the cells. Raises ValueError for broken JSON."""
    try:
        content = read_json(file, nan=True)
    except ValueError as error:
        raise ValueError(f"{error}; delete it and run evaluate.py again") from None
    return isinstance(content, dict) and "subject" in content and "protocol" in content


def is_floor(result: Result) -> bool:
    """Returns whether it is a score of real pictures, which a sweep keeps among its cells (`dit.evaluation.floors`)."""
    return "taken" in result.card.subject


def read_results(paths: Sequence[Path]) -> tuple[list[Result], list[Result]]:
    """Returns the results, each file once, and separately the floors of the folders. The first result is the baseline.

    Raises ValueError if the first path has no scores.
    """
    results: dict[Path, Result] = {}
    floors: dict[str, Result] = {}
    for path in paths:
        found = [read_result(file) for file in card_files(path)]
        if path.is_dir():
            floors |= {str((r.card.subject, r.card.scores)): r for r in found if is_floor(r)}
            found = sorted((r for r in found if not is_floor(r)), key=lambda r: "again" in r.card.subject)
        for result in found:
            results.setdefault(result.file.resolve(), result)
        if path is paths[0] and all(result.card.failed for result in found):
            reason = f": {found[0].card.failed}" if found else ""
            raise ValueError(f"{path} has no scores to compare with{reason}; name another result first")
    return list(results.values()), list(floors.values())


def read_result(file: Path) -> Result:
    card = Card.read(file)
    return Result(file, card, {} if card.failed else read_parts(file))


def short_text(value: Any, limit: int = 48) -> str:
    """Returns a value in one line; long texts, hashes and code are cut."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if re.fullmatch(r"[0-9a-f]{16,}", text):
        return text[:8]
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def names_of(results: Sequence[Result]) -> list[str]:
    """Returns a name for each result: the subject fields that differ, and the seed; also the file if names are
    equal."""
    facts = [{**flat(r.card.subject), "seed": r.card.protocol.get("seed")} for r in results]
    names = [""] * len(results)
    fields = dict.fromkeys(field for fact in facts for field in fact)
    for field in sorted(fields, key="seed".__eq__):
        values = [fact.get(field) for fact in facts]
        distinct = {str(value) for value in values if value is not None}
        if (len(distinct) > 1 or (field in KIND_FIELDS and None in values)) and not _is_implied(field, facts):
            texts = _short_texts(values)
            names = [f"{n}{', ' * bool(n)}{field} {v}" if v else n for n, v in zip(names, texts, strict=True)]
    repeated = [name for name in names if names.count(name) > 1]
    files = _short_texts([result.file for result in results])
    return [f"{n}{', ' * bool(n)}file {f}" if n in repeated else n or f for n, f in zip(names, files, strict=True)]


def _is_implied(field: str, facts: Sequence[Fields]) -> bool:
    """Returns whether this field is equal in all results in which the fields of `IMPLIED_BY` are equal."""
    implying = next((by for of, by in IMPLIED_BY.items() if field == of or field.startswith(f"{of}.")), ())
    pairs = {(tuple(str(fact.get(name)) for name in implying), str(fact.get(field))) for fact in facts}
    return field not in implying and len({plain for plain, _ in pairs}) == len(pairs)


def _short_texts(values: Sequence[Any]) -> list[str]:
    """Returns the values as short texts, paths by `short_paths`; "" for None."""
    short = short_paths(str(value) for value in values if "/" in str(value))
    return ["" if value is None else short_text(short.get(str(value), value)) for value in values]


def protocol_differences(one: Card, other: Card) -> dict[str, tuple[Any, Any]]:
    """Returns the fields that forbid comparing two results, with both values.

    Not among them: the seed, without which pictures are only unpaired; the source of prompts that are equal; a metric
    that one result lacks, and the real pictures for that metric.
    """
    found = differences(one.protocol, other.protocol)
    harmless = ("seed", "prompts_from")
    return {name: pair for name, pair in found.items() if name not in harmless and not _is_missing_metric(name, *pair)}


def _is_missing_metric(field: str, a: Any, b: Any) -> bool:
    whole = re.fullmatch(r"(metrics|reference)\.[^.]+", field)
    return whole is not None and (a is None or b is None) and isinstance(a or b, Mapping)


def affects(field: str, column: str, card: Card) -> bool:
    """Returns whether a protocol field affects a column. A metric's field does not affect the columns of others."""
    if not field.startswith("metrics."):
        return True
    owners = [name for name in card.protocol.get("metrics", {}) if column == name or column.startswith(f"{name}_")]
    return not owners or field.startswith(f"metrics.{max(owners, key=len)}.")


def can_be_paired(one: Card, other: Card) -> bool:
    """Returns whether picture i of both has the same prompt and the same noise."""
    return all(one.protocol.get(field) == other.protocol.get(field) for field in PAIRED_BY)


def headlines_of(results: Sequence[Result]) -> dict[str, bool]:
    """Returns the headline columns of all results, and whether higher is better."""
    return {column: up for result in results for column, up in result.card.headlines.items()}


def columns_of_several_counts(columns: Sequence[str]) -> list[list[str]]:
    """Returns the columns of each score that appears at several N, as fid_1k, fid_50k and fid_50k_ref1024."""
    scores: dict[str, list[str]] = {}
    for column in columns:
        scores.setdefault(re.sub(r"_\d+k?(_ref\d+k?)?$", "", column), []).append(column)
    return [found for found in scores.values() if len(found) > 1]


def score_differences(
    first: Result, others: Sequence[Result], columns: Sequence[str], better: Mapping[str, bool]
) -> list[dict[str, Difference]]:
    """Returns for each other result its difference to the first in every column that both have. All intervals, and so
    all verdicts, together hold with 95 %. better: whether higher is better, for the columns where that is known."""
    shared = [[c for c in columns if c in first.card.scores and c in other.card.scores] for other in others]
    known = [[c for c in own if c in first.parts and c in o.parts] for o, own in zip(others, shared, strict=True)]
    confidence = corrected(sum(map(len, known)))
    intervals: dict[tuple[int, str], Interval] = {}
    for column in columns:
        rows = [i for i, own in enumerate(known) if column in own]
        pairs = [i for i in rows if can_be_paired(first.card, others[i].card)]
        found = paired(first.parts[column], [others[i].parts[column] for i in pairs], confidence) if pairs else []
        intervals |= {(i, column): interval for i, interval in zip(pairs, found, strict=True)}
        for i in set(rows) - set(pairs):
            intervals[i, column] = unpaired(first.parts[column], others[i].parts[column], confidence)
    result: list[dict[str, Difference]] = []
    for i, (other, own) in enumerate(zip(others, shared, strict=True)):
        row = {}
        for column in own:
            interval = intervals.get((i, column))
            text = "not known" if interval is None else verdict(interval, better.get(column))
            row[column] = Difference(other.card.scores[column] - first.card.scores[column], interval, text)
        result.append(row)
    return result
