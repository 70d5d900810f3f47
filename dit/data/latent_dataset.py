"""Latents and texts of shards as training batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.data.captions import chosen_caption
from dit.data.order import Visit
from dit.data.shards import Augmentation, Shards, Store
from dit.diffusion.noise import generator
from dit.types import Batch, Condition


def before_and_at(ends: Tensor, place: int) -> tuple[int, int]:
    """Returns where an entry begins and ends in arrays of which `ends` says where each entry ends."""
    return int(ends[place - 1]) if place else 0, int(ends[place])


class LatentDataset(torch.utils.data.Dataset[Batch]):
    """A store, read in batches: a list of visits -> Batch, with text padded to `length` tokens, or with None to the
    longest text of its batch.

    Flips and posterior samples are functions of (seed, epoch, sample). augmentation: None for what the store was made
    for; a store with mirror images and posteriors can be read without them. choose: whether the caption of a sample
    that has several is a function of these keys too; else it is the first. The pictures of a batch have one size.
    """

    def __init__(
        self,
        store: Shards | Path,
        length: int | None,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        choose: bool = False,
    ) -> None:
        self.store = store if isinstance(store, Shards) else Store(store)
        self.length, self.seed, self.choose = length, seed, choose
        _, sides, moments, *_ = self.store.shapes(0)["latents"]
        self.sides = sides if augmentation is None or augmentation.flip else 1
        self.moments = moments if augmentation is None or augmentation.posterior == "sample" else 1

    def __len__(self) -> int:
        return len(self.store)

    def _latents(self, visits: list[Visit], places: list[tuple[int, int]]) -> Tensor:
        """Returns latents, (B, C, h, w) float32."""
        shape = self.store.shapes(places[0][0])["latents"][3:]
        found = torch.empty(len(visits), self.moments, *shape)
        noise = torch.empty(len(visits) if self.moments == 2 else 0, *shape)
        stored = self.store.rows("latents", [(place, row, row + 1) for place, row in places])
        for i, (visit, latents) in enumerate(zip(visits, stored, strict=True)):
            side = 0
            if self.sides > 1 or self.moments > 1:
                # four keys; training noise has three, so that no random stream is used twice
                draw = generator(self.seed, visit.epoch, visit.sample, 0)
                side = int(torch.randint(self.sides, (), generator=draw))
                if self.moments > 1:
                    torch.randn(shape, generator=draw, out=noise[i])
            found[i] = latents[0, side, : self.moments]
        return found[:, 0] if self.moments == 1 else found[:, 0] + found[:, 1] * noise

    def _caption(self, visit: Visit, place: int, row: int) -> int:
        """Returns the index of a visit's caption in its shard."""
        read = partial(self.store.array, place)
        if self.choose and "choice" in self.store.shapes(place):
            start, end = before_and_at(read("choice_ends"), row)
            if start < end:  # else it has the empty caption
                weights = read("choice_weight")[start:end].tolist()
                return int(read("choice")[start + chosen_caption(weights, self.seed, visit.epoch, visit.sample)])
        return int(read("caption")[row])

    def _condition(self, visits: list[Visit], places: list[tuple[int, int]]) -> Condition:
        pairs = zip(visits, places, strict=True)
        captions = [(place, self._caption(visit, place, row)) for visit, (place, row) in pairs]
        there = self.store.shapes(places[0][0])
        parts: dict[str, Any] = {}
        if "tokens" in there:
            ends = [(place, *before_and_at(self.store.array(place, "ends"), caption)) for place, caption in captions]
            texts = self.store.rows("tokens", ends)
            lengths = torch.tensor([len(text) for text in texts])
            length = max(int(lengths.max()), 1) if self.length is None else self.length
            tokens = torch.empty(len(texts), length, texts[0].shape[1])
            for row, text in zip(tokens, texts, strict=True):
                row[: len(text)] = text
                row[len(text) :] = 0
            parts |= {"tokens": tokens, "mask": torch.arange(length) < lengths[:, None]}
        for name, dtype in (("pooled", torch.float32), ("label", torch.int64)):
            if name in there:
                rows = self.store.rows(name, [(place, caption, caption + 1) for place, caption in captions])
                parts[name] = torch.cat(rows).to(dtype)
        return Condition(**parts).unmasked()

    def __getitem__(self, visits: list[Visit]) -> Batch:
        index = [visit.sample for visit in visits]
        places = self.store.locate(index)
        epoch = torch.tensor([visit.epoch for visit in visits])
        return Batch(self._latents(visits, places), self._condition(visits, places), torch.tensor(index), epoch)
