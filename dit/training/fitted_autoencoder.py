"""Fits an autoencoder to a data set, once; the cache names it by everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from dit.code_digest import code_digest
from dit.data.module import PictureData, Pictures
from dit.data.order import Visit, subset
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.encoders.autoencoder_weights import load_network
from dit.encoders.statistics import measure
from dit.files import write_atomic
from dit.training.autoencoder import AutoencoderModule
from dit.training.optimizer import adamw, warmup_and_decay
from dit.training.progress import Bar
from dit.types import CaptionedImages

CODE = ("training/autoencoder", "training/fitted_autoencoder", "training/optimizer", "encoders")
SUMMARY = "fit.json"


@dataclass(frozen=True)
class Fit:
    """Settings of the fit. start: the autoencoder to initialise from, as `autoencoder.path`. channels: of the latents.
    steps: optimizer steps, or None for as many as `share` of the budget allows."""

    start: str = "shapes_autoencoder"
    channels: int = 4
    steps: int | None = None
    share: float = 0.3
    batch_size: int = 16
    lr: float = 2e-3

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(
                f"fit_autoencoder.steps={self.steps} must be at least 1, or null to use a share of the budget"
            )
        if min(self.channels, self.batch_size, self.lr) <= 0:
            raise ValueError(f"{self}: fit_autoencoder.channels, batch_size and lr must be positive")
        if not 0 < self.share < 1:
            raise ValueError(f"fit_autoencoder.share={self.share} of the budget must lie between 0 and 1")


def fitted_folder(root: Path, train: CaptionedImages, fit: Fit, seconds: float | None, seed: int) -> Path:
    """Returns the cache folder of a fit. Its name depends on the pictures, the settings, the seed, the code, and, if no
    steps are given, the time budget. It does not depend on the measured time of a step."""
    parts = (train.fingerprint, asdict(fit), None if fit.steps else seconds, seed, code_digest(*CODE))
    return root / "autoencoders" / hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def fitted_autoencoder(
    train: CaptionedImages,
    val: CaptionedImages,
    fit: Fit,
    seconds: float | None,
    seed: int,
    root: Path,
    accelerator: str = "auto",
) -> Path:
    """Returns the folder of the autoencoder, in diffusers' layout; fits it unless the folder exists. Prints the PSNR on
    held-out pictures, with a verdict. The folder appears only when it is complete, also if the process is stopped."""
    folder = fitted_folder(root, train, fit, seconds, seed)
    if not (folder / SUMMARY).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        growing = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".tmp"))
        try:
            measured = fit_now(train, val, fit, seconds, seed, growing, accelerator)
            write_atomic(growing / "autoencoder" / SUMMARY, json.dumps(measured, indent=2) + "\n")
            if not folder.exists():  # unless another process has finished first
                (growing / "autoencoder").rename(folder)
        finally:
            shutil.rmtree(growing, ignore_errors=True)
    measured = json.loads((folder / SUMMARY).read_text())
    print(
        f"autoencoder: {measured['steps']:,} steps on {len(train):,} pictures; {measured['verdict']} ({folder})",
        file=sys.stderr,
    )
    return folder


def fit_now(
    train: CaptionedImages,
    val: CaptionedImages,
    fit: Fit,
    seconds: float | None,
    seed: int,
    place: Path,
    accelerator: str,
) -> dict[str, Any]:
    """Fits the autoencoder, writes the weights to `place`/autoencoder and returns steps, PSNR and its error."""
    data = PictureData(train, val, fit.batch_size, seed, val_limit=512)
    make = partial(module_of, fit, seed)
    steps = fit.steps
    if steps is None:
        assert seconds is not None
        with torch.random.fork_rng():
            steps = max(int(seconds / seconds_of_step(make, train, fit.batch_size)), 1)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=steps,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[Bar()],
        default_root_dir=str(place),
    )
    trainer.fit(make(), datamodule=data)
    fitted = PretrainedAutoencoder(str(place / "autoencoder"), slice_size=64)
    rows = subset(len(val), 512)
    found = measure(fitted, (torch.from_numpy(val.images(part)) for part in np.array_split(rows, -(-len(rows) // 64))))
    return {"steps": steps, **{name: found[name] for name in ("pictures", "psnr", "psnr_se", "psnr_halved", "verdict")}}


def module_of(fit: Fit, seed: int) -> AutoencoderModule:
    """Returns the module that trains the network of `start` with `fit.channels` latent channels."""
    config: Mapping[str, Any] = load_network(fit.start).config
    net = {name: value for name, value in config.items() if not name.startswith("_")}
    return AutoencoderModule(
        net | {"latent_channels": fit.channels},
        optimizer=partial(adamw, lr=fit.lr, betas=(0.9, 0.99), weight_decay=0.01),
        schedule=partial(warmup_and_decay, warmup=30, decay=0.7),
        seed=seed,
        start=fit.start,
    )


def seconds_of_step(make: Callable[[], AutoencoderModule], train: CaptionedImages, batch_size: int) -> float:
    """Returns the median duration in seconds of a few steps on this machine's CPU or GPU."""
    module = make().to("cuda" if torch.cuda.is_available() else "cpu")
    batch, spent = Pictures(train)[[Visit(i % len(train), 0) for i in range(batch_size)]], []
    for _ in range(6):
        start = time.perf_counter()
        loss = module.loss(batch, 0)
        loss.backward()
        loss.item()  # waits for the device
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])
