"""Measures an autoencoder on a data set: `python -m dit.cli.latents data=folder data.path=DIR autoencoder=sd`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dit.cli.front import front_door

if TYPE_CHECKING:
    from dit.types import CaptionedImages


def split_of(cfg: DictConfig, split: str) -> CaptionedImages:
    """Returns the pictures of a split of the config's data. Raises ValueError if the data set has no such split."""
    from hydra.utils import instantiate

    there = [name for name, node in cfg.data.module.items() if isinstance(node, DictConfig) and "_target_" in node]
    if split not in there:
        raise ValueError(f"split={split}: this data set has {', '.join(there)}")
    return instantiate(cfg.data.module[split])


def table(found: dict[str, Any], settable: bool) -> str:
    """Returns the statistics as text. settable: adds the overrides that set them in an autoencoder."""
    columns = [found[name] for name in ("mean", "mean_se", "std", "std_se")]
    lines = [f"{'channel':>7}  {'mean':>20}  {'std':>20}"]
    for place, (m, m_se, s, s_se) in enumerate(zip(*columns, strict=True)):
        lines.append(f"{place:>7}  {m:>9.4f} ± {m_se:<8.4f}  {s:>9.4f} ± {s_se:<8.4f}")
    back = "unchanged" if found["psnr"] is None else f"with a PSNR of {found['psnr']:.2f} ± {found['psnr_se']:.2f} dB"
    lines += [
        f"shift {found['shift']:.5f} ± {found['shift_se']:.5f}, scale {found['scale']:.5f} ± {found['scale_se']:.5f}",
        f"{found['pictures']} pictures, reconstructed {back}",
        found["verdict"],
    ]
    if settable:
        mean, std = (f"[{','.join(f'{value:.5f}' for value in found[name])}]" for name in ("mean", "std"))
        lines += [
            f"to use this pair:     autoencoder.shift={found['shift']:.5f} autoencoder.scale={found['scale']:.5f}",
            f"to use one a channel: autoencoder.mean={mean} autoencoder.std={std}",
        ]
    return "\n".join(lines)


def latents(cfg: DictConfig) -> Path:
    """Prints the statistics of the raw latents of n pictures, writes them as json, and prints its path last."""
    # Slow imports follow after the command line is checked.
    import json
    from collections.abc import Iterator

    import numpy as np
    import torch
    from hydra.utils import instantiate
    from tqdm import tqdm

    from dit.cli.quiet import quiet
    from dit.devices import device_of
    from dit.encoders.statistics import measure
    from dit.files import write_atomic

    quiet()
    for name, least in (("n", 2), ("batch_size", 1)):
        if cfg[name] < least:
            raise ValueError(f"{name}={cfg[name]} must be at least {least}")
    device = device_of(cfg.device)
    source, autoencoder = split_of(cfg, cfg.split), instantiate(cfg.autoencoder).to(device)
    chosen = np.random.default_rng(cfg.seed).permutation(len(source))[: cfg.n]  # a folder is sorted by class

    def batches() -> Iterator[torch.Tensor]:
        with tqdm(total=len(chosen), unit="image", desc="encoding and decoding") as bar:
            for first in range(0, len(chosen), cfg.batch_size):
                index = np.sort(chosen[first : first + cfg.batch_size])
                yield torch.from_numpy(source.images(index)).to(device)
                bar.update(len(index))

    found = measure(autoencoder, batches())
    print(table(found, "shift" in cfg.autoencoder))
    found |= {
        "split": cfg.split,
        "seed": cfg.seed,
        "data": source.fingerprint,
        "autoencoder": autoencoder.fingerprint,
    }
    file = Path(cfg.out).absolute()
    write_atomic(file, json.dumps(found, indent=2) + "\n")
    print(file, flush=True)
    return file


if __name__ == "__main__":
    front_door("latents", "dit.cli.latents:latents")
