"""Samples, and grids of them with their captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dit.errors import shortened
from dit.layers.step_cache import CacheUse
from dit.picture_files import png
from dit.types import to_pixels

INK, PAPER = (40, 40, 40), (255, 255, 255)
LINES = 6  # of a caption; longer ones are cut


def enlarge(image: Tensor, side: int) -> Image.Image:
    """Converts (3, H, W) uint8 to a PIL image, magnified by a whole number to a width of at least `side` pixels."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    times = max(1, -(-side // picture.width))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def captioned_grid(
    images: Tensor, captions: Sequence[str], columns: int, side: int = 128, header: Sequence[str] = ()
) -> Image.Image:
    """Draws (N, 3, H, W) uint8 row by row, each image above the beginning of its caption. header: names of the columns;
    with it, captions has one text per row, drawn on the left."""
    font = ImageFont.load_default(size=12)
    tiles = [enlarge(image, side) for image in images]
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    per_row = bool(header)
    gap, letters = 6, 24 if per_row else max(10, width // 7)
    texts = [textwrap.wrap(shortened(text, 1000), letters, max_lines=LINES, placeholder=" ...") for text in captions]
    margin = 150 if per_row else 0
    foot = 0 if per_row else 4 + 13 * max(len(text) for text in texts)
    heads = [textwrap.wrap(name, max(10, width // 7), max_lines=LINES, placeholder=" ...") for name in header]
    top = 7 + 13 * max(1, *map(len, heads)) if per_row else 0
    sheet = Image.new("RGB", (margin + columns * (width + gap) + gap, top + rows * (height + foot + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        x = margin + gap + column * (width + gap) + width // 2
        draw.multiline_text((x, 4), "\n".join(lines), fill=INK, font=font, spacing=1, anchor="ma", align="center")
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        x, y = margin + gap + column * (width + gap), top + gap + row * (height + foot + gap)
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=(210, 210, 210))
        sheet.paste(tile, (x, y))
        if not per_row:
            draw.multiline_text((x, y + height + 2), "\n".join(texts[place]), fill=INK, font=font, spacing=1)
        elif column == 0:
            draw.multiline_text((gap, y + height // 2), "\n".join(texts[row]), fill=INK, font=font, anchor="lm")
    return sheet


@dataclass(frozen=True)
class Samples:
    """Sampled images: (N, 3, H, W) float32 in about [-1, 1], on the CPU. nfe: network evaluations per image. prompts:
    the N texts, or empty if an encoded condition was given. cached: what a step cache did for each image, or None. A
    notebook displays the images in a grid."""

    images: Tensor
    nfe: float
    prompts: Sequence[str] = ()
    cached: CacheUse | None = None

    @property
    def pixels(self) -> Tensor:
        """The images as (N, 3, H, W) uint8."""
        return to_pixels(self.images.detach())

    def grid(self, columns: int = 4, side: int = 128) -> Image.Image:
        """Returns one image of all images with their prompts below, each at least `side` pixels wide."""
        captions = self.prompts or [""] * len(self.images)
        return captioned_grid(self.pixels, captions, min(columns, len(captions)), side)

    def _repr_png_(self) -> bytes:
        return png(self.grid())
