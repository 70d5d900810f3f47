"""Prior pictures: what the frozen initial weights sample from ordinary prompts. Mixed into fine-tuning on a few
pictures, they keep what the model could do before (prior preservation of DreamBooth, arXiv:2208.12242, eq. 2)."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from dit.build import build_pipeline
from dit.checkpoints.initial import is_foreign, start_from
from dit.checkpoints.native import find_checkpoint
from dit.code_digest import code_digest
from dit.data.captions import all_captions
from dit.data.order import subset
from dit.devices import device_of
from dit.files import write_atomic
from dit.picture_files import save_png
from dit.plain_values import plain
from dit.runs import Run, load_run
from dit.training.run_directory import is_first
from dit.types import to_pixels

DONE = "metadata.jsonl"  # the captions; written last
CODE = ("training/prior_pictures", "pipeline", "diffusion", "backbones", "layers")
SETTINGS = ("recipe", "path", "prediction", "backbone", "autoencoder", "text_encoder")  # of weights of other libraries


def choose_folder(cfg: DictConfig) -> None:
    """Writes the cache folder of the prior pictures into `data.prior`, if the config has `prior`. Its name is a hash of
    the initial weights, the prompts, the seed, the count and the code. Raises ValueError without initial weights."""
    if cfg.get("prior") is None or cfg.data.prior is not None:
        return
    if cfg.init is None and cfg.resume is not None:
        raise ValueError("init=null: repeat the init of the run that is resumed, whose prior pictures are needed")
    if cfg.init is None:
        raise ValueError(f"experiment={cfg.name} teaches a trained model: give its run or weights as init=...")
    files = files_of(cfg.init)
    settings = {name: plain(cfg)[name] for name in SETTINGS} if is_foreign(cfg.init) else {}
    prior = {name: value for name, value in plain(cfg.prior).items() if name != "batch_size"}
    parts = ([digest(file) for file in files], prior, settings, cfg.data.size, code_digest(*CODE))
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
    cfg.data.prior = str(Path(cfg.cache_dir).absolute() / "prior" / name)


def files_of(init: str) -> list[Path]:
    """Returns the files of initial weights."""
    where = Path(init) if is_foreign(init) else find_checkpoint(init)[0]
    return [where] if where.is_file() else sorted(file for file in where.rglob("*") if file.is_file())


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def make(cfg: DictConfig, wait: float = 7200.0) -> None:
    """Makes the prior pictures of the config on rank 0, unless the cache has them; other ranks wait for them."""
    if cfg.get("prior") is None:
        return
    folder = Path(cfg.data.prior)
    if is_first():
        make_missing(folder, cfg)
        return
    end = time.monotonic() + wait
    while not (folder / DONE).is_file():
        if time.monotonic() > end:
            raise ValueError(f"rank 0 has not finished {folder} in {wait:.0f} seconds; look at its output")
        time.sleep(0.2)


def make_missing(folder: Path, cfg: DictConfig) -> None:
    """Makes the pictures that the folder does not have: after a kill, only the others are left. Picture i depends only
    on its prompt and on seed + i, up to rounding."""
    if (folder / DONE).is_file():
        return
    run = initial_model(cfg)
    prompts = prompts_of(cfg.prior.prompts, run, cfg)
    files = [folder / f"{number:06d}.png" for number in range(len(prompts))]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    with tqdm(total=len(missing), desc="prior pictures", unit="image", leave=False) as bar:
        for first in range(0, len(missing), cfg.prior.batch_size):
            part = missing[first : first + cfg.prior.batch_size]
            texts, seeds = [prompts[number] for number in part], [cfg.prior.seed + number for number in part]
            images = to_pixels(run.pipeline(texts, seeds, run.recipe(), len(part)).images)
            for number, image in zip(part, images.permute(0, 2, 3, 1).numpy(), strict=True):
                save_png(Image.fromarray(image), files[number])
            bar.update(len(part))
    rows = [{"file_name": file.name, "text": text} for file, text in zip(files, prompts, strict=True)]
    write_atomic(folder / DONE, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"prior pictures: {len(files)} of {cfg.init} ({folder})", file=sys.stderr)


def initial_model(cfg: DictConfig) -> Run:
    """Returns the frozen model of `init`: a run with its own recipe, or other weights with the recipe of the config."""
    accelerator = {"gpu": "cuda"}.get(cfg.trainer.accelerator, cfg.trainer.accelerator)
    if not is_foreign(cfg.init):
        run = load_run(cfg.init, device=accelerator)
    else:
        pipeline, device = build_pipeline(cfg, device="meta"), device_of(accelerator)
        start_from(pipeline.backbone, cfg)
        pipeline.backbone.eval().requires_grad_(False).to(device)
        pipeline.text_encoder.to(device)
        run = Run(pipeline, cfg, Path(cfg.init), 0)
    run.pipeline.sample_in(cfg.sampling.precision, cfg.sampling.compile)
    return run


def prompts_of(given: Sequence[str] | None, run: Run, cfg: DictConfig) -> list[str]:
    """Returns `prior.count` prompts: the given ones in turn, or captions of the run's own training data, chosen at
    random. Raises ValueError if there are none to choose from."""
    count: int = cfg.prior.count
    texts: list[Any] = list(given or [])
    if not texts:
        if is_foreign(cfg.init):
            raise ValueError(f"prior.prompts=null: init={cfg.init} is no run with captions; give prior.prompts='[...]'")
        captions = all_captions(instantiate(run.config.data.module.train))
        texts = [captions[place] for place in subset(len(captions), count)]
    return [str(texts[number % len(texts)]) for number in range(count)]
