"""What a run makes of the captions of its pictures: the words or classes that it has, and whether it has any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dit.checkpoints.native import CONFIG, find_checkpoint
from dit.config_check import check_plain
from dit.encoders.classes import class_names
from dit.encoders.text import vocabulary
from dit.training.checkpoints import checkpoint_to_resume

READ = {"words": vocabulary, "names": class_names}  # settings of a text encoder that are null until captions are read


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
    elif cfg.init is not None and (Path(cfg.init).suffix == ".ckpt" or (Path(cfg.init) / "checkpoints").is_dir()):
        path = Path(cfg.init)
    if path is None:
        return []
    encoder = find_checkpoint(path)[1][CONFIG].get("text_encoder")
    if not isinstance(encoder, dict):
        return []
    return list(encoder.get(name) or []) if encoder.get("_target_") == cfg.text_encoder._target_ else []


def without_captions(run: DictConfig) -> bool:
    """Whether a run was trained on pictures without captions."""
    nothing = [run.text_encoder.get(name) for name in READ if OmegaConf.is_list(run.text_encoder.get(name))]
    return run.data.get("captions") == "none" or any(len(known) == 0 for known in nothing)


def trained_with_null(run: DictConfig) -> bool:
    """Whether a run was trained both with captions and without, so that guidance has what to lead away from."""
    return run.caption_dropout > 0 and not without_captions(run)
