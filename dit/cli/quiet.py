"""Hides messages of other libraries that do not concern a run."""

from __future__ import annotations

import logging
import warnings

OF_NO_CONCERN = (
    "LeafSpec",
    "does not have many workers",
    "exists and is not empty",
    "isn't supported by the model summary",
    "You are using `torch.load`",
    "on epoch-level in distributed setting",
    "torch.jit.script` is deprecated",
)


def quiet() -> None:
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for words in OF_NO_CONCERN:
        warnings.filterwarnings("ignore", message=f".*{words}.*")
