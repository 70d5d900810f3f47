"""Serves a trained run over HTTP: `python -m dit.cli.serve ckpt=RUN`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dit.cli.front import front_door

if TYPE_CHECKING:
    from dit.generation.asking import Menu
    from dit.generation.picture_cache import PictureCache
    from dit.pipeline import Pipeline

NETWORKS = ("backbone", "adapter", "path", "prediction", "text_encoder", "autoencoder")  # config of a run


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


def cache_of(cfg: DictConfig, run: DictConfig, menu: Menu, about: Mapping[str, Any]) -> PictureCache:
    """Returns the cache of pictures of a config. run: the config of the run; about: what is recorded of the model.
    Raises ValueError for a folder that cannot be used."""
    from dit.code_digest import foreign_code
    from dit.evaluation.model_description import code_outside
    from dit.generation.model import guidance_of, second_network_of
    from dit.generation.picture_cache import PictureCache
    from dit.plain_values import plain

    guidance, pipeline = guidance_of(cfg.guidance, run.recipe), menu.pipeline
    networks = {name: plain(run[name]) for name in NETWORKS if run.get(name)}
    made_with = {name: about[name] for name in ("weights", "code")} | {"networks": networks}
    made_with |= {"precision": pipeline.precision, "device": pipeline.device.type}
    made_with |= {"grid": plain(cfg.grid or run.recipe.grid), "guidance": plain(guidance)}
    made_with |= second_network_of(guidance)
    recipe = foreign_code(*menu.samplers.values(), menu.grid, menu.guidance(menu.scale))
    made_with |= {"foreign_code": recipe | code_outside(networks)}
    made_with |= {"samplers": plain(run.recipe.sampler) | plain(cfg.sampler)}
    return PictureCache(Path(cfg.picture_cache), cfg.picture_cache_mb * 10**6, made_with)


def check_of(cfg: DictConfig) -> Callable[[bytes], dict[str, Any]]:
    """Returns what /v1/verify says of the content of a picture's file. Raises ValueError for anchors that cannot be
    read."""
    from hydra.utils import instantiate

    from dit.generation.credentials import read_pem
    from dit.generation.verification import check_pixels, findings, in_words

    if cfg.anchors is not None:
        read_pem(cfg.anchors, "anchors")
    mark = None if cfg.marks is None else instantiate(cfg.marks)
    if mark is not None and mark.in_noise:
        mark = None  # which prompt and which seeds a picture may have is known to the user of dit-verify only

    def check(content: bytes) -> dict[str, Any]:
        check_pixels(content, cfg.limits.picture_pixels)
        found = findings(content, cfg.anchors, mark)
        return {**found, "in_words": in_words(found)}

    return check


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
    from dit.cost import Price
    from dit.generation.batching import shared
    from dit.generation.deliveries import delivery_of
    from dit.generation.model import loaded
    from dit.generation.service import Service
    from dit.plain_values import plain

    quiet()
    keys, price = Keys([] if file is None else read_keys(file)), Price(**plain(cfg.cost))
    check = check_of(cfg)
    delivery = delivery_of(cfg, None)  # no file: texts of users would remain in it after they are erased from the log
    where = bound(cfg.host, cfg.port)
    run, about = loaded(cfg, cfg.ckpt)
    menu = menu_of(cfg, run.config, run.pipeline)
    for size in menu.sizes:
        delivery.check_model(about, size)
    cache = None if cfg.picture_cache is None else cache_of(cfg, run.config, menu, about)
    pipeline, batcher = shared(run.pipeline, cfg.max_rows, price)
    menu.pipeline = pipeline
    name = cfg.model or run.path.parents[1].name
    service = Service(pipeline, batcher, menu, delivery, about | {"model": name}, cache)
    running(service, keys, name, where, cfg.drain_seconds, check)


if __name__ == "__main__":
    front_door("serve", "dit.cli.serve:serve")
