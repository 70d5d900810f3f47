"""The few pictures of one subject, all of them for training (DreamBooth, arXiv:2208.12242)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dit.data.picture_folder import PicturesLayout
from dit.data.source import Images, readable, with_captions
from dit.picture_files import Rules

FEWEST, MOST = 3, 10  # pictures
ALIKE = 2.0  # mean absolute difference of two pictures that count as one, of 255


class Subject(Images):
    """The three to ten pictures below `path`, at `size`. A picture without its own caption gets `caption`.

    Own captions are those of `dit.data.folder.Folder`. split: only `train`. Raises ValueError for another number of
    pictures, for pictures that are all alike, and for a caption without the token.
    """

    def __init__(
        self,
        path: str,
        caption: str,
        token: str,
        size: int,
        split: str = "train",
        rules: Mapping[str, str] | None = None,
    ) -> None:
        if split != "train":
            raise ValueError(f"split={split!r}: all pictures of a subject are for training")
        layout = PicturesLayout(path)
        rows = readable(layout, layout.rows(None), None)
        if not FEWEST <= len(rows) <= MOST:
            remedy = "add some" if len(rows) < FEWEST else "choose some, or train with experiment=folder init=..."
            raise ValueError(
                f"data.path={path} has {len(rows)} picture{'s' if len(rows) > 1 else ''}; a subject needs {FEWEST} to "
                f"{MOST} that differ: {remedy}"
            )
        super().__init__(layout, [row if row.captions else with_captions(row, ((caption, 1.0),)) for row in rows], size,
                         Rules(**(rules or {})))  # fmt: skip
        for row, text in zip(self.rows, self.captions, strict=True):
            if token not in text:
                raise ValueError(
                    f"data.path={path}: the caption of {row.name}, {text!r}, has no data.token={token}; write it there"
                )
        pictures = self.images(np.arange(len(rows))).astype(np.float32)
        if max(float(np.abs(picture - pictures[0]).mean()) for picture in pictures) < ALIKE:
            raise ValueError(
                f"data.path={path}: its {len(rows)} pictures are all alike, so that one picture would be learned and "
                f"not the subject; add others, with another background, pose or light"
            )
