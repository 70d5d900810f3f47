"""Makes a labelled data set from a run: `python -m dit.cli.synthesize ckpt=RUN out=DIR n=1000`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dit.cli.front import front_door

if TYPE_CHECKING:
    from dit.generation.delivery import Delivery
    from dit.generation.duplicates import Duplicates
    from dit.generation.synthesis import Filter


def synthesize(cfg: DictConfig) -> Path:
    """Writes the data set with its table, data card and contact sheet, and the rejected pictures beside it; prints the
    folder as the last line. The same command again goes on where a killed one stopped."""
    from dit.cli.generate import batch_of, beside, place_of, released_as, report
    from dit.cli.processes import is_first, own_device, run_processes

    folder, layout = place_of(cfg)
    if cfg.devices > 1:
        run_processes("dit.cli.synthesize", cfg.devices, cfg.device)  # the first of them prints
        return folder
    # Slow imports follow after the command line is checked.
    import torch
    from tqdm import tqdm

    from dit.cli.quiet import quiet
    from dit.cost import Meter, Price
    from dit.errors import some
    from dit.files import write_atomic
    from dit.generation.deliveries import delivery_of
    from dit.generation.marked import warn_of_unmarked
    from dit.generation.model import model_without_edit
    from dit.generation.output import Output
    from dit.generation.sheet import write_sheet
    from dit.generation.synthesis import Quotas, Synthesis
    from dit.generation.synthetic_card import card_of, unfilled
    from dit.generation.writers import WRITERS
    from dit.plain_values import plain

    quiet()
    cfg = cfg.copy()
    named, cfg.device = cfg.device != "auto", str(own_device(cfg.device))
    meter = Meter(torch.device(cfg.device), Price(**plain(cfg.cost)), same_gpu=named)
    delivery = delivery_of(cfg, beside(cfg, "refused.jsonl"), negative=cfg.recipe.negative)
    model = model_without_edit(cfg, cfg.ckpt)
    source = training_data(model.config)
    captions = captions_of(cfg, source)
    model.check_prompts(captions)
    quotas = Quotas(captions, cfg.n, cfg.tries, cfg.seed, cfg.shard_size)
    filter = filter_of(cfg, model.config, source)
    delivery.check_model(model.about, model.size_of(None))
    fields = fields_of(cfg, model.about, filter, captions, delivery) | released_as(cfg)
    output = Output(quotas, WRITERS[layout](folder), fields)
    output.begin([[batch_of(cfg, model, None, captions[0])]], cfg.batch_size == "auto")

    def last(output: Output) -> None:
        write_sheet(output, 0 if cfg.review else cfg.sheet)
        card = card_of(
            output, model.about, filter, plain(model.config.data), licences_of(source), beside(cfg, "rejects")
        )
        write_atomic(folder / "README.md", card)
        warn_of_unmarked(output.rows())
        if short := unfilled(output):
            print(f"warning: fewer pictures than ordered of {some(short, 3)}; raise tries", file=sys.stderr)

    bulk = Synthesis(output, lambda number: model, filter, beside(cfg, "rejects"), delivery, meter)
    with tqdm(total=len(quotas), unit="image", desc="keeping", disable=not is_first()) as bar:
        bulk.run(bar, last)
    if is_first():
        report(bulk, output.batch_sizes)
        print(folder, flush=True)
    return folder


def training_data(run: DictConfig) -> Any:
    """Returns the training data of a run, with their pictures. Raises ValueError if they cannot be read."""
    from hydra.utils import instantiate
    from omegaconf.errors import OmegaConfBaseException

    try:
        source = instantiate(run.data.module.train)
    except OmegaConfBaseException as error:
        raise ValueError(f"the training data of the run cannot be read: {error}") from None
    return source


def captions_of(cfg: DictConfig, source: Any) -> list[str]:
    """Returns the different captions of the config or of the training data, sorted; n of them, chosen at random, if
    there are more."""
    from dit.data.captions import all_captions
    from dit.data.order import subset
    from dit.generation.prompt_files import given_prompts

    found = sorted(set(all_captions(source) if cfg.prompts is None else given_prompts(cfg.prompts)))
    return found if len(found) <= cfg.n else [found[row] for row in sorted(subset(len(found), cfg.n))]


def filter_of(cfg: DictConfig, run: DictConfig, source: Any) -> Filter:
    """Returns the filter: the checker of the run's metrics, if it has one, and duplicates of the training pictures."""
    from hydra.utils import instantiate

    from dit.generation.synthesis import Filter

    found = [metric["checker"] for metric in run.metric.values() if metric and "checker" in metric]
    checker = instantiate(found[0]) if found and cfg.checker else None
    return Filter(checker, duplicates_of(cfg, source) if cfg.duplicates else None)


def duplicates_of(cfg: DictConfig, source: Any) -> Duplicates:
    """Returns what finds duplicates, with the descriptions of the training pictures. Raises ValueError without any."""
    from dit.data.order import subset
    from dit.generation.duplicates import MEASURES, Duplicates, by_caption
    from dit.generation.synthesis import described_source

    if not hasattr(source, "images"):
        raise ValueError(
            f"the training data are {type(source).__name__}, without pictures to compare with; say duplicates=null"
        )
    measure, rows = MEASURES[cfg.duplicates](), subset(len(source), cfg.train_pictures)
    described = described_source(measure, source.images, rows)
    return Duplicates(measure, by_caption([source.captions[row] for row in rows], described), cfg.distance)


def licences_of(source: Any) -> str:
    """Returns the licences of the training data with their numbers of pictures, in words."""
    from collections import Counter

    provenance = getattr(source, "provenance", None)
    if provenance is None or "licence" not in provenance.column_names:
        return "not recorded"
    counts = Counter(value or "none recorded" for value in provenance["licence"].to_pylist())
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def fields_of(
    cfg: DictConfig, about: Any, filter: Filter, captions: Sequence[str], delivery: Delivery
) -> dict[str, Any]:
    """Returns all that decides the files of a call, besides the batch size, by name."""
    import hashlib

    own = {name: about[name] for name in ("weights", "code", "recipe")}
    own |= {name: cfg[name] for name in ("n", "seed", "tries", "compile", "format", "shard_size")}
    found = filter.duplicates
    return own | {
        "prompts": hashlib.sha256("\n".join(map(repr, captions)).encode()).hexdigest(),
        "precision": str(cfg.precision),
        "delivery": delivery.fingerprint,
        "checker": type(filter.checker).__name__,
        "duplicates": found
        and [found.threshold, hashlib.sha256(b"".join(h.tobytes() for h in found.real.values())).hexdigest()],
    }


if __name__ == "__main__":
    front_door("synthesize", "dit.cli.synthesize:synthesize")
