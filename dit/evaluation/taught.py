"""What a fine-tuned run was taught, from its config: the subject's pictures, and prompts of the subject and of what the
model could draw before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from dit.checkpoints.native import CONFIG, find_checkpoint, is_run
from dit.types import CaptionedImages


def subject_source(config: DictConfig) -> DictConfig | None:
    """Returns the source `subject` of the training pictures, beside which there are others; None if it has none."""
    sources: Any = config.data.module.train.get("sources") or {}
    return sources.get("subject")


def subject_pictures(config: DictConfig) -> CaptionedImages:
    """Returns the pictures of the subject: of the source `subject`, or else all training pictures."""
    source = subject_source(config)
    if source is None:
        return instantiate(config.data.module.train)
    return instantiate(source)(size=config.data.size, split="train")


def subject_prompts(config: DictConfig) -> Sequence[str] | None:
    """Returns captions of the subject that training does not have, from the split `unseen`, or else the captions of its
    pictures. None without a source `subject`: then the held-out pictures show what the training pictures show."""
    if subject_source(config) is None:
        return None
    unseen = config.data.module.get("unseen")
    return list(subject_pictures(config).captions if unseen is None else instantiate(unseen).captions)


def class_prompts(config: DictConfig, base: str | None) -> Sequence[str]:
    """Returns prompts of what the model could draw before: the held-out captions of a run with a source `subject`, or
    else the preview prompts of the base, if that is a run. base: None for the `init` of the run."""
    if subject_source(config) is not None:
        return list(instantiate(config.data.module.val).captions)
    init = base or config.init
    data = find_checkpoint(init)[1][CONFIG]["data"] if init is not None and is_run(init) else {}
    return data.get("prompts") or ()
