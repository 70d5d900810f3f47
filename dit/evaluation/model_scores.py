"""Scores of models that do not depend on a sampler, each cached by everything that it depends on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dit.code_digest import code_digest
from dit.distributed import all_reduce_sum, barrier, rank_and_world_size
from dit.errors import first_line
from dit.evaluation.likelihood import BitsPerDim
from dit.evaluation.model_description import code_outside
from dit.evaluation.subject import Subject
from dit.evaluation.sweep import RESULT_CODE, digest_of
from dit.files import read_text, write_atomic
from dit.pipeline import Pipeline
from dit.plain_values import plain
from dit.scoring.references import CHOSEN
from dit.types import CaptionedImages


class ModelScores:
    """Bits per dimension of each model of a subject. rows: the name of each model (model, group) and the setting
    of its run, its scores, and `made_with`, everything that they depend on.

    scores: by their names in `chosen`, the config's metrics. Raises ValueError if there are scores and the subject has
    no models, or no held-out pictures are given.
    """

    def __init__(
        self,
        subject: Subject,
        scores: Mapping[str, BitsPerDim],
        chosen: DictConfig,
        real: Mapping[str, CaptionedImages],
        seed: int,
    ) -> None:
        self.subject, self.scores, self.seed = subject, scores, seed
        if scores and not any(True for _ in subject.models()):
            raise ValueError("bits_per_dim is a score of models: give a run, ckpt=RUN, or omit it")
        for size in subject.sizes if scores else ():
            pipeline = next(subject.models()).pipeline
            if pipeline.shape_of(size) != pipeline.latent_shape:
                raise ValueError(f"size={list(size)}: bits_per_dim is of the size of training; omit size")
        if scores and "val" not in real:
            raise ValueError("bits_per_dim needs held-out pictures, and none are given; give real=FOLDER or .npz")
        self.real = real.get("val")
        self.settings = {name: plain(chosen[name]) for name in scores}

    def made_with(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Returns everything that the scores of a model depend on."""
        assert self.real is not None
        return {
            **model,
            "metrics": self.settings,
            "seed": self.seed,
            "pictures": {"content": self.real.fingerprint, "chosen": CHOSEN},
            "precision": "32",
            "code": {"dit": code_digest(*RESULT_CODE), **code_outside(self.settings)},
        }

    @property
    def subjects(self) -> list[dict[str, Any]]:
        """The description of each model that is scored."""
        return [dict(model.description) for model in self.subject.models()] if self.scores else []

    def rows(self, folder: Path, batch_size: int) -> list[dict[str, Any]]:
        """Returns the rows, one for each model: one that is given again, also by another path, is left out. Computes
        those that are not cached in `folder` and caches them."""
        found: dict[Path, dict[str, Any]] = {}
        for model in self.subject.models() if self.scores else ():
            made_with = self.made_with(model.description)
            file = folder / f"model_{digest_of(made_with)}.json"
            if file in found:
                if rank_and_world_size()[0] == 0 and model.name != found[file]["model"]:
                    first = found[file]["model"]
                    print(f"warning: {model.name} is the same model as {first}: left out", file=sys.stderr)
                continue
            if all_reduce_sum(not file.is_file())[0]:  # checked on all ranks before rank 0 writes it
                kept = {"scores": self._computed(model.pipeline, batch_size), "made_with": made_with}
                if rank_and_world_size()[0] == 0:
                    write_atomic(file, json.dumps(kept, indent=2) + "\n")
                barrier()
            found[file] = {"model": model.name, "group": model.group, "setting": model.setting, **read_scores(file)}
        return list(found.values())

    def _computed(self, pipeline: Pipeline, batch_size: int) -> dict[str, float]:
        assert self.real is not None
        computed: dict[str, float] = {}
        for score in self.scores.values():
            computed |= score(pipeline, self.real, self.seed, batch_size)
        return computed


def read_scores(file: Path) -> dict[str, Any]:
    """Returns the cached row of a model. Raises ValueError if the file is broken."""
    try:
        kept = json.loads(read_text(file))
        return {"scores": dict(kept["scores"]), "made_with": dict(kept["made_with"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is broken ({first_line(error)}); delete it, and it will be computed again") from None
