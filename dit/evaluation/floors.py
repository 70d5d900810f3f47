"""The scores of a perfect sampler: real pictures scored like samples, and the same pictures after the autoencoder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dit.data.order import subset
from dit.distributed import rank_batches
from dit.evaluation.card import Card
from dit.evaluation.sweep import Cell, Pictures, Sweep
from dit.scoring.prompts import digest_of_prompts
from dit.scoring.samples import Done, SampleBatch
from dit.types import Autoencoder, CaptionedImages, from_pixels, to_pixels

Transform = Callable[[Tensor], Tensor]


def reconstruction(autoencoder: Autoencoder) -> Transform:
    """Returns a function that encodes and decodes (B, 3, H, W) uint8."""
    device = autoencoder.scale.device
    return lambda images: to_pixels(autoencoder.decode(autoencoder.encode(from_pixels(images).to(device)))).cpu()


def floors(
    sweep: Sweep, real: CaptionedImages, references: int, batch_size: int, autoencoder: Autoencoder | None
) -> dict[str, Card]:
    """Returns the cards by name: "real", and "autoencoder" if there is one; {} with a warning if no pictures are left.

    The pictures are the next in the random order whose first `references` pictures are the references. If fewer than
    the sweep's n are left, all of them are scored; the names of the columns then carry this smaller number.
    """
    n = min(len(sweep.protocol.prompts), len(real) - references)
    if n < 2:
        reason = f"all {len(real)} real pictures are references, so none are left for a floor; use fewer references"
        print(f"warning: {reason}", file=sys.stderr)
        return {}
    indices = np.sort(subset(len(real), references + n)[references:])
    captions = [real.captions[int(index)] for index in indices]

    def pictures(transform: Transform) -> Pictures:
        def batches(seed: int, done: Done) -> Iterator[SampleBatch]:
            for rows in rank_batches(n, batch_size):
                images = torch.from_numpy(real.images(indices[rows]))
                yield SampleBatch(transform(images), [captions[i] for i in rows], rows)

        return batches

    subjects = {"real": ({"images": "real"}, pictures(lambda images: images))}
    if autoencoder is not None:
        subject = {"images": "autoencoder", "autoencoder": autoencoder.fingerprint}
        subjects["autoencoder"] = (subject, pictures(reconstruction(autoencoder)))
    cells = {
        name: Cell({**subject, "size": sweep.protocol.size, "taken": references, "n": n}, batches)
        for name, (subject, batches) in subjects.items()
    }
    card = {**sweep.protocol.card, "n": n, "prompts_sha256": digest_of_prompts(captions)}
    protocol = replace(sweep.protocol, prompts=captions, card=card, shown=0)
    for cell in sweep.missing(list(cells.values()), protocol):
        sweep.score(cell, protocol)
    return {name: sweep.card(cell) for name, cell in cells.items()}
