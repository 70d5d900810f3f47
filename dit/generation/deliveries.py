"""The delivery of a command's config: its policy, its watermark, its signature and its audit log."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dit.generation.delivery import Delivery
from dit.generation.encoding import Encoding
from dit.generation.marked import Marked
from dit.generation.policy import Policy
from dit.generation.screening import Screened


def delivery_of(cfg: DictConfig, refusals: Path | None, **texts: str | None) -> Delivery:
    """Returns what happens to the pictures of a config. refusals: a file to which the policy's refusals are appended.
    texts: what all pictures depend on, by name. Raises ValueError for a policy, a mark, a certificate or a log that
    cannot be used, and if the policy refuses one of the texts."""
    screened = Screened(Policy(instantiate(cfg.policy)), refusals) if cfg.policy else None
    delivery = marked_signed_logged(cfg, screened or Delivery())
    if screened is not None:
        screened.demand(delivery, **texts)
    return delivery


def marked_signed_logged(cfg: DictConfig, delivery: Delivery) -> Delivery:
    """Returns another delivery with the mark, the signature and the log of a config."""
    if cfg.marks is not None:
        encoding = Encoding(cfg.get("encoding", "png"), cfg.get("quality", 95))  # serve and synthesize write PNG
        delivery = Marked(delivery, instantiate(cfg.marks), encoding)
    if (cfg.certificate is None) != (cfg.certificate_key is None):
        raise ValueError("pictures are signed with certificate=FILE and certificate_key=FILE; give both or neither")
    if cfg.certificate is not None:
        from dit.generation.credentials import Signer
        from dit.generation.signed import Signed

        delivery = Signed(delivery, Signer(cfg.certificate, cfg.certificate_key), cfg.get("image"))
    if cfg.audit is None:
        if cfg.review is not None:
            raise ValueError(f"review={cfg.review} needs the log that keeps the verdicts: audit=LOG")
        return delivery
    from dit.generation.audit import AuditLog
    from dit.generation.audited import Audited
    from dit.generation.reviews import holding_folder

    config = OmegaConf.to_container(cfg)  # unresolved, as a replay changes it like this call does
    assert isinstance(config, dict)
    hold = None if cfg.review is None else holding_folder(cfg.review)
    recorded = {str(key): value for key, value in config.items()}
    return Audited(delivery, AuditLog(cfg.audit), cfg.audit_subject, recorded, hold)
