"""The mode of generate that measures how often a watermark is found: `measure=200`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

if TYPE_CHECKING:
    from tqdm import tqdm

    from dit.generation.encoding import Encoding
    from dit.generation.marks import Mark
    from dit.generation.model import Model
    from dit.generation.work import Job


def measure(cfg: DictConfig) -> Path:
    """Writes the card of the watermark `marks` for every model and size, and prints it; its file is the last line."""
    # Slow imports follow after the command line is checked.
    import json

    from hydra.utils import instantiate
    from tqdm import tqdm

    from dit.cli.generate import checked
    from dit.cli.quiet import quiet
    from dit.devices import device_of
    from dit.files import write_atomic
    from dit.generation.delivery import Delivery
    from dit.generation.encoding import Encoding
    from dit.generation.mark_card import FORMAT
    from dit.generation.model import Models
    from dit.generation.work import Job

    if cfg.marks is None or cfg.marks.card is None:
        raise ValueError(
            "measure needs a watermark and the file of its card: marks=pattern marks.key=FILE marks.card=FILE"
        )
    quiet()
    cfg.device, mark, file = str(device_of(cfg.device)), instantiate(cfg.marks), Path(cfg.marks.card).absolute()
    models, entries, encoding = Models(cfg), [], Encoding(cfg.encoding, cfg.quality)
    work, _, batch_sizes = checked(cfg, models, Delivery())
    with tqdm(total=cfg.measure * len(models) * len(work.sizes), unit="image", desc="measuring") as bar:
        for number in range(len(models)):
            for size, batch in zip(work.sizes, batch_sizes[number], strict=True):
                prompts = [work.prompts[row % len(work.prompts)] for row in range(cfg.measure)]
                jobs = [Job(row, "", number, size, text, work.seeds[0] + row) for row, text in enumerate(prompts)]
                entries.append(entry(models(number), mark, jobs, batch, encoding, bar))
                print(table(entries[-1], mark), flush=True)
    write_atomic(file, json.dumps({"format": FORMAT, "mark": mark.settings, "entries": entries}, indent=1) + "\n")
    print(file, flush=True)
    return file


def entry(model: Model, mark: Mark, jobs: Sequence[Job], batch: int, encoding: Encoding, bar: tqdm) -> dict[str, Any]:
    """Returns the entry of a card for the pictures of some jobs of one size, which are sampled in batches. encoding: of
    the files in which the mark is looked for."""
    import numpy as np

    from dit.generation.delivery import Delivery
    from dit.generation.mark_card import p_values, psnr
    from dit.generation.marked import Marked
    from dit.generation.marks import Origin
    from dit.generation.rows import array_of

    delivery, grid = Marked(Delivery(), mark), model.recipe.grid
    marked, unmarked, ratios = list[dict[str, float]](), list[float](), list[float]()
    for first in range(0, len(jobs), batch):
        own = jobs[first : first + batch]
        pixels, _ = model.sample(delivery.seeded(own))
        for job, before, after in zip(own, pixels, delivery.mark(own, pixels), strict=True):
            plain, shown, read = array_of(before), array_of(after), array_of(encoding.pixels(after))
            marked.append(p_values(mark, read, Origin(model.pipeline, grid, job.prompt, [job.seed])))
            other = Origin(model.pipeline, grid, job.prompt, [job.seed + len(jobs)])  # another noise than the picture's
            unmarked.append(mark.detect(plain, None, other).p_value)
            ratios.append(psnr(plain, shown))
            bar.update()
    own_fields = {name: model.about.get(name) for name in ("model", "step", "weights", "recipe", "edit")}
    return own_fields | {
        "size": list(model.size_of(jobs[0].size)),
        "encoding": encoding.settings,
        "pictures": len(jobs),
        "psnr": None if mark.in_noise else float(np.mean(ratios)),
        "power": {name: share([row[name] for row in marked], mark.rate) for name in marked[0]},
        "unmarked_below_0.05": share(unmarked, 0.05),
    }


def share(p_values: Sequence[float], rate: float) -> dict[str, Any]:
    """Returns the share of p-values below a rate, with its 95 % interval."""
    from dit.evaluation.statistics import wilson

    below = sum(value < rate for value in p_values)
    return {"share": below / len(p_values), "interval": list(wilson(below, len(p_values)))}


def table(entry: dict[str, Any], mark: Mark) -> str:
    """Returns an entry of a card as lines of text."""
    width, height = entry["size"]
    change = "" if entry["psnr"] is None else f", PSNR {entry['psnr']:.1f} dB"
    rows = [f"{mark.kind} in {entry['pictures']} pictures of {entry['model']}, {width}x{height}{change}"]
    shares = {f"found, {name}": found for name, found in entry["power"].items()}
    shares["no mark, p-value below 0.05"] = entry["unmarked_below_0.05"]
    for name, found in shares.items():
        low, high = found["interval"]
        rows.append(f"  {name:<42} {found['share']:.3f} [{low:.3f}, {high:.3f}]")
    return "\n".join(rows)
