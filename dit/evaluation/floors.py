"""What a perfect sampler would get: real pictures judged like made ones, and the same after the autoencoder."""

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

Change = Callable[[Tensor], Tensor]


def there_and_back(autoencoder: Autoencoder) -> Change:
    """(B, 3, H, W) uint8 -> the same, encoded and decoded."""
    device = autoencoder.scale.device
    return lambda images: to_pixels(autoencoder.decode(autoencoder.encode(from_pixels(images).to(device)))).cpu()


def floors(
    sweep: Sweep, real: CaptionedImages, taken: int, batch_size: int, autoencoder: Autoencoder | None
) -> dict[str, Card]:
    """Cards by name: real, and autoencoder where there is one. They are of the pictures that come next in the random
    order whose first `taken` are the references; where fewer than the sweep's n are left, so many stand for them, as
    their columns' names say."""
    n = min(len(sweep.protocol.prompts), len(real) - taken)
    if n < 2:
        why = f"all {len(real)} real pictures are references, so none are left for a floor; ask for fewer references"
        print(f"warning: {why}", file=sys.stderr)
        return {}
    places = np.sort(subset(len(real), taken + n)[taken:])
    captions = [real.captions[int(place)] for place in places]

    def pictures(change: Change) -> Pictures:
        def make(seed: int, done: Done) -> Iterator[SampleBatch]:
            for rows in rank_batches(n, batch_size):
                images = torch.from_numpy(real.images(places[rows]))
                yield SampleBatch(change(images), [captions[i] for i in rows], rows)

        return make

    subjects = {"real": ({"images": "real"}, pictures(lambda images: images))}
    if autoencoder is not None:
        subject = {"images": "autoencoder", "autoencoder": autoencoder.fingerprint}
        subjects["autoencoder"] = (subject, pictures(there_and_back(autoencoder)))
    cells = {name: Cell({**subject, "taken": taken, "n": n}, make) for name, (subject, make) in subjects.items()}
    card = {**sweep.protocol.card, "n": n, "prompts_sha256": digest_of_prompts(captions)}
    protocol = replace(sweep.protocol, prompts=captions, card=card, shown=0)
    for cell in sweep.missing(list(cells.values()), protocol):
        sweep.score(cell, protocol)
    return {name: sweep.card(cell) for name, cell in cells.items()}
