"""What `experiment=shapes_heart` reaches: `python benchmarks/heart.py --base RUN` teaches the default run a heart from
eight pictures for several seeds, one after another, prints a table, and draws docs/heart.png from the first seed: the
eight pictures, and samples of prompts that combine the heart with what it was never shown in. Without --base it trains
the default run first. Options after `--` go to train.py."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the project runs from its own folder

from dit.data.order import subset  # noqa: E402
from dit.data.taught_shape import TaughtShape  # noqa: E402
from dit.runs import load_run  # noqa: E402
from dit.sample_grid import captioned_grid  # noqa: E402

COLUMNS = ("prompt_accuracy_unseen", "prompt_accuracy", "steps")
NAMES = ("heart in new combinations", "old prompts", "steps", "processor seconds", "seconds")
HEADING = 24  # pixels


def train(words: list[str]) -> tuple[Path, float, float]:
    """Trains; returns the run's directory, and the processor and wall seconds of the whole command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "train.py", "wandb.mode=disabled", *words]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Path(output.stdout.splitlines()[-1]), spent, wall


def summary_of(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "summary.json").read_text())
    return found


def draw(run: Path, file: Path, count: int = 16, columns: int = 8, side: int = 96) -> None:
    """Draws the eight training pictures, and below them samples of combinations that training does not have."""
    taught, unseen = TaughtShape("heart", "train", 8), TaughtShape("heart", "unseen", 40)
    prompts = [unseen.captions[place] for place in subset(40, count)]
    shown = torch.from_numpy(taught.images(np.arange(8)))
    parts = {
        "The eight pictures": captioned_grid(shown, taught.captions, columns, side),
        "Samples, seeds 0, 1, ...": captioned_grid(load_run(run).sample(prompts).pixels, prompts, columns, side),
    }
    sheet = Image.new(
        "RGB", (next(iter(parts.values())).width, sum(p.height + HEADING for p in parts.values())), "white"
    )
    top = 0
    for title, part in parts.items():
        ImageDraw.Draw(sheet).text((6, top + 4), title, fill="black", font_size=16)
        sheet.paste(part, (0, top + HEADING))
        top += HEADING + part.height
    sheet.save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="a run of the default experiment; trained if it is not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("words", nargs="*", help="options for train.py")
    options = parser.parse_args()
    base = options.base.absolute() if options.base else train([])[0]
    print(f"| seed | {' | '.join(NAMES)} |\n|{'---|' * (len(NAMES) + 1)}", flush=True)
    print(f"| before | | {summary_of(base)['prompt_accuracy']:.3f} | | | |", flush=True)
    for number, seed in enumerate(options.seeds):
        run, spent, wall = train(["experiment=shapes_heart", f"init={base}", f"seed={seed}", *options.words])
        heart, old, steps = (summary_of(run)[name] for name in COLUMNS)
        print(f"| {seed} | {heart:.3f} | {old:.3f} | {steps:.0f} | {spent:.0f} | {wall:.0f} |", flush=True)
        if number == 0:
            draw(run, ROOT / "docs" / "heart.png")


if __name__ == "__main__":
    main()
