"""The model before fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dit.build import build_pipeline
from dit.checkpoints.initial import is_foreign, start_from
from dit.devices import device_of
from dit.errors import first_line
from dit.runs import Run, own_autoencoder

BASE = "base"  # its name among the checkpoints of a run


def is_base(subject: Mapping[str, Any]) -> bool:
    """Returns whether the subject of a cell is such a model."""
    return str(subject["checkpoint"]).endswith(f"/{BASE}")


def base_model(cfg: DictConfig, checkpoint: Path, init: str | None = None, device: str = "auto") -> Run:
    """Returns the model that a run with this config was started from, without the run's adapter, at step 0.

    checkpoint: any of the run. init: other weights instead of those of the run's `init`. Raises ValueError if the run
    started from random weights, or if the weights cannot be read."""
    cfg = cfg.copy()
    cfg.adapter, cfg.init = None, init or cfg.get("init")
    if cfg.init is None:
        raise ValueError(
            f"{checkpoint.parents[1]} was trained from random weights, so that there is no model before fine-tuning to "
            f"compare with; give one with base=RUN, or leave out the metrics of drift"
        )
    target = device_of(device)
    pipeline = build_pipeline(cfg, own_autoencoder(cfg, checkpoint), device="meta" if is_foreign(cfg.init) else "cpu")
    try:
        start_from(pipeline.backbone, cfg)
    except ValueError as error:
        raise ValueError(f"the model before fine-tuning: {first_line(error)}; say where it is with base=PATH") from None
    pipeline.backbone.eval().requires_grad_(False).to(target)
    pipeline.text_encoder.to(target)
    return Run(pipeline, cfg, checkpoint, 0)
