"""Rows of tables with an image column: their captions, labels and metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dit.data.captions import FIELDS, captions_of_row
from dit.data.rows import Row
from dit.errors import nearest

IMAGES, LABELS = ("image", "img", "jpg", "png"), ("label", "class", "cls", "fine_label", "labels")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of the image, the caption and the label; empty for the first usual name that is there."""

    image: str = ""
    text: str | None = None
    label: str | None = None

    def find(self, where: str, names: Sequence[str]) -> Columns:
        """Returns the columns that a table has. Raises ValueError if it lacks a given one, or has no image."""

        def chosen(given: str | None, key: str, usual: Sequence[str]) -> str | None:
            if given is not None and given not in names:
                raise ValueError(f"{where}: data.fields.{key}={given} is not a column.{nearest(given, names)}")
            return given or next((name for name in usual if name in names), None)

        image = chosen(self.image or None, "image", IMAGES) or ""
        found = Columns(image, chosen(self.text, "text", FIELDS), chosen(self.label, "label", LABELS))
        if not found.image:
            raise ValueError(f"{where}: it has no image column; name one of {', '.join(names)} with data.fields.image")
        return found

    @classmethod
    def of(cls, given: Mapping[str, str | None] | None) -> Columns:
        if unknown := dict(given or {}).keys() - {"image", "text", "label"}:
            raise ValueError(f"data.fields.{min(unknown)}: there are image, text and label")
        names = dict(given or {})
        return cls(names.get("image") or "", names.get("text"), names.get("label"))

    def row(self, name: str, place: tuple[int, ...], values: dict[str, Any], classes: Sequence[str]) -> Row:
        """Returns the row of a table's values without the image. classes: the names of the label's numbers."""
        row = Row(name, place)
        try:
            captions = {"text": values.pop(self.text)} if self.text in values else {}
            row.captions = captions_of_row(captions, f"column {self.text}")
        except ValueError as error:
            row.why = str(error)
        label = None if self.label is None else values.pop(self.label, None)
        known = isinstance(label, int) and 0 <= label < len(classes)
        row.label = "" if label is None else classes[label] if known else str(label)
        row.metadata = values
        if row.captions:
            row.metadata = {"caption_origin": self.text} | values
        return row


def image_bytes(value: Any) -> bytes | None:
    """Returns the bytes of an image column's value: bytes, or {"bytes": ..., "path": ...} as in HF; None if it has
    none."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else None
