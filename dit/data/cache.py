"""Latents and text tokens, computed once and kept on disk: memory-mapped arrays with a manifest.

A cache is named by the content of all it was made from (pictures, captions, autoencoder, text encoder), so it can
never answer for other data. It is written beside its place and renamed when whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dit.types import Autoencoder, Batch, CaptionedImages, Condition, TextEncoder, from_pixels

VERSION = 3


def cache_folder(root: Path, source: CaptionedImages, autoencoder: Autoencoder, text: TextEncoder) -> Path:
    parts = (VERSION, source.fingerprint, autoencoder.fingerprint, text.fingerprint)
    return root / hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def build_cache(
    folder: Path,
    source: CaptionedImages,
    autoencoder: Autoencoder,
    text: TextEncoder,
    device: torch.device | str = "cpu",
    chunk: int = 256,
) -> None:
    """Writes the cache unless it is there. Each distinct caption is encoded once, and stored without padding."""
    if (folder / "manifest.json").is_file():
        return
    growing = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        growing.mkdir(parents=True)
        captions = sorted(set(source.captions))
        place = {caption: row for row, caption in enumerate(captions)}
        np.save(growing / "caption.npy", np.array([place[c] for c in source.captions], dtype=np.int64))
        _write_text(growing, captions, text, device, chunk)
        _write_latents(growing, source, autoencoder, device, chunk)
        manifest = {"version": VERSION, "pictures": len(source), "captions": len(captions)}
        (growing / "manifest.json").write_text(json.dumps(manifest))
        if (folder / "manifest.json").is_file():  # another process was quicker
            return
        if folder.exists():  # left without a manifest by a process that was stopped while removing it
            shutil.rmtree(folder)
        growing.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write the latent cache {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def _write_text(folder: Path, captions: list[str], text: TextEncoder, device: torch.device | str, chunk: int) -> None:
    text.to(device)
    captions = text.fit(captions)  # all at once, so that it is told once
    parts: dict[str, list[np.ndarray]] = {}  # those that this encoder gives
    for first in tqdm(range(0, len(captions), chunk), desc="encoding captions", leave=False):
        condition = text.encode(captions[first : first + chunk])
        if condition.tokens is not None and condition.tokens.abs().max() > 65504:
            raise ValueError(
                "the text encoder's states exceed 65504, float16's range; choose another layer, or normalize"
            )
        if condition.tokens is not None and condition.mask is not None:
            real = condition.tokens[condition.mask].half().cpu().numpy()
            with open(folder / "tokens.raw", "ab") as file:  # all captions' states may be larger than memory
                file.write(real.tobytes())
            parts["width"] = [np.array([real.shape[1]])]
            parts.setdefault("ends", []).append(condition.mask.sum(1).cpu().numpy())
        if condition.pooled is not None:
            parts.setdefault("pooled", []).append(condition.pooled.half().cpu().numpy())
        if condition.label is not None:
            parts.setdefault("label", []).append(condition.label.cpu().numpy())
    text.to("cpu")  # it may be larger than the network that is trained, and previews alone read prompts from now on
    for name, chunks in parts.items():
        whole = np.concatenate(chunks)
        np.save(folder / f"{name}.npy", whole.cumsum() if name == "ends" else whole)


def _write_latents(
    folder: Path, source: CaptionedImages, autoencoder: Autoencoder, device: torch.device | str, chunk: int
) -> None:
    latents = None
    for first in tqdm(range(0, len(source), chunk), desc="encoding pictures", leave=False):
        index = np.arange(first, min(first + chunk, len(source)))
        images = from_pixels(torch.from_numpy(source.images(index))).to(device)
        values = autoencoder.encode(images).half().cpu().numpy()
        if latents is None:
            shape = (len(source), *values.shape[1:])
            latents = np.lib.format.open_memmap(folder / "latents.npy", mode="w+", dtype=np.float16, shape=shape)
        latents[index] = values
    assert latents is not None
    latents.flush()


class LatentDataset(torch.utils.data.Dataset[Batch]):
    """A cache, read in batches: a list of indices -> Batch, its text padded to `length` tokens."""

    def __init__(self, folder: Path, length: int) -> None:
        self.length = length
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

    def __getitem__(self, index: list[int]) -> Batch:
        rows = self.caption[index]
        parts: dict[str, torch.Tensor] = {}
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
        x0 = torch.from_numpy(self.latents[index].astype(np.float32))
        return Batch(x0=x0, condition=Condition(**parts), index=torch.tensor(index))
