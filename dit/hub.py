"""Other people's models from a folder, the hub's local cache or the hub.

What is missing is reported at once and in one line; the libraries alone would try a dead network for most of a minute.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from dit.errors import first_line
from dit.files import ASSETS

T = TypeVar("T")
MERGES = "bpe_merges.txt.gz"
BROKEN = (OSError, RuntimeError, ValueError, KeyError, ImportError, SafetensorError, pickle.UnpicklingError)


@contextmanager
def root_logger_at(level: int) -> Iterator[None]:
    """open_clip talks to the root logger; while this lasts, it is heard from `level` upwards."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(before)


@contextmanager
def offline() -> Iterator[None]:
    """While this lasts, whatever asks the Hugging Face hub reads its local cache alone."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def why_hub_is_unreachable() -> str | None:
    """None where the hub can be asked; else the reason, known after three seconds at most."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask the hub"
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:  # each version of the hub's library has another HTTP library below it, with errors of its own
        return f"{constants.ENDPOINT} does not answer"
    return None


def is_missing_hub_file(error: BaseException | None) -> bool:
    """True where an error, or one that it comes from, is that a file of the hub is not in the local cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    missing = isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled))
    return missing or (error is not None and is_missing_hub_file(error.__cause__ or error.__context__))


def load_foreign(load: Callable[[], T], what: str, remedy: str, remote: bool) -> T:
    """`load()` from files on this machine alone; where that fails for something `remote`, from the hub.

    Raises ValueError in one line: `what` cannot be had (why); `remedy`.
    """
    try:
        with offline(), root_logger_at(logging.CRITICAL):  # what fails is told below
            return load()
    except BROKEN as error:
        why = first_line(error)
        ask = remote or is_missing_hub_file(error)
    if ask and not (no_hub := why_hub_is_unreachable()):
        try:
            with root_logger_at(logging.CRITICAL):
                return load()
        except BROKEN as error:
            why = first_line(error)
    elif ask:
        why = f"it is not whole in the local cache, and {no_hub}"
    raise ValueError(f"{what} cannot be had ({why}); {remedy}")


def load_open_clip(model: str, pretrained: str | None, remedy: str) -> tuple[Any, Any]:
    """An open_clip model, frozen, with its tokenizer. model: an open_clip name with its `pretrained` tag or file,
    `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, or the name of a model that ships with dit.

    Raises ValueError, ending in `remedy`, when the weights are not to be had."""
    import open_clip

    if (ASSETS / model / "open_clip_config.json").is_file():
        model = f"local-dir:{ASSETS / model}"
    folder = Path(model.removeprefix("local-dir:"))
    own_merges = {"bpe_path": str(folder / MERGES)} if (folder / MERGES).is_file() else {}
    tag = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained) if pretrained else {}

    def load() -> tuple[Any, Any]:
        # Weights of a tag may want another activation than the model's config has; open_clip would only warn.
        quick = bool(tag.get("quick_gelu"))
        net = open_clip.create_model(model, pretrained=pretrained, require_pretrained=True, force_quick_gelu=quick)
        return net.eval().requires_grad_(False), open_clip.get_tokenizer(model, **own_merges)

    remote = bool(tag) or model.startswith("hf-hub:")
    return load_foreign(load, f"open_clip model {model!r} with weights {pretrained!r}", remedy, remote)
