"""Serves a trained run over HTTP: `python -m dit.cli.serve ckpt=RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dit.cli.front import front_door

if TYPE_CHECKING:
    from dit.generation.asking import Menu
    from dit.pipeline import Pipeline


def menu_of(cfg: DictConfig, run: DictConfig, pipeline: Pipeline) -> Menu:
    """Returns what may be asked for: the run's sampler and those of the config, the grid, the guidance, the sizes."""
    from hydra.utils import instantiate

    from dit.generation.asking import Limits, Menu
    from dit.generation.model import guidance_of
    from dit.plain_values import plain, sizes
    from dit.runs import check_second_network

    guidance = guidance_of(cfg.guidance, run.recipe)
    check_second_network(guidance, run)
    samplers = dict(instantiate(run.recipe.sampler)) | dict(instantiate(cfg.sampler))
    return Menu(
        pipeline,
        samplers,
        instantiate(cfg.grid or run.recipe.grid),
        lambda scale: instantiate(guidance, scale=scale),
        run.recipe.steps if cfg.steps is None else cfg.steps,
        float(guidance.get("scale", 1.0)),
        sizes(run.data.size if cfg.sizes is None else cfg.sizes, "sizes"),
        Limits(**plain(cfg.limits)),
    )


def serve(cfg: DictConfig) -> None:
    """Serves until SIGTERM; prints the address as soon as it is ready. With new_key, adds a key and prints it."""
    # Slow imports follow after the command line is checked.
    from dit.generation.keys import Keys, add_key, read_keys

    file = None if cfg.key_file is None else Path(cfg.key_file)
    if cfg.new_key is not None:
        if file is None:
            raise ValueError("new_key needs the file that it is added to: key_file=FILE")
        print(add_key(file, cfg.new_key, cfg.calls_per_day), flush=True)
        return
    if cfg.ckpt is None:
        raise ValueError("ckpt is missing: say which run to serve, ckpt=RUN")
    try:
        from dit.generation.server import bound, running
    except ImportError as error:
        raise ValueError(f"the server needs {error.name}: pip install 'dit[serve]'") from None
    from dit.cli.quiet import quiet
    from dit.generation.batching import shared
    from dit.generation.deliveries import delivery_of
    from dit.generation.model import loaded
    from dit.generation.service import Service

    quiet()
    keys = Keys([] if file is None else read_keys(file))
    delivery = delivery_of(cfg, None)  # no file: texts of users would remain in it after they are erased from the log
    where = bound(cfg.host, cfg.port)
    run, about = loaded(cfg, cfg.ckpt)
    menu = menu_of(cfg, run.config, run.pipeline)
    for size in menu.sizes:
        delivery.check_model(about, size)
    pipeline, batcher = shared(run.pipeline, cfg.max_rows)
    menu.pipeline = pipeline
    name = cfg.model or run.path.parents[1].name
    running(Service(pipeline, batcher, menu, delivery, about | {"model": name}), keys, name, where, cfg.drain_seconds)


if __name__ == "__main__":
    front_door("serve", "dit.cli.serve:serve")
