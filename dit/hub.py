"""Loading of published models from a folder, the hub's local cache or the hub.

Missing files are reported at once in one line; without this, the libraries retry an unreachable network for most of a
minute.
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
    """Sets the level of the root logger inside the `with` block, because open_clip logs to the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(before)


@contextmanager
def offline() -> Iterator[None]:
    """Inside the `with` block, the Hugging Face libraries read only the local cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def why_hub_is_unreachable() -> str | None:
    """Returns None if the hub can be reached, or else the reason, after at most three seconds."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids access to the hub"
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:  # versions of the hub's library use different HTTP libraries with different errors
        return f"{constants.ENDPOINT} does not answer"
    return None


def is_missing_hub_file(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is that a file of the hub is not in the local cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    missing = isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled))
    return missing or (error is not None and is_missing_hub_file(error.__cause__ or error.__context__))


def load_foreign(load: Callable[[], T], what: str, remedy: str, remote: bool) -> T:
    """Returns `load()` from local files only, or, if that fails and the model is `remote`, from the hub.

    Raises ValueError in one line: `what` cannot be loaded (why); `remedy`.
    """
    try:
        with offline(), root_logger_at(logging.CRITICAL):  # failures are reported below
            return load()
    except BROKEN as error:
        why = first_line(error)
        try_hub = remote or is_missing_hub_file(error)
    if try_hub and not (no_hub := why_hub_is_unreachable()):
        try:
            with root_logger_at(logging.CRITICAL):
                return load()
        except BROKEN as error:
            why = first_line(error)
    elif try_hub:
        why = f"it is incomplete in the local cache, and {no_hub}"
    raise ValueError(f"{what} cannot be loaded ({why}); {remedy}")


def load_open_clip(model: str, pretrained: str | None, remedy: str) -> tuple[Any, Any]:
    """Returns a frozen open_clip model with its tokenizer. model: an open_clip name with its `pretrained` tag or file,
    `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, or the name of a model that ships with dit.

    Raises ValueError, ending in `remedy`, if the weights cannot be loaded.
    """
    import open_clip

    if (ASSETS / model / "open_clip_config.json").is_file():
        model = f"local-dir:{ASSETS / model}"
    folder = Path(model.removeprefix("local-dir:"))
    own_merges = {"bpe_path": str(folder / MERGES)} if (folder / MERGES).is_file() else {}
    tag = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained) if pretrained else {}

    def load() -> tuple[Any, Any]:
        # Weights of a tag may need another activation than the model's config has; open_clip would only warn.
        quick = bool(tag.get("quick_gelu"))
        net = open_clip.create_model(model, pretrained=pretrained, require_pretrained=True, force_quick_gelu=quick)
        return net.eval().requires_grad_(False), open_clip.get_tokenizer(model, **own_merges)

    remote = bool(tag) or model.startswith("hf-hub:")
    return load_foreign(load, f"open_clip model {model!r} with weights {pretrained!r}", remedy, remote)
