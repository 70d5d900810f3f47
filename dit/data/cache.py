"""Cached latents and text tokens: computed once and stored on disk as memory-mapped arrays with a manifest.

The name of a cache is a hash of everything that it depends on (pictures, captions, autoencoder, text encoder, and the
code that reads and encodes them). A cache is written under a temporary name and renamed when it is complete.

The latent of a mirrored picture differs from the mirrored latent, and a latent that is sampled at each use cannot be
stored. If training needs these, the cache stores the latents of the picture and of its mirror image, and the mean and
standard deviation of each posterior.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit.code_digest import code_digest
from dit.data.order import Visit
from dit.diffusion.noise import generator
from dit.files import try_lock
from dit.types import Autoencoder, Batch, CaptionedImages, Condition, TextEncoder, from_pixels

CODE = ("data/cache", "encoders", "layers/embeddings", "picture_files", "types")  # computes the numbers for any data


@dataclass(frozen=True)
class Augmentation:
    """The random changes that training applies each time it uses a picture.

    flip: mirrors it with probability 1/2. posterior: "mode", the mode of the autoencoder's posterior, or "sample", a
    sample of it, as in DiT's training (arXiv:2212.09748).
    """

    flip: bool = False
    posterior: str = "mode"

    def __post_init__(self) -> None:
        if self.posterior not in ("mode", "sample"):
            raise ValueError(f"data.posterior={self.posterior} is neither mode nor sample")


PLAIN = Augmentation()


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


@contextmanager
def growing_folder(folder: Path) -> Iterator[Path]:
    """Creates a new folder beside `folder` for this process only, and removes it at the end unless it was renamed.

    The process holds a lock on a file of the same name, which exists before the folder and as long as it. A folder
    whose file is not locked was left by a process that was killed; such folders are removed here.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for lock in folder.parent.glob("*.tmp.lock"):
        left = lock.with_suffix("")
        if left.is_dir() and (dead := try_lock(lock)):
            shutil.rmtree(left, ignore_errors=True)
            lock.unlink(missing_ok=True)
            dead.close()
    growing = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    lock = growing.with_name(f"{growing.name}.lock")
    held = try_lock(lock)
    assert held is not None, "no other process has this name"
    try:
        growing.mkdir()
        yield growing
    finally:
        shutil.rmtree(growing, ignore_errors=True)
        lock.unlink(missing_ok=True)
        held.close()


def publish(growing: Path, folder: Path) -> None:
    """Renames a finished cache to its final name, unless another process was faster. Removes no complete cache."""
    try:
        growing.rename(folder)
    except OSError:
        if (folder / "manifest.json").is_file():
            return
        if not folder.exists():
            raise
        half = growing.with_name(f"{growing.name}.half")  # left by a process that was stopped while removing it
        folder.rename(half)
        growing.rename(folder)
        shutil.rmtree(half, ignore_errors=True)


def build_cache(
    folder: Path,
    source: CaptionedImages,
    autoencoder: Autoencoder,
    text: TextEncoder,
    augmentation: Augmentation = PLAIN,
    device: torch.device | str = "cpu",
    chunk: int = 256,
) -> None:
    """Writes the cache unless it exists. Encodes each distinct caption once and stores it without padding.

    Raises ValueError if the cache cannot be written, or if text states exceed float16's range.
    """
    if (folder / "manifest.json").is_file():
        return
    try:
        with growing_folder(folder) as growing:
            captions = sorted(set(source.captions))
            place = {caption: row for row, caption in enumerate(captions)}
            np.save(growing / "caption.npy", np.array([place[c] for c in source.captions], dtype=np.int64))
            _write_text(growing, captions, text, device, chunk)
            _write_latents(growing, source, autoencoder, augmentation, device, chunk)
            manifest = {"pictures": len(source), "captions": len(captions)}
            (growing / "manifest.json").write_text(json.dumps(manifest))
            publish(growing, folder)
    except OSError as error:
        raise ValueError(f"cannot write the latent cache {folder}: {error.strerror or error}") from error


def _write_text(folder: Path, captions: list[str], text: TextEncoder, device: torch.device | str, chunk: int) -> None:
    text.to(device)
    captions = text.fit(captions)  # all captions in one call, so that truncation is reported once
    parts: dict[str, list[np.ndarray]] = {}  # the outputs of this encoder by name
    for first in tqdm(range(0, len(captions), chunk), desc="encoding captions", leave=False):
        condition = text.encode(captions[first : first + chunk])
        if condition.tokens is not None and condition.tokens.abs().max() > 65504:
            raise ValueError(
                "the text encoder's states exceed 65504, float16's range; choose another layer, or normalize"
            )
        if condition.tokens is not None and condition.mask is not None:
            real = condition.tokens[condition.mask].half().cpu().numpy()
            with open(folder / "tokens.raw", "ab") as file:  # the states of all captions may not fit in memory
                file.write(real.tobytes())
            parts["width"] = [np.array([real.shape[1]])]
            parts.setdefault("ends", []).append(condition.mask.sum(1).cpu().numpy())
        if condition.pooled is not None:
            parts.setdefault("pooled", []).append(condition.pooled.half().cpu().numpy())
        if condition.label is not None:
            parts.setdefault("label", []).append(condition.label.cpu().numpy())
    text.to("cpu")  # frees memory: it may be larger than the trained network, and only previews use it from now on
    for name, chunks in parts.items():
        whole = np.concatenate(chunks)
        np.save(folder / f"{name}.npy", whole.cumsum() if name == "ends" else whole)


def _moments(autoencoder: Autoencoder, images: Tensor, posterior: str) -> Tensor:
    """Returns (B, M, C, h, w) of images (B, 3, H, W) in [-1, 1]: the latent (M = 1), or the mean and standard deviation
    of its posterior (M = 2)."""
    if posterior == "mode":
        return autoencoder.encode(images)[:, None]
    assert autoencoder.posterior is not None
    return torch.stack(autoencoder.posterior(images), dim=1)


def _write_latents(
    folder: Path,
    source: CaptionedImages,
    autoencoder: Autoencoder,
    augmentation: Augmentation,
    device: torch.device | str,
    chunk: int,
) -> None:
    """Writes latents.npy, (N, sides, M, C, h, w) float16, of each picture and, with flip, of its mirror image."""
    latents = None
    for first in tqdm(range(0, len(source), chunk), desc="encoding pictures", leave=False):
        index = np.arange(first, min(first + chunk, len(source)))
        images = from_pixels(torch.from_numpy(source.images(index))).to(device)
        sides = [images, images.flip(-1)] if augmentation.flip else [images]
        moments = torch.stack([_moments(autoencoder, side, augmentation.posterior) for side in sides], dim=1)
        values = moments.half().cpu().numpy()
        if latents is None:
            shape = (len(source), *values.shape[1:])
            latents = np.lib.format.open_memmap(folder / "latents.npy", mode="w+", dtype=np.float16, shape=shape)
        latents[index] = values
    assert latents is not None
    latents.flush()


class LatentDataset(torch.utils.data.Dataset[Batch]):
    """A cache, read in batches: a list of visits -> Batch, with text padded to `length` tokens.

    Flips and posterior samples are functions of (seed, epoch, sample).
    """

    def __init__(self, folder: Path, length: int, seed: int = 0) -> None:
        self.length, self.seed = length, seed
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        self.caption = np.load(folder / "caption.npy")
        self.ends, self.width, self.pooled, self.label = (
            np.load(folder / f"{name}.npy", mmap_mode="r") if (folder / f"{name}.npy").is_file() else None
            for name in ("ends", "width", "pooled", "label")
        )
        self.tokens: np.ndarray | None = None
        if self.width is not None:
            flat = np.memmap(folder / "tokens.raw", dtype=np.float16, mode="r")
            self.tokens = flat.reshape(-1, int(self.width[0]))

    def __len__(self) -> int:
        return len(self.latents)

    def _draw(self, visits: list[Visit]) -> Tensor:
        """Returns latents, (B, C, h, w) float32."""
        # four keys; training noise has three, so that no random stream is used twice
        draws = [generator(self.seed, visit.epoch, visit.sample, 0) for visit in visits]
        side = [int(torch.randint(self.latents.shape[1], (), generator=draw)) for draw in draws]
        moments = self.latents[[visit.sample for visit in visits], side]  # (B, M, C, h, w)
        mean, *std = torch.from_numpy(moments.astype(np.float32)).unbind(1)
        if not std:
            return mean
        noise = [torch.randn(mean.shape[1:], generator=draw, dtype=torch.float32) for draw in draws]
        return mean + std[0] * torch.stack(noise)

    def __getitem__(self, visits: list[Visit]) -> Batch:
        index = [visit.sample for visit in visits]
        rows = self.caption[index]
        parts: dict[str, Any] = {}
        if self.tokens is not None and self.ends is not None:
            tokens = np.zeros((len(index), self.length, self.tokens.shape[1]), dtype=np.float32)
            mask = np.zeros((len(index), self.length), dtype=bool)
            for place, row in enumerate(rows):
                start, end = (self.ends[row - 1] if row else 0), self.ends[row]
                tokens[place, : end - start] = self.tokens[start:end]
                mask[place, : end - start] = True
            parts |= {"tokens": torch.from_numpy(tokens), "mask": torch.from_numpy(mask)}
        if self.pooled is not None:
            parts["pooled"] = torch.from_numpy(self.pooled[rows].astype(np.float32))
        if self.label is not None:
            parts["label"] = torch.from_numpy(self.label[rows].astype(np.int64))
        epoch = torch.tensor([visit.epoch for visit in visits])
        condition = Condition(**parts).unmasked()
        return Batch(x0=self._draw(visits), condition=condition, index=torch.tensor(index), epoch=epoch)
