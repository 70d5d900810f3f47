"""Determines the words or classes of a run: those that its weights were trained on, then those of its captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dit.build import VOCABULARY
from dit.checkpoints.native import CONFIG, find_checkpoint, is_run
from dit.encoders.classes import class_names
from dit.encoders.text import vocabulary
from dit.plain_values import check_plain
from dit.training.checkpoints import checkpoint_to_resume

READ = dict(zip(VOCABULARY, (vocabulary, class_names), strict=True))  # null in a config until captions are read


def is_open(text_encoder: DictConfig) -> bool:
    """Returns True if a text encoder's words or classes are null: they are to be read from the captions."""
    return any(text_encoder.get(name, ()) is None for name in READ)


def close_vocabulary(cfg: DictConfig, captions: Sequence[str], folder: Path | None) -> None:
    """Writes the words or classes of the captions into the config. Those of the initial weights, from the resumed run
    in `folder` or from `init`, keep their indices. Raises ValueError for new classes, which have no weights."""
    for name, read in READ.items():
        if cfg.text_encoder.get(name, ()) is None:
            found = read(captions, trained_entries(cfg, folder, name))
            check_plain({name: found}, "text_encoder")  # text of captions must not be resolved
            cfg.text_encoder[name] = found


def trained_entries(cfg: DictConfig, folder: Path | None, name: str) -> list[str]:
    """Returns the words or classes of the checkpoint that training starts from. The list is empty if it starts from
    random weights, from weights of another library, or from a text encoder of another class."""
    path = None
    if cfg.get("resume") is not None and folder is not None:
        path = checkpoint_to_resume(cfg.resume, folder)
    elif cfg.get("init") is not None and is_run(cfg.init):
        path = Path(cfg.init)
    if path is None:
        return []
    encoder = find_checkpoint(path)[1][CONFIG].get("text_encoder")
    if not isinstance(encoder, dict):
        return []
    return list(encoder.get(name) or []) if encoder.get("_target_") == cfg.text_encoder._target_ else []
