"""What recipes make of pictures in class folders, in the same minutes each, as a table: `python
benchmarks/own_pictures.py DIR`. It needs no download: a small classifier learns the names of the class folders of
`--real` (DIR where it is not given), and the Fréchet distance is that of its features, to all of these real pictures.
Its accuracy on held-out ones says what the features are worth, and the distance of as many real pictures is the floor.
"right class" is the share of drawn pictures in which the classifier finds the class that the prompt named."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the project runs from its own folder

from dit.data.folder import Folder  # noqa: E402
from dit.data.order import subset  # noqa: E402
from dit.metrics.frechet import Moments, frechet_distance  # noqa: E402
from dit.runs import load_run  # noqa: E402
from dit.types import from_pixels, to_pixels  # noqa: E402

PLAIN = [
    "batch_size=32",
    "optimizer.lr=4e-3",
    "lr_schedule.warmup=50",
    "callbacks.ema.decay=0.995",
    "backbone.overlap=0",
]
RECIPES = {  # by name: the experiment, and what is added to it
    "before": ["folder", *PLAIN, "backbone.width=192", "backbone.depth=6", "backbone.heads=6"],
    "folder": ["folder"],
    "folder_latents": ["folder_latents"],
}
TEMPLATE = "a photo of a *"
SIDE = 32


@dataclass
class Pictures:
    """images (N, 3, S, S) uint8, and the number of each one's class (N,)."""

    images: Tensor
    classes: Tensor


def read(folder: Path) -> tuple[Pictures, Pictures, list[str]]:
    """The training and the held-out pictures, and the captions of the classes."""
    splits = [Folder(path=str(folder), size=SIDE, split=split, template=TEMPLATE) for split in ("train", "val")]
    captions = sorted(set(splits[0].captions))
    found = [
        Pictures(
            torch.from_numpy(split.images(np.arange(len(split)))),
            torch.tensor([captions.index(caption) for caption in split.captions]),
        )
        for split in splits
    ]
    return found[0], found[1], captions


class Classifier(nn.Module):
    """Six convolutions; the features are the means over places of the last, (B, 64). It looks at pictures of `SIDE`
    pixels, so that one classifier measures runs of all sizes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths, strides = (3, 32, 32, 64, 64, 128, 64), (1, 2, 1, 2, 1, 1)
        layers: list[nn.Module] = []
        for place, stride in enumerate(strides):
            convolution = nn.Conv2d(widths[place], widths[place + 1], 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(widths[place + 1]), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(64, classes)

    def features(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) uint8."""
        return self.body(F.adaptive_avg_pool2d(from_pixels(images), SIDE)).mean((2, 3))

    @torch.no_grad()
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 64) and classes (N,) of all pictures."""
        features = torch.cat([self.features(part) for part in images.split(256)])
        return features, self.head(features).argmax(1)


def fit_classifier(train: Pictures, classes: int, visits: int, seed: int = 0, batch: int = 128) -> Classifier:
    """`visits` pictures in all, each mirrored by even odds (not where that makes another class: digits) and shifted."""
    torch.manual_seed(seed)
    net, order = Classifier(classes).to(memory_format=torch.channels_last), np.random.default_rng(seed)
    steps = max(visits // batch, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for step in range(steps):
        rows = torch.from_numpy(order.integers(0, len(train.images), batch))
        moved = torch.roll(train.images[rows], tuple(order.integers(-3, 4, 2).tolist()), (2, 3))
        loss = F.cross_entropy(net.head(net.features(moved)), train.classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"classifier: step {step} of {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return net.eval()


def classifier_of(train: Pictures, classes: int, visits: int, out: Path) -> Classifier:
    """The same, kept by the pictures that it was fitted to."""
    content = hashlib.sha256(
        train.images.numpy().tobytes() + train.classes.numpy().tobytes() + bytes(str(visits), "ascii")
    )
    file = out / f"classifier_{content.hexdigest()[:16]}.pt"
    if not file.is_file():
        torch.save(fit_classifier(train, classes, visits).state_dict(), file)
    net = Classifier(classes)
    net.load_state_dict(torch.load(file, weights_only=True))
    return net.eval()


def moments(features: Tensor) -> Moments:
    found = Moments.zero(features.shape[1])
    found.add(features)
    return found


def train_recipe(folder: Path, words: list[str], out: Path) -> tuple[Path, float]:
    """Trains; the run's directory and the seconds that the whole command took."""
    command = [
        sys.executable,
        "train.py",
        f"experiment={words[0]}",
        f"data.path={folder}",
        f"data.template={TEMPLATE!r}",
    ]
    command += ["wandb.mode=disabled", f"runs_dir={out / 'runs'}", f"cache_dir={out / 'cache'}", *words[1:]]
    start = time.monotonic()
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Path(output.stdout.splitlines()[-1]), time.monotonic() - start


def draw(run: Path, prompts: list[str], scale: float, batch: int = 50) -> tuple[Tensor, float]:
    """(N, 3, S, S) uint8, one for each prompt from seeds 0, 1, ..., by the run's own recipe at this guidance; and the
    seconds that it took."""
    loaded = load_run(run)
    pipeline, cfg = loaded.pipeline, loaded.config
    cfg.guidance.scale, start, images = scale, time.monotonic(), []
    recipe = instantiate(cfg.recipe)
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        images.append(to_pixels(pipeline(part, range(first, first + len(part)), recipe).images))
    return torch.cat(images), time.monotonic() - start


def save_sheet(strips: dict[str, Tensor], file: Path, columns: int = 20, rows: int = 3, side: int = 48) -> None:
    """For each caption, `rows` rows of its pictures (N, 3, S, S) uint8, below each other; a column is a class."""
    height = 16 + rows * side
    sheet = Image.new("RGB", (columns * side, height * len(strips)), "white")
    for place, (caption, images) in enumerate(strips.items()):
        ImageDraw.Draw(sheet).text((2, place * height + 2), caption, fill="black")
        for number, image in enumerate(images[: rows * columns].permute(0, 2, 3, 1).numpy()):
            row, column = divmod(number, columns)
            cell = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(cell, (column * side, place * height + 16 + row * side))
    sheet.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def processor() -> str:
    """Its name, where the system says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def first_of_each(classes: Tensor, count: int, n: int) -> Tensor:
    """Places of n pictures whose classes are 0, 1, ..., 0, 1, ..., as they are drawn."""
    places = [torch.where(classes == k)[0] for k in range(count)]
    return torch.stack([places[i % count][i // count % len(places[i % count])] for i in range(n)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="pictures in class folders")
    parser.add_argument("--real", type=Path, help="more pictures of the same classes to measure against")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--n", type=int, default=1000, help="pictures to draw")
    parser.add_argument("--scale", type=float, default=2.0, help="guidance")
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=["before", "folder"])
    parser.add_argument("--visits", type=int, default=100_000, help="pictures that the classifier learns from")
    parser.add_argument("--out", type=Path, default=Path("own_pictures"))
    parser.add_argument("words", nargs="*", help="options for train.py, after --")
    options = parser.parse_args()
    out, folder = options.out.absolute(), options.folder.absolute()
    out.mkdir(parents=True, exist_ok=True)
    train, val, captions = read((options.real or folder).absolute())
    net = classifier_of(train, len(captions), options.visits, out)
    accuracy = (net.extract(val.images)[1] == val.classes).double().mean().item()
    real, rows = net.extract(torch.cat([train.images, val.images]))[0], subset(len(train.images), options.n)
    floor = frechet_distance(moments(real), moments(real[rows]))
    print(f"{processor()}, {torch.get_num_threads()} threads; {len(train.images) + len(val.images):,} real pictures")
    print(f"the classifier is right on {accuracy:.3f} of {len(val.images):,} held-out pictures")
    print(f"{options.n} real pictures in place of drawn ones: {floor:.3f}")
    print("| recipe | steps | parameters | seconds | Fréchet distance | right class | ms a picture |\n|" + "---|" * 7)
    asked = torch.from_numpy(np.arange(options.n) % len(captions))
    strips = {"real pictures": train.images[first_of_each(train.classes, len(captions), 60)]}
    for name in options.recipes:
        words = [*RECIPES[name], f"data.size={options.size}", f"budget_minutes={options.minutes}", *options.words]
        run, seconds = train_recipe(folder, words, out)
        images, spent = draw(run, [captions[k] for k in asked.tolist()], options.scale)
        features, classes = net.extract(images)
        distance = frechet_distance(moments(real), moments(features))
        summary = json.loads((run / "summary.json").read_text())
        strips[f"{name}, {summary['steps']:.0f} steps in {options.minutes:g} minutes: {distance:.2f}"] = images
        save_sheet(strips, out / "sheet.png")
        right = (classes == asked).double().mean().item()
        counts = f"{summary['steps']:.0f} | {summary['parameters']:,.0f} | {seconds:.0f}"
        print(f"| {name} | {counts} | {distance:.2f} | {right:.3f} | {1000 * spent / options.n:.0f} |", flush=True)


if __name__ == "__main__":
    main()
