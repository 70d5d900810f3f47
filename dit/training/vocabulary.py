"""The words or classes of a run: those of its captions, after those that its weights were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dit.checkpoints.native import CONFIG, find_checkpoint, is_run
from dit.encoders.classes import class_names
from dit.encoders.text import vocabulary
from dit.plain_values import check_plain
from dit.runs import VOCABULARY
from dit.training.checkpoints import checkpoint_to_resume

READ = dict(zip(VOCABULARY, (vocabulary, class_names), strict=True))  # null in a config until captions are read


def is_open(text_encoder: DictConfig) -> bool:
    """Whether a text encoder's words or classes are those of the captions, which are not read yet."""
    return any(text_encoder.get(name, ()) is None for name in READ)


def close_vocabulary(cfg: DictConfig, captions: Sequence[str], folder: Path | None) -> None:
    """Writes the words or classes of the captions into the config. What the weights that training starts with were
    trained on keeps its place: those of the run in `folder` that is resumed, or of `init`. Raises ValueError for new
    classes, which have no weights."""
    for name, read in READ.items():
        if cfg.text_encoder.get(name, ()) is None:
            found = read(captions, learnt(cfg, folder, name))
            check_plain({name: found}, "text_encoder")  # what captions hold is never resolved
            cfg.text_encoder[name] = found


def learnt(cfg: DictConfig, folder: Path | None, name: str) -> list[str]:
    """The words or classes of the checkpoint that training starts with; none where it starts from nothing, from other
    people's weights, or from another kind of text encoder."""
    path = None
    if cfg.resume is not None and folder is not None:
        path = checkpoint_to_resume(cfg.resume, folder)
    elif cfg.init is not None and is_run(cfg.init):
        path = Path(cfg.init)
    if path is None:
        return []
    encoder = find_checkpoint(path)[1][CONFIG].get("text_encoder")
    if not isinstance(encoder, dict):
        return []
    return list(encoder.get(name) or []) if encoder.get("_target_") == cfg.text_encoder._target_ else []
