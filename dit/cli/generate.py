"""Pictures from prompts: `python -m dit.cli.generate ckpt=RUN prompts='[...]'`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dit.cli.front import front_door


def generate(cfg: DictConfig) -> Path:
    """Writes one PNG for each prompt and seed, and all of them as grid.png; prints the folder as the last line."""
    # This file is a front door itself: what takes seconds to import waits until the command line is checked.
    from hydra.utils import instantiate
    from tqdm import tqdm

    from dit.cli.build import load_run, numbers
    from dit.cli.quiet import quiet
    from dit.pictures import captioned_grid, enlarge, save_png
    from dit.types import to_pixels

    quiet()
    recipe = instantiate(cfg.recipe)
    pipeline, *_ = load_run(cfg.ckpt, cfg.weights, cfg.device)
    prompts = [cfg.prompts] if isinstance(cfg.prompts, str) else list(cfg.prompts)
    seeds = numbers(cfg.seeds, "seeds")
    pairs = [(place, seed) for place in range(len(prompts)) for seed in seeds]
    texts = [prompts[place] for place, _ in pairs]
    with tqdm(total=len(pairs), unit="image", desc="sampling") as bar:
        samples = pipeline(texts, [seed for _, seed in pairs], recipe, cfg.batch_size, bar.update)
    images, folder = to_pixels(samples.images), Path(cfg.out).absolute()
    for (place, seed), image in zip(pairs, images, strict=True):
        save_png(enlarge(image, 1), folder / f"prompt_{place}_seed_{seed}.png")
    save_png(captioned_grid(images, texts, columns=max(len(seeds), min(len(texts), 6))), folder / "grid.png")
    print(folder, flush=True)
    return folder


if __name__ == "__main__":
    front_door("generate", "dit.cli.generate:generate")
