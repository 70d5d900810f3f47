"""Takes parts of a config from the run whose weights training starts from, so that fine-tuning need not repeat them."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dit.build import VOCABULARY
from dit.checkpoints.initial import is_foreign
from dit.checkpoints.native import config_of, find_checkpoint


def inherit(cfg: DictConfig) -> None:
    """Replaces the parts that `cfg.inherit` names by those of the run `cfg.init`, in place. Weights of other libraries
    have no config: for them, and without init, nothing changes.

    The vocabulary stays open: it is that of the run, with the new words of the captions (`dit.training.vocabulary`).
    Raises ValueError if the command line changes such a part.
    """
    if not cfg.get("inherit") or cfg.init is None or is_foreign(cfg.init):
        return
    path, checkpoint = find_checkpoint(cfg.init)
    run = config_of(path, checkpoint)
    for part in cfg.inherit:
        refuse_override(part, cfg.init)
        value = OmegaConf.select(run, part)
        if value is not None or OmegaConf.select(cfg, part) is not None:  # adapter is no key of a config without one
            OmegaConf.update(cfg, part, value, merge=False, force_add=True)
    for name in VOCABULARY:
        if name in cfg.text_encoder:
            cfg.text_encoder[name] = None
    fitted = Path(path).absolute().parents[1] / "autoencoder"
    if "autoencoder" in cfg.inherit and run.get("fit_autoencoder") is not None:
        cfg.autoencoder.path = str(fitted)


def refuse_override(part: str, init: str) -> None:
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key == part or key.startswith(f"{part}."):
            raise ValueError(
                f"{override}: the experiment takes {part} from the run init={init}; leave it out, or say inherit=[]"
            )
