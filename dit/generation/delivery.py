"""What happens to pictures between the sampler and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dit.generation.work import Job


class Delivery:
    """Delivers every picture as it is. A subclass overrides what it needs: checks, marks, a signature, a log.

    The methods are called in the order in which they stand here, the first three with a batch, the others with one
    picture. A picture that is refused is not written; its row in the table says why. fingerprint: identifies all that
    decides what is delivered; an unfinished folder is continued only with the same one.
    """

    fingerprint = ""

    def check_prompts(self, jobs: Sequence[Job]) -> list[str]:
        """Returns for each job why it is refused before it is sampled, or ""."""
        return [""] * len(jobs)

    def check_pictures(self, jobs: Sequence[Job], pixels: Tensor) -> list[str]:
        """Returns for each of N pictures (N, 3, H, W) uint8 why it is refused, or ""."""
        return [""] * len(jobs)

    def mark(self, jobs: Sequence[Job], pixels: Tensor) -> Tensor:
        """Returns the pictures to write, (N, 3, H, W) uint8: changed as little as possible, or as they are."""
        return pixels

    def sign(self, row: Mapping[str, Any], png: bytes) -> bytes:
        """Returns the content of the file to write. row: what the table will say of the picture."""
        return png

    def log(self, row: Mapping[str, Any]) -> None:
        """Is called with every row of the table, delivered or refused, before its picture is given to the writer. After
        a kill the pictures of an unfinished shard are made again, and logged again."""
