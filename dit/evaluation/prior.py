"""The drift of fine-tuned models: their pictures of class prompts against those of the model before fine-tuning, with
the same noise and the same way of sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from dit.distributed import rank_and_world_size
from dit.evaluation.base_model import is_base
from dit.evaluation.card import Card, read_parts
from dit.evaluation.sweep import RECIPE_FIELDS, Cell, Protocol, Sweep, digest_of
from dit.metrics.prior_drift import PriorDrift
from dit.scoring.prompts import digest_of_prompts

Parts = Mapping[str, Tensor]


def recipe_key(cell: Cell) -> str:
    """Returns a key for how a cell samples, whatever its model."""
    return digest_of({name: cell.subject.get(name) for name in RECIPE_FIELDS})


class PriorSweep:
    """Scores cells by their drift, in FOLDER/prior, which is like the folder of another sweep.

    cells: of the class prompts, those of the model before fine-tuning among them; each is compared with the one of
    that model that samples alike. protocol: of the sweep over the subject's prompts, of which this one differs in the
    prompts and the metrics. described: each metric, for the card.
    """

    def __init__(
        self,
        metrics: Mapping[str, PriorDrift],
        described: Mapping[str, object],
        prompts: Sequence[str],
        cells: Sequence[Cell],
        protocol: Protocol,
        folder: Path,
    ) -> None:
        bases = [cell for cell in cells if is_base(cell.subject)]
        self.metrics, self.cells, self.bases = metrics, cells, {recipe_key(cell): cell for cell in bases}
        card = {
            **{name: protocol.card[name] for name in ("n", "seed", "size", "uint8")},
            "prompts_sha256": digest_of_prompts(prompts),
            "prompts_from": "prompts of the class",
            "metrics": dict(described),
            "base": bases[0].subject["weights_sha256"],
        }
        self.protocol = replace(protocol, card=card, prompts=prompts)
        self.sweep = Sweep(metrics, self.protocol, folder / "prior", lambda: None)

    @property
    def headlines(self) -> dict[str, bool]:
        return self.sweep.headlines(len(self.protocol.prompts))

    def run(self) -> list[Card]:
        """Returns the card of each cell, in order, and scores the missing ones."""
        missing = self.sweep.missing(self.cells, self.protocol)
        references = {key: self.reference(self.bases[key]) for key in dict.fromkeys(map(recipe_key, missing))}
        with tqdm(total=len(missing), unit="cell", desc="prior drift", disable=rank_and_world_size()[0] > 0) as bar:
            for cell in missing:
                for name, metric in self.metrics.items():
                    metric.load_reference({"features": references[recipe_key(cell)][name]})
                self.sweep.score(cell, self.protocol)
                bar.update()
        return [self.sweep.card(cell) for cell in self.cells]

    def reference(self, base: Cell) -> dict[str, Tensor]:
        """Returns the features of the base's pictures for each metric, (N, D), in the order of the prompts."""
        for metric in self.metrics.values():
            metric.reset()
        for batch in base.pictures(self.protocol.seed, lambda images: None):
            for metric in self.metrics.values():
                metric.update(batch.images, batch.prompts, batch.index)
        return {name: metric.take_features().cpu() for name, metric in self.metrics.items()}

    def joined(self, cards: Sequence[Card], parts: Sequence[Parts]) -> tuple[list[Card], list[Parts]]:
        """Returns cards and parts of the same cells with the drift added."""
        found: list[Card] = []
        all_parts: list[Parts] = []
        for cell, card, part, drift in zip(self.cells, cards, parts, self.run(), strict=True):
            lost = {} if drift.failed is None else dict.fromkeys(self.metrics, drift.failed)
            all_parts.append({**part, **read_parts(self.sweep.file(cell))})
            found.append(
                replace(
                    card,
                    protocol={**card.protocol, "prior": drift.protocol},
                    scores={**card.scores, **drift.scores},
                    intervals={**card.intervals, **drift.intervals},
                    headlines={**card.headlines, **drift.headlines},
                    lost={**card.lost, **lost},
                )
            )
        return found, all_parts
