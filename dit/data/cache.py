"""The latent cache: a store (`dit.data.shards`) whose name is a hash of everything that it depends on: pictures,
captions, autoencoder, text encoder, and the code that reads and encodes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from dit.code_digest import code_digest
from dit.data.shard_encoding import CODE, Encoding
from dit.data.shard_writer import write_store
from dit.data.shards import PLAIN, Augmentation
from dit.types import Autoencoder, CaptionedImages, TextEncoder


def cache_folder(
    root: Path,
    source: CaptionedImages,
    autoencoder: Autoencoder,
    text: TextEncoder,
    augmentation: Augmentation = PLAIN,
) -> Path:
    """Returns the folder of a cache, named by a hash of everything that it depends on."""
    module = type(source).__module__
    code = code_digest(*CODE, *([module.removeprefix("dit.").replace(".", "/")] if module.startswith("dit.") else []))
    parts = (code, source.fingerprint, autoencoder.fingerprint, text.fingerprint, augmentation)
    return root / hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def build_cache(
    folder: Path,
    source: CaptionedImages,
    autoencoder: Autoencoder,
    text: TextEncoder,
    augmentation: Augmentation = PLAIN,
    device: torch.device | str = "cpu",
    chunk: int = 256,
) -> None:
    """Writes the cache unless it exists, see `write_store`. One that was begun by a killed process is finished."""
    write_store(folder, source, Encoding(autoencoder, text, augmentation, device, chunk))
