"""What a fine-tuned run was taught, from its config: the subject's pictures, and prompts of the subject and of what the
model could draw before."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig

from dit.checkpoints.native import CONFIG, find_checkpoint, is_run
from dit.types import CaptionedImages


def has_subject(config: DictConfig) -> bool:
    """Returns whether the data have pictures of a subject, beside others that were trained on."""
    return config.data.module.get("subject") is not None


def subject_pictures(config: DictConfig) -> CaptionedImages:
    """Returns the split `subject`, or else all training pictures."""
    splits = config.data.module
    return instantiate(splits.subject if has_subject(config) else splits.train)


def subject_prompts(config: DictConfig) -> Sequence[str] | None:
    """Returns captions of the subject that training does not have, from the split `unseen`, or else the captions of its
    pictures. None without a subject: then the held-out pictures show what the training pictures show."""
    if not has_subject(config):
        return None
    unseen = config.data.module.get("unseen")
    return subject_pictures(config).captions if unseen is None else instantiate(unseen).captions


def class_prompts(config: DictConfig, base: str | None) -> Sequence[str]:
    """Returns prompts of what the model could draw before: with a subject the held-out captions, or else the preview
    prompts of the base, if that is a run. base: None for the `init` of the run."""
    if has_subject(config):
        return instantiate(config.data.module.val).captions
    init = base or config.init
    data = find_checkpoint(init)[1][CONFIG]["data"] if init is not None and is_run(init) else {}
    return data.get("prompts") or ()
