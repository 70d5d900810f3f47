"""How often training used each sample: a function of the order of the data and the number of steps."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from dit.data.order import KeyedBatches, Permutation, Visit


def uses_of(order: Iterable[list[Visit]], samples: int, first: int, last: int) -> np.ndarray:
    """Returns (samples,) int64: how often batches `first` to `last` - 1 of an order, which begins with batch 0, have
    each sample."""
    if isinstance(order, KeyedBatches) and order.world == 1:  # whole epochs need not be drawn
        return uses_until(order, samples, last) - uses_until(order, samples, first)
    counts = np.zeros(samples, dtype=np.int64)
    for batch in islice(order, first, last):
        np.add.at(counts, [visit.sample for visit in batch], 1)
    return counts


def uses_until(order: KeyedBatches, samples: int, batches: int) -> np.ndarray:
    epochs, rest = divmod(batches * order.batch_size, order.count)
    places = Permutation(order.count, order.seed, epochs)(np.arange(rest))
    of_count = np.full(order.count, epochs, dtype=np.int64)
    of_count[places] += 1
    counts = np.zeros(samples, dtype=np.int64)
    counts[np.arange(order.count) if order.among is None else order.among] = of_count
    return counts


def rows_of_source(source: Any) -> pa.Table:
    """Returns the provenance of a source with its captions, a row for each sample; the ids of a source that records
    nothing are the numbers of its samples."""
    table = getattr(source, "provenance", None)
    if table is None:
        table = pa.table({"id": [str(number) for number in range(len(source))]})
    return table.append_column("caption", pa.array(list(source.captions), pa.string()))
