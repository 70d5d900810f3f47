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

    from dit.data.shard_encoding import Encoding
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


def check_form(cfg: DictConfig) -> None:
    """Raises ValueError for data that a store does not hold: pictures of several sizes, and shares of a mixture."""
    from hydra.utils import get_object

    from dit.data.mixture import Mixture
    from dit.data.module import LatentData

    if get_object(cfg.data.module._target_) is not LatentData:
        raise ValueError(
            f"data.module={cfg.data.module._target_}: a store has pictures of one size; train with these data "
            f"directly, their latents are kept in cache_dir"
        )
    if any(get_object(cfg.data.module[split]._target_) is Mixture for split in cfg.splits if split in cfg.data.module):
        raise ValueError("a store has no shares of a mixture; train with these data directly, or prepare one source")


def write_splits(cfg: DictConfig, out: Path) -> None:
    # Slow imports follow after the command line is checked.
    import yaml
    from hydra.utils import instantiate

    from dit.cli.latents import split_of
    from dit.cli.quiet import quiet
    from dit.data.captions import all_captions
    from dit.data.shard_encoding import Encoding
    from dit.data.shard_writer import Limits, write_store
    from dit.data.shards import MANIFEST, PLAIN, RECORD, Store
    from dit.files import write_atomic
    from dit.plain_values import plain
    from dit.training.tasks import augmentation_of
    from dit.training.vocabulary import close_vocabulary, is_open

    quiet()
    check_form(cfg)
    device, autoencoder = own_device(cfg.device), instantiate(cfg.autoencoder)
    sources = {split: split_of(cfg, split) for split in cfg.splits}
    if is_open(cfg.text_encoder):
        close_vocabulary(cfg, [caption for source in sources.values() for caption in all_captions(source)], None)
    text, augmentation = instantiate(cfg.text_encoder), augmentation_of(cfg)
    if not (out / RECORD).is_file():
        write_atomic(
            out / RECORD, yaml.dump({name: plain(cfg)[name] for name in ("data", "autoencoder", "text_encoder")})
        )
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
