"""What the pictures of a cell cost: measured for each picture, and shown for a thousand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dit.cost import Cost, Meter, Price
from dit.distributed import all_reduce_sum, rank_and_world_size
from dit.scoring.samples import SampleBatch, Scores

THOUSAND = "_per_thousand"  # ends the names of the columns of a thousand pictures


class Metered:
    """Yields pictures, and adds up what it costs to make them."""

    def __init__(self, pictures: Iterable[SampleBatch], meter: Meter) -> None:
        self.pictures, self.meter, self.cost = pictures, meter, Cost()

    def __iter__(self) -> Iterator[SampleBatch]:
        source = iter(self.pictures)
        while True:
            start = self.meter.now()
            batch = next(source, None)
            self.cost += self.meter.since(start)
            if batch is None:
                return
            yield batch


def cost_of(scored: Scores, metered: Metered) -> dict[str, float]:
    """Returns NFE and seconds for each picture, pictures per second of all ranks together, and the joules of a picture,
    if they are known, as joules_METHOD. With a step cache also its effective NFE, and the block evaluations that it
    computed and saved for each picture. All ranks must call it."""
    seconds = scored.seconds / rank_and_world_size()[1]
    speed = scored.n / seconds if seconds else 0.0
    cost = {"nfe": scored.nfe, "seconds": seconds / scored.n, "images_per_second": speed}
    own = metered.cost.joules
    joules, unknown = all_reduce_sum(own or 0.0, float(own is None))
    if seconds and not unknown:  # pictures that were only read have no cost
        cost |= {f"joules_{metered.meter.method}": joules / scored.n}
    if (use := scored.cached) is not None:
        cost |= {"effective_nfe": use.nfe, "blocks_computed": use.computed, "blocks_saved": use.saved}
    return cost


def per_thousand(row: Mapping[str, Any], price: Price) -> dict[str, float]:
    """Returns the columns of a thousand pictures of a row: seconds, watt-hours if the energy is known, and the price,
    named by its currency, if there is one. Nothing for pictures that were not sampled."""
    seconds = 1000 * row.get("seconds", 0.0)
    if not seconds:
        return {}
    found = {f"seconds{THOUSAND}": seconds}
    if price.price_per_hour is not None:
        found |= {f"{price.currency}{THOUSAND}": price.of(seconds)}
    joules = {name.removeprefix("joules_"): value for name, value in row.items() if name.startswith("joules_")}
    return found | {f"Wh_{method}{THOUSAND}": value / 3.6 for method, value in joules.items()}


def price_column(row: Mapping[str, Any]) -> str | None:
    """Returns the column of a row that has the price of a thousand pictures, or None."""
    return next((name for name in row if re.fullmatch(f"[A-Z]{{3}}{THOUSAND}", name)), None)


def unit_of(column: str) -> str:
    """Returns the unit of a column of a thousand pictures: seconds, EUR, Wh (nvml)."""
    unit, _, method = column.removesuffix(THOUSAND).partition("_")
    return f"{unit} ({method})" if method else unit


def in_words(row: Mapping[str, Any]) -> list[str]:
    """Returns a sentence on what a thousand pictures of a row cost; none if they were not sampled."""
    known = [f"{row[name]:.3g} {unit_of(name)}" for name in row if name.endswith(THOUSAND)]
    if not known:
        return []
    energy = "" if any(name.startswith("Wh_") for name in row) else "; their energy is unknown"
    return [f"A thousand of its pictures cost {', '.join(known)}{energy}."]
