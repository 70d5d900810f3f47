"""The interface of what evaluate.py scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dit.evaluation.run_settings import Setting
from dit.evaluation.sweep import Cell
from dit.pipeline import Pipeline
from dit.types import CaptionedImages


@dataclass(frozen=True)
class Model:
    """A model of dit. name: of its checkpoint and weights; group: the same without the seed of its training, common to
    models that differ only in the seed. description: for a card. setting: of its run, None for a single run."""

    name: str
    group: str
    pipeline: Pipeline
    description: Mapping[str, Any]
    setting: Setting | None = None


class Subject(ABC):
    """The subject of an evaluation. title: its name in the report; sizes: (width, height) of its pictures, several of a
    sweep; home: the default folder of its results; metric: its default metrics."""

    title: str
    sizes: Sequence[tuple[int, int]]
    home = Path("evaluations")
    metric = DictConfig({})

    @abstractmethod
    def cells(self, prompts: Sequence[str]) -> list[Cell]:
        """Returns each setting that samples a picture for every prompt, without duplicates.

        Raises ValueError if one cannot be sampled.
        """

    def real(self, split: str) -> CaptionedImages | None:
        """Returns the real pictures of its data, "val", "train" or "subject" (what a model was fine-tuned on), or None
        if the data are unknown."""
        return None

    def captions(self) -> Sequence[str] | None:
        """Returns the captions of existing pictures, or None for a model."""
        return None

    def prompts(self) -> Sequence[str] | None:
        """Returns prompts of the subject that a model was fine-tuned on; None if it was not, or if it is not known."""
        return None

    def class_prompts(self) -> Sequence[str]:
        """Returns prompts of what the model could draw before fine-tuning, if they are known."""
        return ()

    def compare_with_base(self) -> None:
        """Adds the model before fine-tuning as the first one. Raises ValueError if there is none."""
        raise ValueError("prior drift is measured on runs of dit: give ckpt=RUN, or leave the metric out")

    def models(self) -> Iterator[Model]:
        """Yields its models of dit. The floors use the first autoencoder."""
        return iter(())

    def settings(self, cells: Sequence[Cell]) -> list[Setting | None]:
        """Returns the setting of the run of each cell, None for a cell of another model; empty for a single run."""
        return []

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know about its models, one sentence each."""
        return []
