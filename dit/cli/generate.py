"""Samples pictures from prompts: `python -m dit.cli.generate ckpt=RUN prompts='[...]'`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from dit.cli.front import front_door

if TYPE_CHECKING:
    from dit.diffusion.editing import Edit
    from dit.pipeline import Pipeline


def edit_of(cfg: DictConfig, pipeline: Pipeline) -> Edit | None:
    """Returns the edit of a given picture, or None if the config has no `image`. Raises ValueError for options of an
    edit without a picture."""

    import torch

    from dit.picture_files import read
    from dit.types import from_pixels

    border = tuple(cfg.border)
    if cfg.image is None:
        given = [f"{name}={cfg[name]}" for name in ("mask", "strength", "source") if cfg[name] is not None]
        given += [f"border={list(border)}"] if any(border) else []
        if given:
            raise ValueError(f"{given[0]} edits a picture, and none is given: say image=FILE")
        return None
    image, mask = from_pixels(torch.from_numpy(read(cfg.image))), None
    if cfg.mask is not None:
        mask = torch.from_numpy(read(cfg.mask)).float().mean(0) / 255
    kept = mask is not None or any(border)
    strength = cfg.strength if cfg.strength is not None else 1.0 if kept else 0.6
    return pipeline.edit(image, strength, mask, border, cfg.source)


def prompts_of(given: str | Sequence[str] | None, run: DictConfig) -> list[str]:
    """Returns the prompts of the config; one empty prompt for a model trained without captions. Raises ValueError if
    prompts are missing, or given to such a model."""
    from dit.build import without_captions
    from dit.errors import shortened

    bare = without_captions(run)
    if given is None and not bare:
        raise ValueError("prompts are missing: say what to draw, e.g. prompts='[a large red star]'")
    prompts = [""] if given is None else [given] if isinstance(given, str) else [str(prompt) for prompt in given]
    if bare and any(prompts):
        raise ValueError(
            f"prompts={shortened(next(filter(None, prompts)))!r}: the model was trained on pictures without captions "
            f"and takes no prompt; leave prompts out"
        )
    return prompts


def guidance_of(guidance: DictConfig, run: DictConfig) -> DictConfig:
    """Returns the guidance of the config, or that of the run with the config's changes."""
    if "_target_" in guidance:
        return guidance
    merged = OmegaConf.merge(run.guidance, {name: value for name, value in guidance.items() if value is not None})
    assert isinstance(merged, DictConfig)
    return merged


def clear(folder: Path) -> None:
    """Removes the pictures of an earlier call from a folder, listed in its metadata.jsonl, so that they are not taken
    for pictures of this call."""
    from dit.files import read_lines

    metadata = folder / "metadata.jsonl"
    for line in read_lines(metadata) if metadata.is_file() else []:
        name = re.search(r'"file_name": "(prompt_\d+_seed_-?\d+(_\d+x\d+)?\.png)"', line)
        if name:
            (folder / name[1]).unlink(missing_ok=True)
    metadata.unlink(missing_ok=True)


def generate(cfg: DictConfig) -> Path:
    """Writes one PNG for each prompt, seed and size, metadata.jsonl with the prompts, and next to the folder a grid of
    all pictures, OUT_grid.png; prints the folder as the last line. Of several sizes, the names of pictures and grids
    end with the size."""
    # Slow imports follow after the command line is checked.
    from hydra.utils import instantiate
    from tqdm import tqdm

    from dit.cli.quiet import quiet
    from dit.diffusion.editing import Resampled
    from dit.files import write_atomic
    from dit.picture_files import save_png, size_text
    from dit.plain_values import numbers, plain, sizes
    from dit.runs import check_second_network, load_run
    from dit.sample_grid import captioned_grid, enlarge
    from dit.types import to_pixels

    quiet()
    run = load_run(cfg.ckpt, cfg.weights, cfg.device, cfg.trust, plain(cfg)["adapters"])
    run.scale_adapters(cfg.adapter_scale)
    if run.posthoc is not None:
        print(f"note: {cfg.weights}: {run.posthoc}", file=sys.stderr)
    pipeline = run.pipeline
    pipeline.sample_in(cfg.precision, cfg.compile)
    prompts = prompts_of(cfg.prompts, run.config)
    cfg.grid = cfg.grid or run.config.grid
    cfg.guidance = guidance_of(cfg.guidance, run.config)
    check_second_network(cfg.guidance, run.config)
    recipe = instantiate(cfg.recipe)
    if cfg.resample != 1:
        recipe = replace(recipe, sampler=Resampled(recipe.sampler, cfg.resample, cfg.stretch))
    pipeline.check(recipe)
    edit, found = edit_of(cfg, pipeline), [None] if cfg.size is None else sizes(cfg.size, "size")
    if cfg.size is not None and edit is not None:
        raise ValueError(f"size={cfg.size}: an edited picture keeps the size of image; leave size out")
    shapes = {size: pipeline.shape_of(size) for size in found}
    seeds, folder = numbers(cfg.seeds, "seeds"), Path(cfg.out).absolute()
    pairs = [(place, seed) for place in range(len(prompts)) for seed in seeds]
    texts = [prompts[place] for place, _ in pairs]
    images = {}
    with tqdm(total=len(pairs) * len(shapes), unit="image", desc="sampling") as bar:
        for size, shape in shapes.items():
            own = None if edit is not None else shape
            samples = pipeline(texts, [seed for _, seed in pairs], recipe, cfg.batch_size, bar.update, edit, own)
            images["" if len(shapes) == 1 or size is None else f"_{size_text(size)}"] = to_pixels(samples.images)
    clear(folder)
    lines = []
    for suffix, pictures in images.items():
        for (place, seed), text, image in zip(pairs, texts, pictures, strict=True):
            name = f"prompt_{place}_seed_{seed}{suffix}.png"
            save_png(enlarge(image, 1), folder / name)
            lines.append(json.dumps({"file_name": name, "text": text}) + "\n")
        sheet = captioned_grid(pictures, texts, columns=max(len(seeds), min(len(texts), 6)))
        save_png(sheet, folder.with_name(f"{folder.name}_grid{suffix}.png"))
    write_atomic(folder / "metadata.jsonl", "".join(lines))
    print(folder, flush=True)
    return folder


if __name__ == "__main__":
    front_door("generate", "dit.cli.generate:generate")
