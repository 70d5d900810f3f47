"""Pictures from prompts: `python -m dit.cli.generate ckpt=RUN prompts='[...]'`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dit.cli.front import front_door

if TYPE_CHECKING:
    from dit.diffusion.editing import Edit
    from dit.pipeline import Pipeline


def edit_of(cfg: DictConfig, pipeline: Pipeline) -> Edit | None:
    """What the config says of a picture to start from; None where it names none."""
    from dit.pictures import read_picture
    from dit.types import from_pixels

    border = tuple(cfg.border)
    if cfg.image is None:
        given = [f"{name}={cfg[name]}" for name in ("mask", "strength", "source") if cfg[name] is not None]
        given += [f"border={list(border)}"] if any(border) else []
        if given:
            raise ValueError(f"{given[0]} edits a picture, and none is given: say image=FILE")
        return None
    image, mask = from_pixels(read_picture(cfg.image)), None
    if cfg.mask is not None:
        mask = read_picture(cfg.mask).float().mean(0) / 255
    kept = mask is not None or any(border)
    strength = cfg.strength if cfg.strength is not None else 1.0 if kept else 0.6
    return pipeline.edit(image, strength, mask, border, cfg.source)


def generate(cfg: DictConfig) -> Path:
    """Writes one PNG for each prompt and seed, and all of them as grid.png; prints the folder as the last line."""
    # This file is a front door itself: what takes seconds to import waits until the command line is checked.
    from hydra.utils import instantiate
    from tqdm import tqdm

    from dit.cli.build import check_second_network, load_run, numbers
    from dit.cli.quiet import quiet
    from dit.diffusion.editing import Resampled
    from dit.pictures import captioned_grid, enlarge, save_png
    from dit.types import to_pixels

    quiet()
    pipeline, run_cfg, *_ = load_run(cfg.ckpt, cfg.weights, cfg.device)
    cfg.grid = cfg.grid or run_cfg.grid
    check_second_network(cfg.guidance, run_cfg)
    recipe = instantiate(cfg.recipe)
    if cfg.resample != 1:
        recipe = replace(recipe, sampler=Resampled(recipe.sampler, cfg.resample, cfg.stretch))
    pipeline.check(recipe)
    edit = edit_of(cfg, pipeline)
    prompts = [cfg.prompts] if isinstance(cfg.prompts, str) else [str(prompt) for prompt in cfg.prompts]
    seeds = numbers(cfg.seeds, "seeds")
    pairs = [(place, seed) for place in range(len(prompts)) for seed in seeds]
    texts = [prompts[place] for place, _ in pairs]
    with tqdm(total=len(pairs), unit="image", desc="sampling") as bar:
        samples = pipeline(texts, [seed for _, seed in pairs], recipe, cfg.batch_size, bar.update, edit)
    images, folder = to_pixels(samples.images), Path(cfg.out).absolute()
    for (place, seed), image in zip(pairs, images, strict=True):
        save_png(enlarge(image, 1), folder / f"prompt_{place}_seed_{seed}.png")
    save_png(captioned_grid(images, texts, columns=max(len(seeds), min(len(texts), 6))), folder / "grid.png")
    print(folder, flush=True)
    return folder


if __name__ == "__main__":
    front_door("generate", "dit.cli.generate:generate")
