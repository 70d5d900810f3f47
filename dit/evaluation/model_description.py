"""Descriptions of models by their content, for cards."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_object

from dit.code_digest import foreign_code
from dit.plain_values import plain, targets_in
from dit.runs import Run, second_run
from dit.tensors import fingerprint

SECOND = "dit.runs.network_of"


def model_of(run: Run) -> dict[str, Any]:
    """Returns the description of a model for a card: the hash of its weights, how they were reconstructed from
    snapshots if they were, its settings, and the fingerprints of its frozen encoders."""
    pipeline, config = run.pipeline, run.config
    coder, text = pipeline.autoencoder, pipeline.text_encoder
    scaling = {name: getattr(coder, name).flatten().tolist() for name in ("shift", "scale")}
    settings = {name: plain(config[name]) for name in ("backbone", "adapter", "path", "prediction") if config.get(name)}
    networks: dict[str, Any] = {
        **settings,
        "latents": list(pipeline.latent_shape),
        "autoencoder": {"kind": type(coder).__name__, "content": coder.fingerprint, **scaling},
        "text_encoder": {"kind": type(text).__name__, "content": text.fingerprint},
    }
    networks |= {"code": code} if (code := code_outside(settings) | foreign_code(coder, text)) else {}
    made = {} if run.posthoc is None else {"posthoc": run.posthoc.description}
    added = run.adapters.description if run.adapters is not None else []
    networks |= {"adapters": added} if added else {}
    return {"weights_sha256": fingerprint(pipeline.backbone), **made, "networks": networks}


def with_content(node: Any) -> Any:
    """Returns a plain config in which each second network (`dit.runs.network_of`) is described by its content, not
    its path."""
    if isinstance(node, dict) and node.get("_target_") == SECOND:
        run = second_run(node["ckpt"], node.get("weights", "ema"))
        return {"step": run.step} | model_of(run)
    return {key: with_content(value) for key, value in node.items()} if isinstance(node, dict) else node


def code_outside(node: Any) -> dict[str, str]:
    """Returns hashes of the code from outside dit that a plain config builds."""
    return foreign_code(*(get_object(target) for target in targets_in(node)))
