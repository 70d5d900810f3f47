"""Extractors of metrics by name, for the commands: metric.fd_own.extractor=pixels."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dit.files import CONF


def name_extractors(cfg: DictConfig, config_dir: str | None) -> None:
    """Replaces names of extractors, metric.fd_own.extractor=pixels, by those of conf/metric/extractor, in place. Raises
    ValueError for an unknown name."""
    folders = [Path(folder) / "metric/extractor" for folder in (config_dir, CONF) if folder is not None]
    known = {file.stem: file for folder in reversed(folders) for file in folder.glob("*.yaml")}
    for name, metric in (cfg.get("metric") or {}).items():
        given = metric.get("extractor") if isinstance(metric, DictConfig) else None
        if isinstance(given, str):
            if given not in known:
                names = ", ".join(sorted(known))
                raise ValueError(f"metric.{name}.extractor={given}: there is no such extractor; choose one of {names}")
            metric.extractor = OmegaConf.load(known[given])
