"""Grids of samples with their captions, for people to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dit.errors import shortened

INK, PAPER = (40, 40, 40), (255, 255, 255)
LINES = 6  # of a caption; longer ones are cut


def enlarge(image: Tensor, side: int) -> Image.Image:
    """(3, H, W) uint8 -> a PIL image, small pictures magnified by a whole number to at least `side` pixels."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    times = max(1, -(-side // picture.width))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def captioned_grid(
    images: Tensor, captions: Sequence[str], columns: int, side: int = 128, header: Sequence[str] = ()
) -> Image.Image:
    """(N, 3, H, W) uint8 row by row, each above the beginning of its caption (shared by a whole row where captions are
    equal in number to the rows); `header` names the columns."""
    font = ImageFont.load_default(size=12)
    tiles = [enlarge(image, side) for image in images]
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    per_row = bool(header)
    gap, letters = 6, 24 if per_row else max(10, width // 6)
    texts = [textwrap.wrap(shortened(text, 1000), letters, max_lines=LINES, placeholder=" ...") for text in captions]
    margin = 150 if per_row else 0
    foot = 0 if per_row else 4 + 13 * max(len(text) for text in texts)
    top = 20 if per_row else 0
    sheet = Image.new("RGB", (margin + columns * (width + gap) + gap, top + rows * (height + foot + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(header):
        x = margin + gap + column * (width + gap) + width // 2
        draw.text((x, 4), name, fill=INK, font=font, anchor="ma")
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
