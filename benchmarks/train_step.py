"""What the Trainer adds to a training step: `python benchmarks/train_step.py`.

Three loops take turns in one process, round by round: the Trainer with the default callbacks, a bare loop over the same
module and data loader (loss, backward, clipping, AdamW, learning rate, average), and diffusers' DiT of the same size in
a loop of the same steps. The table has the median over the rounds of the mean milliseconds of a step, by the clock and
of CPU time, which other processes disturb less. `--profile` then prints where a step of the Trainer spends its time.

`--parts` times what a step needs beside the network at batch 256 of 4 x 32 x 32, and text of Stable Diffusion 3's size
at batch 32: what it takes in the thread that loads batches, and how long steps of 100 ms wait for it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("WANDB_MODE", "disabled")
from dit.cli.quiet import quiet
from dit.cli.train import build_callbacks, build_trainer
from dit.data.cache import build_cache
from dit.data.draws import TrainingDraws
from dit.data.latent_dataset import LatentDataset
from dit.data.order import Visit
from dit.data.prefetch import Prefetched
from dit.diffusion.path import Linear
from dit.encoders.autoencoder import Identity
from dit.files import CONF
from dit.plain_values import plain
from dit.training.diffusion import DiffusionModule
from dit.training.interruption import Interruption
from dit.training.loggers import MetricsCsv
from dit.training.optimizer import adamw, warmup_and_decay
from dit.training.tasks import TASKS
from dit.types import Batch, Condition

SKIPPED = 3  # first steps of a round that do not count
Times = list[tuple[float, float]]  # at the ends of steps: by the clock, and CPU time of this process


CUDA = torch.cuda.is_available()  # the question takes a millisecond


def now() -> tuple[float, float]:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def config(options: argparse.Namespace, folder: str) -> Any:
    """The handwritten digits with a class-conditional DiT, and the default callbacks but those that sample."""
    words = [
        "experiment=digits", "text_encoder=classes", "backbone=dit_s_2", f"backbone.width={options.width}",
        f"backbone.depth={options.depth}", f"backbone.heads={options.width // 64}", f"batch_size={options.batch}",
        f"data.module.workers={options.workers}", f"trainer.max_steps={options.steps + SKIPPED}",
        "trainer.val_check_interval=1000000", "callbacks.closing_score=null", "callbacks.previews=null",
        f"run_dir={folder}", f"cache_dir={folder}",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=words)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


class Marks(L.Callback):
    """Notes the time when each step begins, as the loops below do. Steps that are logged are among them."""

    def __init__(self) -> None:
        self.times: Times = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(now())


def with_trainer(cfg: Any, folder: Path, profiler: Any = None) -> Times:
    """Trains with the Trainer of the command, and everything that it calls."""
    module, data = TASKS["diffusion"](cfg, folder)
    marks = Marks()
    callbacks = [marks, *build_callbacks(cfg, plain(cfg), Interruption())]
    trainer: Any = build_trainer(cfg, data, folder, MetricsCsv(folder), callbacks)
    trainer.profiler = profiler or trainer.profiler
    with silent():
        trainer.fit(module, datamodule=data)
    return marks.times


def device() -> str:
    return "cuda" if CUDA else "cpu"


def bare(cfg: Any, folder: Path) -> Times:
    """The same module, data loader, optimizer and average in a loop."""
    built, loaded = TASKS["diffusion"](cfg, folder)
    module, data = cast(Any, built).to(device()), cast(Any, loaded)
    module.trainer = data.trainer = SimpleNamespace(
        world_size=1, global_rank=0, accumulate_grad_batches=1, global_step=0, max_steps=cfg.trainer.max_steps,
        strategy=SimpleNamespace(root_device=torch.device(device())),
    )  # fmt: skip
    with silent():
        data.prepare_data()
    module.on_fit_start()
    parts = module.configure_optimizers()
    optimizer, schedule = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
    parameters = list(module.parameters())
    average = [p.detach().clone() for p in parameters]
    times: Times = []
    for step, batch in zip(range(cfg.trainer.max_steps), data.train_dataloader()[0], strict=False):
        times.append(now())
        optimizer.zero_grad()
        module.loss(batch.to(device()), step).losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.005)
    return times


def theirs(cfg: Any, folder: Path) -> Times:
    """diffusers' DiT on the same data, with noise and times drawn for the whole batch."""
    from diffusers import DiTTransformer2DModel

    data: Any = TASKS["diffusion"](cfg, folder)[1]
    data.trainer = SimpleNamespace(
        world_size=1, global_rank=0, accumulate_grad_batches=1, global_step=0,
        strategy=SimpleNamespace(root_device=torch.device(device())),
    )  # fmt: skip
    with silent():
        data.prepare_data()
    data.draws = None
    net: Any = DiTTransformer2DModel(
        num_attention_heads=cfg.backbone.heads, attention_head_dim=cfg.backbone.width // cfg.backbone.heads,
        in_channels=3, out_channels=3, num_layers=cfg.backbone.depth, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    net.to(device()).train()
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    average = [p.detach().clone() for p in parameters]
    times: Times = []
    for _, batch in zip(range(cfg.trainer.max_steps), data.train_dataloader()[0], strict=False):
        times.append(now())
        optimizer.zero_grad()
        x0, labels = batch.x0.to(device()), batch.condition.label.to(device())
        noise, t = torch.randn_like(x0), torch.rand(len(x0), device=x0.device)
        x = torch.lerp(x0, noise, t.view(-1, 1, 1, 1))
        output = net(x, timestep=(1000 * t).long(), class_labels=labels).sample
        (output - (noise - x0)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.005)
    return times


LOOPS: dict[str, Callable[[Any, Path], Times]] = {"Trainer": with_trainer, "bare loop": bare, "diffusers": theirs}


def compare(options: argparse.Namespace) -> None:
    took: dict[str, list[list[float]]] = {name: [] for name in LOOPS}
    for number in range(options.rounds):
        for name, loop in list(LOOPS.items())[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                times = loop(config(options, folder), Path(folder))[SKIPPED:]
            spans = zip(times[-1], times[0], strict=True)
            took[name].append([1000 * (end - start) / (len(times) - 1) for end, start in spans])
    print(f"{'ms a step':12}{'clock':>10}{'CPU time':>10}")
    for name, rounds in took.items():
        clock, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name:12}{clock:10.2f}{cpu:10.2f}")
    for place, clock in enumerate(("clock", "CPU time")):
        more = sorted(a[place] - b[place] for a, b in zip(took["Trainer"], took["bare loop"], strict=True))
        share = statistics.median(
            a[place] / b[place] - 1 for a, b in zip(took["Trainer"], took["bare loop"], strict=True)
        )
        print(
            f"the Trainer adds {statistics.median(more):.2f} ms ({more[0]:.2f} to {more[-1]:.2f}), {share:.1%}, {clock}"
        )


class Recorded(SimpleProfiler):
    """Keeps the seconds of every part, and prints no table of its own."""

    def describe(self) -> None:
        pass


def profile(options: argparse.Namespace) -> None:
    """Prints the mean milliseconds of a step in each part of the Trainer."""
    profiler = Recorded()
    with tempfile.TemporaryDirectory() as folder:
        with_trainer(config(options, folder), Path(folder), profiler)
    steps = options.steps
    each = {name: 1000 * sum(spans[SKIPPED:]) / steps for name, spans in profiler.recorded_durations.items()
            if len(spans) >= steps}  # fmt: skip
    print(f"\n{'part of a step (some contain others)':84}{'ms':>8}")
    for name, ms in sorted(each.items(), key=lambda item: -item[1])[:24]:
        print(f"{name[:82]:84}{ms:8.3f}")


# --- parts


class Blank:
    """Pictures without content, each with its own caption."""

    fingerprint = "blank"

    def __init__(self, count: int) -> None:
        self.captions = [str(number) for number in range(count)]

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, index: np.ndarray) -> np.ndarray:
        return np.zeros((len(index), 3, 8, 8), dtype=np.uint8)


class Text:
    """Random states of `real` tokens of `length`."""

    fingerprint = "text"

    def __init__(self, length: int, real: int, width: int) -> None:
        self.length, self.real, self.sizes = length, real, {"token_dim": width}

    def fit(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def encode(self, prompts: Sequence[str]) -> Condition:
        mask = (torch.arange(self.length) < self.real).expand(len(prompts), -1)
        return Condition(tokens=torch.randn(len(prompts), self.length, self.sizes["token_dim"]), mask=mask)

    def null(self) -> Condition:
        return self.encode([""])

    def to(self, device: torch.device | str) -> Text:
        return self


def marks() -> tuple[float, float]:
    """Returns the clock, and the CPU time of this thread."""
    return time.perf_counter(), time.thread_time()


def row(name: str, work: Callable[[], object], before: Callable[[], object] = lambda: None, rounds: int = 15) -> None:
    """Prints the medians of several rounds of `work`, each after `before`: the clock, and CPU time of this thread."""
    took = []
    for _ in range(rounds):
        before()
        start = marks()
        work()
        took.append([1000 * (end - begin) for end, begin in zip(marks(), start, strict=True)])
    clock, cpu = (statistics.median(column) for column in zip(*took, strict=True))
    print(f"{name:88}{clock:10.2f}{cpu:10.2f}", flush=True)


def step_of_100_ms(a: Tensor = torch.randn(256, 256)) -> None:  # noqa: B008
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        a @ a


def loaded(name: str, load: Callable[[], Batch]) -> None:
    """Prints what it takes to load a batch, and how long a step waits for it, by data.module.workers=0."""
    row(f"{name}: loading", load)
    batches = iter(Prefetched(load() for _ in itertools.count()))
    row(f"{name}: waiting", lambda: next(batches), step_of_100_ms)


def parts() -> None:
    print(f"{'ms a step':88}{'clock':>10}{'CPU time':>10}")
    null = Condition(tokens=torch.zeros(1, 1, 768))
    draws = TrainingDraws(Linear(), 0, null, 0.1)
    index = torch.arange(256)
    tokens = Condition(tokens=torch.zeros(256, 20, 768))
    batch = Batch(torch.zeros(256, 4, 32, 32), tokens, index, torch.zeros_like(index))
    pipeline: Any = SimpleNamespace(path=Linear(), backbone=torch.nn.Linear(2, 2), null_condition=lambda: null)

    def objective(network: Any, draw: Any) -> Tensor:
        return draw.u

    module = DiffusionModule(pipeline, objective, adamw, warmup_and_decay, seed=0)
    module.trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=1, global_step=0)  # type: ignore[assignment]
    drawn = draws(batch)
    row("draw of 256 x 4 x 32 x 32 with the null condition, from a loaded batch", lambda: module.loss(drawn, 0))
    loaded("random numbers and caption dropout of 256 x 4 x 32 x 32", lambda: draws(batch))
    with tempfile.TemporaryDirectory() as folder:
        for name, real in (("333 of 333 tokens", 333), ("97 of 333 tokens", 97)):
            text, source = Text(333, real, 4096), Blank(32)
            place = Path(folder) / name.replace(" ", "_")
            with silent():
                build_cache(place, source, Identity(), text)
            visits = [Visit(number, 0) for number in range(32)]
            for padded, length in (("to 333", 333), ("to the longest", None)):
                data = LatentDataset(place, length)
                label = f"32 rows of SD3's text, {name}, padded {padded}"
                loaded(label, lambda data=data, visits=visits: data[visits])  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40, help="of a loop in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    quiet()
    if options.parts:
        parts()
        return
    compare(options)
    if options.profile:
        profile(options)


if __name__ == "__main__":
    main()
