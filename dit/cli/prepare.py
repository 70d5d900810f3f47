"""Encodes a data set once, into shards: `python -m dit.cli.prepare data=folder data.path=DIR out=OUT`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dit.cli.front import front_door

if TYPE_CHECKING:
    import torch

    from dit.data.shard_writer import Encoding
    from dit.types import CaptionedImages


def run_processes(count: int) -> None:
    """Runs this command `count` times at once, each process on its own device. Raises SystemExit if one fails."""
    words = [sys.executable, "-m", "dit.cli.prepare", *sys.argv[1:], "devices=1"]
    started = [subprocess.Popen(words, env=os.environ | {"LOCAL_RANK": str(rank)}) for rank in range(count)]
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.terminate()
    if any(codes):
        sys.exit(next(code for code in codes if code))


def own_device(name: str) -> torch.device:
    """Returns the device of the config; if it is auto, the GPU of this process's number."""
    import torch

    from dit.devices import device_of

    device = torch.device(device_of(name))
    if name == "auto" and device.type == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return device


def check_finished(folder: Path, source: CaptionedImages, how: Encoding) -> None:
    """Raises ValueError if a finished store has other pictures or encoders."""
    from dit.data.shards import Store, differing, encoded_by

    store = Store(folder)
    given = encoded_by(how.autoencoder, how.text, how.augmentation) | {"source": source.fingerprint}
    sources = [str(entry["fingerprint"]) for entry in store.sources]
    stored = store.fields | {"source": given["source"] if given["source"] in sources else ", ".join(sources)}
    if fault := differing(stored, given):
        raise ValueError(
            f"{folder} is finished, and differs in {fault}; choose another out, or append=true to add other pictures"
        )


def prepare(cfg: DictConfig) -> Path:
    """Writes a store for each split, OUT/SPLIT, and prints OUT as the last line. What is there is not done again."""
    out = Path(cfg.out).absolute()
    if cfg.devices > 1:
        run_processes(cfg.devices)  # the first of them prints
        return out
    write_splits(cfg, out)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(out, flush=True)
    return out


def write_splits(cfg: DictConfig, out: Path) -> None:
    # Slow imports follow after the command line is checked.
    from hydra.utils import instantiate

    from dit.cli.latents import split_of
    from dit.cli.quiet import quiet
    from dit.data.captions import all_captions
    from dit.data.shard_writer import Encoding, Limits, write_store
    from dit.data.shards import MANIFEST, PLAIN, Store
    from dit.training.tasks import augmentation_of
    from dit.training.vocabulary import close_vocabulary

    quiet()
    device, autoencoder = own_device(cfg.device), instantiate(cfg.autoencoder)
    sources = {split: split_of(cfg, split) for split in cfg.splits}
    close_vocabulary(cfg, [caption for source in sources.values() for caption in all_captions(source)], None)
    text, augmentation = instantiate(cfg.text_encoder), augmentation_of(cfg)
    limits = Limits(cfg.shard_mb, cfg.max_broken)
    if augmentation.posterior == "sample" and autoencoder.posterior is None:
        raise ValueError("data.posterior=sample: this autoencoder has no posterior; choose data.posterior=mode")
    for split, source in sources.items():
        changes = augmentation if split == "train" else PLAIN  # held-out pictures are not augmented
        how = Encoding(autoencoder, text, changes, device, cfg.batch_size, cfg.workers)
        if (out / split / MANIFEST).is_file() and not cfg.append:
            check_finished(out / split, source, how)
        write_store(out / split, source, how, limits, cfg.append)
        if cfg.verify:
            Store(out / split, verify=True)


if __name__ == "__main__":
    front_door("prepare", "dit.cli.prepare:prepare")
