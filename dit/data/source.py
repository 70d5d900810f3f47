"""Captioned images of any layout: which of them are used, and reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa

from dit.data.captions import Captions
from dit.data.listing import SHOWN, warn
from dit.data.provenance import Filter, provenance_of
from dit.data.rows import Row
from dit.data.splits import SPLITS, divided, refuse_empty
from dit.picture_files import ADM, Rules, Size, read_bytes


class Layout(Protocol):
    """A way to store images: where they are, and how to read them. Layouts with equal settings are equal."""

    kind: str  # part of the fingerprint

    def __hash__(self) -> int: ...

    @property
    def where(self) -> str:
        """What messages call it."""
        ...

    def rows(self, cache_dir: str | None) -> list[Row]:
        """Returns all its images; those that cannot be read with the reason. Raises ValueError if there are none."""
        ...

    def file(self, row: Row) -> str:
        """Returns the name of an image for messages."""
        ...

    def read(self, row: Row) -> bytes:
        """Returns the bytes of an image's file. Raises ValueError with its name if they cannot be read."""
        ...

    def no_captions(self, template: str | None, images: int) -> str:
        """Returns why none of its images has a caption, and the remedy."""
        ...


@dataclass(frozen=True)
class Options:
    """Which images of a layout are used; the keys of conf/data/folder.yaml explain them."""

    template: str | None = None
    val_share: float = 0.05
    captions: str = "auto"
    filter: Filter = field(default_factory=Filter)
    max_broken: float | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise ValueError(f"data.val_share={self.val_share} must lie between 0 and 1")
        if self.captions not in ("auto", "none"):
            raise ValueError(f"data.captions={self.captions} is neither auto nor none")
        if self.template is not None and "{}" not in self.template and "*" not in self.template:
            raise ValueError(
                f"data.template={self.template!r} must contain a * (or {{}}) for the name of the class folder, as in "
                f"data.template='a photo of *'"
            )
        if self.max_broken is not None and self.max_broken < 0:
            raise ValueError(f"data.max_broken={self.max_broken} must not be negative")


@lru_cache(maxsize=8)
def selected(layout: Layout, options: Options) -> dict[str, list[Row]]:
    """Returns the images that are used, by split. Reports the others. The splits of a source share the result."""
    rows = readable(layout, layout.rows(options.cache_dir), options.max_broken)
    rows = options.filter(layout.where, rows)
    return divided(layout.where, captioned(layout, rows, options), options.val_share)


def readable(layout: Layout, rows: Sequence[Row], max_broken: float | None) -> list[Row]:
    """Returns the images that can be read. Names the others; raises ValueError if they are too many: more than
    `max_broken`, a number of images, or below 1 a share of them."""
    broken = [row for row in rows if row.picture is None]
    if max_broken is not None and len(broken) > (max_broken if max_broken >= 1 else max_broken * len(rows)):
        names = ", ".join(f"{row.name} ({row.why})" for row in broken[:SHOWN])
        raise ValueError(
            f"{layout.where}: {len(broken)} of {len(rows)} pictures cannot be read, more than "
            f"data.max_broken={max_broken:g} allows: {names}; repair or remove them, or allow more"
        )
    warn(layout.where, [r.name for r in broken], "cannot be read and are left out", [row.why for row in broken])
    if len(broken) == len(rows):
        why = f" ({broken[0].name}: {broken[0].why})" if broken else ""
        raise ValueError(f"{layout.where}: there is no picture in it that can be read{why}")
    return [row for row in rows if row.picture is not None]


def captioned(layout: Layout, rows: Sequence[Row], options: Options) -> list[Row]:
    """Returns the images with captions; those without take one from the template and their label, or are left out."""
    if options.captions == "none":
        return [with_captions(row, ()) for row in rows]
    found: list[Row] = []
    bare: list[Row] = []
    for row in rows:
        if not row.captions and options.template is not None and row.label:
            name = row.label.replace("_", " ")
            caption = options.template.replace("{}", name).replace("*", name)
            row = with_captions(row, ((caption, 1.0),))
            row.metadata = row.metadata | {"caption_origin": "class"}
        (found if row.captions else bare).append(row)
    warn(layout.where, [row.name for row in bare], "have no caption and are left out")
    if not found:
        raise ValueError(f"{layout.where}: {layout.no_captions(options.template, len(bare))}")
    return found


def with_captions(row: Row, captions: Captions) -> Row:
    return Row(row.name, row.place, captions, row.label, row.metadata, row.picture, row.why, row.split)


class Images:
    """Images of a layout with captions, decoded on demand, at `size` by the rules, or at their own size if it is None.

    captions: the first of each image's captions, which has the largest weight. caption_choices: all of them with their
    weights, only if an image has several. provenance: a table with a row for each image (`dit.data.provenance`).
    """

    def __init__(self, layout: Layout, rows: Sequence[Row], size: Size | None, rules: Rules = ADM) -> None:
        self.layout, self.rows, self.size, self.rules = layout, rows, size, rules
        self.captions = [row.captions[0][0] if row.captions else "" for row in rows]
        if any(len(row.captions) > 1 for row in rows):
            self.caption_choices = [row.captions for row in rows]
        digest = hashlib.sha256(f"{layout.kind} {size}{'' if rules == ADM else f' {rules}'}".encode())
        for row, caption in zip(rows, self.captions, strict=True):
            assert row.picture is not None
            digest.update(row.picture.digest + hashlib.sha256(caption.encode()).digest())
            if len(row.captions) > 1:
                digest.update(repr(row.captions).encode())
        self.fingerprint = digest.hexdigest()[:16]  # depends on all files, all captions, the size and the rules

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def provenance(self) -> pa.Table:
        return provenance_of(self.rows, self.size, self.rules)

    def at(self, size: Size) -> Images:
        """Returns the same images at another size."""
        return Images(self.layout, self.rows, size, self.rules)

    def images(self, index: np.ndarray, size: Size | None = None) -> np.ndarray:
        """Returns the images at `index` as (N, 3, H, W) uint8; size: another one, a side or (width, height)."""
        rows, wanted = [self.rows[int(i)] for i in np.asarray(index)], size or self.size

        def decode(row: Row) -> np.ndarray:
            return read_bytes(self.layout.read(row), self.layout.file(row), wanted, self.rules)

        order = sorted(range(len(rows)), key=lambda i: rows[i].place)  # neighbours in a file are read together
        with ThreadPoolExecutor() as pool:
            decoded = dict(zip(order, pool.map(lambda i: decode(rows[i]), order), strict=True))
        return np.stack([decoded[i] for i in range(len(rows))])


class Source(Images):
    """The images of a layout that the options select, as the `train`, the `val` or the `test` split, at `size`.

    Raises ValueError if the split is empty."""

    def __init__(
        self, layout: Layout, options: Options, size: int, split: str, rules: Mapping[str, str] | None = None
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not one of {', '.join(map(repr, SPLITS))}")
        if size < 1:
            raise ValueError(f"data.size={size} must be at least 1")
        given = Rules(**(rules or {}))
        found = selected(layout, options)
        if not found[split]:
            refuse_empty(layout.where, found, split, options.val_share)
        super().__init__(layout, found[split], size, given)
