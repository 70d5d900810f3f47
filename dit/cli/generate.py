"""Samples pictures from prompts: `python -m dit.cli.generate ckpt=RUN prompts='[...]'`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dit.cli.front import front_door

if TYPE_CHECKING:
    from dit.generation.bulk import Bulk
    from dit.generation.delivery import Delivery
    from dit.generation.model import Model, Models
    from dit.generation.work import Work


def generate(cfg: DictConfig) -> Path:
    """Makes a picture for each model, size, prompt and seed, and writes them in the layout of `format` with a table and
    a contact sheet; prints the folder as the last line. The same command again goes on where a killed one stopped."""
    from dit.cli.processes import is_first, own_device, run_processes

    if cfg.measure is not None:
        from dit.cli.mark_power import measure

        return measure(cfg)
    folder, layout = place_of(cfg)
    if cfg.devices > 1:
        run_processes("dit.cli.generate", cfg.devices, cfg.device)  # the first of them prints
        return folder
    # Slow imports follow after the command line is checked.
    import torch
    from tqdm import tqdm

    from dit.cli.quiet import quiet
    from dit.cost import Meter, Price
    from dit.generation.bulk import Bulk
    from dit.generation.deliveries import delivery_of
    from dit.generation.encoding import Encoding
    from dit.generation.marked import warn_of_unmarked
    from dit.generation.model import Models
    from dit.generation.output import Output
    from dit.generation.sheet import write_sheets
    from dit.generation.writers import WRITERS
    from dit.plain_values import plain

    quiet()
    named, cfg.device = cfg.device != "auto", str(own_device(cfg.device))
    meter = Meter(torch.device(cfg.device), Price(**plain(cfg.cost)), same_gpu=named)
    negative = cfg.recipe.negative
    models, delivery = Models(cfg), delivery_of(cfg, beside(cfg, "refused.jsonl"), negative=negative, source=cfg.source)
    work, abouts, batch_sizes = checked(cfg, models, delivery)
    fields = fields_of(cfg, work, abouts) | {"delivery": delivery.fingerprint} | released_as(cfg)
    output = Output(work, WRITERS[layout](folder, Encoding(cfg.encoding, cfg.quality)), fields)
    output.begin(batch_sizes, cfg.batch_size == "auto", cfg.replace)
    bulk = Bulk(output, models, delivery, meter)

    def last(output: Output) -> None:
        write_sheets(output, 0 if cfg.review else cfg.sheet)
        warn_of_unmarked(output.rows())

    with tqdm(total=len(work), unit="image", desc="sampling", disable=not is_first()) as bar:
        bulk.run(bar, last)
    if is_first():
        report(bulk, output.batch_sizes)
        print(folder, flush=True)
    return folder


def place_of(cfg: DictConfig) -> tuple[Path, str]:
    """Returns the folder to write, and its layout. With `review` it is the holding folder, in which every picture is a
    file of its own."""
    if cfg.review is None:
        return Path(cfg.out).absolute(), cfg.format
    return Path(cfg.review).absolute(), cfg.format if cfg.format == "folder" else "imagefolder"


def beside(cfg: DictConfig, name: str) -> Path:
    """Returns a file or a folder of what is not delivered: beside the folder of the call, OUT_name, or with `review`
    inside the holding folder, which only its owner can read."""
    folder, _ = place_of(cfg)
    return folder.with_name(f"{folder.name}_{name}") if cfg.review is None else folder / name


def released_as(cfg: DictConfig) -> dict[str, Any]:
    """Returns what a release needs to know besides the fields of the call."""
    return {} if cfg.review is None else {"out": str(Path(cfg.out).absolute()), "sheet": cfg.sheet}


def checked(
    cfg: DictConfig, models: Models, delivery: Delivery
) -> tuple[Work, list[Mapping[str, Any]], list[list[int]]]:
    """Returns the work of a config, what is recorded of each model, and its batch sizes by model and size. Raises
    ValueError for prompts, sizes and settings that do not fit a model, and if its pictures cannot be delivered."""
    from dit.build import without_captions
    from dit.generation.prompt_files import given_prompts
    from dit.generation.work import Work, seeds_of
    from dit.plain_values import sizes

    prompts = None if cfg.prompts is None else given_prompts(cfg.prompts)
    found: list[tuple[int, int] | None] = [None] if cfg.size is None else [*sizes(cfg.size, "size")]
    seeds = seeds_of(cfg.seeds, cfg.n)
    abouts: list[Mapping[str, Any]] = []
    batch_sizes: list[list[int]] = []
    for number in reversed(range(len(models))):  # so that the first one is in memory at the end
        model = models(number)
        if prompts is None and not without_captions(model.config):
            raise ValueError("prompts are missing: say what to draw, e.g. prompts='[a large red star]'")
        model.check_prompts(prompts or [""])
        for size in found:
            delivery.check_model(model.about, model.size_of(size))
        batch_sizes.insert(0, [batch_of(cfg, model, size, (prompts or [""])[0]) for size in found])
        abouts.insert(0, model.about)
    return Work(prompts or [""], seeds, found, len(models), cfg.shard_size), abouts, batch_sizes


def batch_of(cfg: DictConfig, model: Model, size: tuple[int, int] | None, prompt: str) -> int:
    """Returns the batch size of the config, or the one that fits the model's device. Raises ValueError for a size that
    the model cannot make."""
    from dit.generation.batch_size import fitting_batch
    from dit.generation.work import Job

    width, height = model.size_of(size)
    if cfg.batch_size != "auto":
        return cfg.batch_size
    jobs = [Job(0, "", 0, size, prompt, 0)]
    return fitting_batch(
        model.pipeline.device, height * width, lambda count: model.sample(jobs * count), cfg.shard_size
    )


def fields_of(cfg: DictConfig, work: Work, abouts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns all that decides the files of a call, besides the batch sizes, by name."""
    import hashlib

    from dit.generation.encoding import Encoding

    seeds = work.seeds if isinstance(work.seeds, range) else list(work.seeds)
    own = {name: [about.get(name) for about in abouts] for name in ("weights", "code", "recipe", "edit")}
    return own | {
        "prompts": hashlib.sha256("\n".join(map(repr, work.prompts)).encode()).hexdigest(),
        "seeds": hashlib.sha256(repr(list(seeds)).encode()).hexdigest(),
        "size": [size and list(size) for size in work.sizes],
        "precision": str(cfg.precision),
        "compile": cfg.compile,
        "format": cfg.format,
        "encoding": Encoding(cfg.encoding, cfg.quality).settings,
        "shard_size": cfg.shard_size,
    }


def report(bulk: Bulk, batch_sizes: Sequence[Sequence[int]]) -> None:
    """Prints the speed of this process, and what its pictures cost."""
    sampled, seconds = bulk.sampled, bulk.cost.seconds
    if sampled:
        batches = ", ".join(map(str, dict.fromkeys(size for sizes in batch_sizes for size in sizes)))
        speed = f"{sampled / seconds:.4g} images per second"
        print(
            f"{sampled} picture{'s' * (sampled != 1)} in {seconds:.1f} s: {speed}, batch_size={batches}; "
            f"{bulk.meter.in_words(bulk.cost, sampled)}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    front_door("generate", "dit.cli.generate:generate")
