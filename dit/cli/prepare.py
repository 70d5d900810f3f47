"""Encodes a data set once, into shards: `python -m dit.cli.prepare data=folder data.path=DIR out=OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dit.cli.front import front_door
from dit.cli.processes import is_first, own_device, run_processes

if TYPE_CHECKING:
    from dit.data.shard_encoding import Encoding
    from dit.data.shards import Parts
    from dit.types import CaptionedImages


def parts_of(cfg: DictConfig, split: str) -> tuple[dict[str, CaptionedImages], Parts | None]:
    """Returns the pictures of each store that a split needs, by its name below the split's folder ("" for the folder
    itself), and what parts.json will say. Raises ValueError for data that a store does not hold."""
    from hydra.utils import get_object

    from dit.cli.latents import split_of
    from dit.data.bucket_data import BucketData, buckets_of
    from dit.data.mixture import Mixture
    from dit.data.module import LatentData
    from dit.data.shards import Parts
    from dit.data.source import Images

    module, source = get_object(cfg.data.module._target_), split_of(cfg, split)
    if module not in (LatentData, BucketData):
        raise ValueError(
            f"data.module={cfg.data.module._target_}: latents are prepared for dit.data.module.LatentData or "
            f"dit.data.bucket_data.BucketData; choose data=... with one of these"
        )
    if isinstance(source, Mixture):
        parts = Parts("mixture", source.names, cfg.data.size, dict(zip(source.names, source.weights, strict=True)))
        return dict(zip(source.names, source.parts, strict=True)), parts
    if module is BucketData and split == "train":
        if not isinstance(source, Images):
            raise ValueError(f"buckets need pictures with sizes of their own, and {type(source).__name__} has one size")
        found = buckets_of(source, cfg.data.size, cfg.data.module.side_multiple)
        buckets = {f"{width}x{height}": images for (height, width), images in found.items()}
        return dict(buckets), Parts("buckets", list(buckets), cfg.data.size)
    return {"": source}, None


def extended(parts: Parts, folder: Path, append: bool) -> Parts:
    """Returns the parts of a split that is finished, with new ones. Raises ValueError if it has other ones and they are
    not to be appended."""
    from dit.data.shards import MANIFEST, Parts

    before = Parts.read(folder)
    if (folder / MANIFEST).is_file() or (before and (before.kind, before.size) != (parts.kind, parts.size)):
        raise ValueError(
            f"{folder} is prepared in another form, not {parts.kind} of data.size={parts.size}; choose another out"
        )
    if before is None or before == parts:
        return parts
    if not append:
        raise ValueError(
            f"{folder} is finished, with the {before.kind} {', '.join(before.names)}; choose another out, "
            f"or append=true to add other pictures"
        )
    names = list(dict.fromkeys([*before.names, *parts.names]))
    if parts.kind == "buckets":
        names.sort(key=lambda name: tuple(map(int, name.split("x")))[::-1])  # the order in which training numbers them
    return Parts(parts.kind, names, parts.size, before.weights | parts.weights)


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
    if "://" in cfg.out:
        raise ValueError(f"out={cfg.out}: give a folder, and copy it to the store; training reads it there")
    out = Path(cfg.out).absolute()
    if cfg.devices > 1:
        run_processes("dit.cli.prepare", cfg.devices, cfg.device)  # the first of them prints
        return out
    write_splits(cfg, out)
    if is_first():
        print(out, flush=True)
    return out


def write_splits(cfg: DictConfig, out: Path) -> None:
    # Slow imports follow after the command line is checked.
    import json
    from dataclasses import asdict

    import yaml
    from hydra.utils import instantiate

    from dit.cli.quiet import quiet
    from dit.data.captions import all_captions
    from dit.data.shard_encoding import Encoding
    from dit.data.shard_writer import Limits, Wanted, write_stores
    from dit.data.shards import MANIFEST, PARTS, PLAIN, RECORD, Store
    from dit.files import write_atomic
    from dit.plain_values import plain
    from dit.training.tasks import augmentation_of
    from dit.training.vocabulary import close_vocabulary, is_open

    quiet()
    device, autoencoder = own_device(cfg.device), instantiate(cfg.autoencoder)
    sources = {split: parts_of(cfg, split) for split in cfg.splits}
    if is_open(cfg.text_encoder):
        every = [source for parts, _ in sources.values() for source in parts.values()]
        close_vocabulary(cfg, [caption for source in every for caption in all_captions(source)], None)
    text, augmentation = instantiate(cfg.text_encoder), augmentation_of(cfg)
    if augmentation.posterior == "sample" and autoencoder.posterior is None:
        raise ValueError("data.posterior=sample: this autoencoder has no posterior; choose data.posterior=mode")
    if not (out / RECORD).is_file():
        write_atomic(
            out / RECORD, yaml.dump({name: plain(cfg)[name] for name in ("data", "autoencoder", "text_encoder")})
        )
    for split, (named, parts) in sources.items():
        folder, changes = out / split, augmentation if split == "train" else PLAIN  # held-out ones are not augmented
        how = Encoding(autoencoder, text, changes, device, cfg.batch_size, cfg.workers)
        index = None if parts is None else extended(parts, folder, cfg.append)
        if index is None and (folder / PARTS).is_file():
            raise ValueError(f"{folder} is prepared in parts, see {folder / PARTS}; choose another out")
        wanted = [Wanted(folder / name, source, how) for name, source in named.items()]
        for one in wanted:
            if (one.folder / MANIFEST).is_file() and not cfg.append:
                check_finished(one.folder, one.source, how)
        write_stores(wanted, Limits(cfg.shard_mb, cfg.max_broken), cfg.append)
        if index is not None:
            write_atomic(folder / PARTS, json.dumps(asdict(index), indent=1) + "\n")
        if cfg.verify:
            Store(folder, verify=True)


if __name__ == "__main__":
    front_door("prepare", "dit.cli.prepare:prepare")
