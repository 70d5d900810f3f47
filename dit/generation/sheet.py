"""Contact sheets of what was generated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from PIL import Image

from dit.generation.output import Output, rows_in
from dit.generation.rows import Row
from dit.generation.work import Work
from dit.picture_files import read_bytes, save_png, size_text
from dit.sample_grid import captioned_grid

PIXELS = 2**25  # of all pictures on a sheet, so that it takes little memory


def write_sheets(output: Output, most: int) -> None:
    """Writes a grid of the pictures of each model and size with their prompts, next to the folder: OUT_grid.png. Of
    more than `most` pictures it shows some at equal distances."""
    work, folder = output.work, output.folder
    assert isinstance(work, Work)
    group = len(work) // (work.models * len(work.sizes))
    for number in range(work.models * len(work.sizes)) if most else ():
        model, place = divmod(number, len(work.sizes))
        first = number * group
        count = min(most, group)
        rows = list(rows_at(output, work.shard_size, [first + index * group // count for index in range(count)]))
        if not rows:
            continue
        name = f"{folder.name}_grid{'' if work.models == 1 else f'_model_{model}'}{work.suffix(work.sizes[place])}.png"
        save_png(sheet_of(output, rows, len(work.seeds) if count == group else 0), folder.with_name(name))


def write_sheet(output: Output, most: int) -> None:
    """Writes a grid of the kept pictures of each model and size, named as those of `write_sheets`, next to the folder.
    Of more than `most` it shows some at equal distances."""
    counts = Counter(group_of(row) for row in output.rows() if "file" in row)
    models, sizes = (list(dict.fromkeys(group[part] for group in counts)) for part in (0, 1))
    for (model, size), count in counts.items():
        wanted = {index * count // min(most, count) for index in range(min(most, count))}
        kept = (row for row in output.rows() if "file" in row and group_of(row) == (model, size))
        rows = [row for index, row in enumerate(kept) if index in wanted]
        if rows:
            name = f"{output.folder.name}_grid{'' if len(models) == 1 else f'_model_{models.index(model)}'}"
            name += "" if len(sizes) == 1 else f"_{size_text(size)}"
            save_png(sheet_of(output, rows, 10), output.folder.with_name(f"{name}.png"))


def group_of(row: Row) -> tuple[str, tuple[int, int]]:
    """Returns the model and the size (width, height) of the picture of a row."""
    return row["model"], (row["width"], row["height"])


def rows_at(output: Output, shard_size: int, indices: Sequence[int]) -> Iterator[Row]:
    """Yields the rows at ascending indices that have a picture."""
    for index in indices:
        shard, place = divmod(index, shard_size)
        row = next(islice(rows_in(output.part(shard)), place, None))
        if "file" in row:
            yield row


def sheet_of(output: Output, rows: Sequence[Row], columns: int) -> Image.Image:
    """Returns the grid of the pictures of some rows, as many as its size allows. columns: the smallest number."""
    rows = rows[: max(1, PIXELS // (rows[0]["width"] * rows[0]["height"]))]
    pictures = [torch.from_numpy(read_bytes(output.writer.read(row), row["file"])) for row in rows]
    texts = [row["prompt"] for row in rows]
    return captioned_grid(torch.stack(pictures), texts, max(columns, min(len(texts), 6)))
