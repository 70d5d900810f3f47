"""Where the time of a sweep goes: `python benchmarks/sweep.py RUN [OVERRIDES]`, overrides as evaluate.py takes them.

Scores the cells of a run anew in an empty folder and prints, cell by cell, the seconds in the backbone, in the
autoencoder's decoder, and in what judges (extractors, text towers, checkers). The rest is the sweep's own: samplers,
noise, statistics, files. The last line has its share of the whole.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.cli import evaluate
from dit.evaluation import checkpoints
from dit.evaluation.sweep import Sweep
from dit.files import CONF
from dit.metrics.extractors import Extractor, OpenClip
from dit.metrics.prompt_accuracy import PromptAccuracy

PARTS = ("backbone", "decoder", "judges")


class Clock:
    """Seconds by part, and in all."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys((*PARTS, "whole"), 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[part] += time.perf_counter() - start

        return wrapped


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Inside, every call of a network counts on the clock, and a line is printed for each cell."""
    load_found, score = checkpoints.load_found, Sweep.score

    def load(*args: Any) -> Any:
        run = load_found(*args)
        pipeline = run.pipeline
        pipeline.backbone.forward = clock.timed("backbone", pipeline.backbone.forward)
        pipeline.autoencoder.decode = clock.timed("decoder", pipeline.autoencoder.decode)  # type: ignore[method-assign]
        return run

    def judged(metric: PromptAccuracy, images: Any, prompts: Any) -> None:
        metric.checker = clock.timed("judges", metric.checker) if not hasattr(metric, "watched") else metric.checker
        metric.watched = True
        update_samples(metric, images, prompts)

    def timed_cell(sweep: Sweep, cell: Any, *rest: Any) -> None:
        sweep.prepare()  # what is done once for all cells is no part of the first
        before = dict(clock.spent)
        clock.timed("whole", score)(sweep, cell, *rest)
        parts = {name: clock.spent[name] - before[name] for name in clock.spent}
        print(row(cell.key.rsplit("_", 1)[0], parts))

    update_samples = PromptAccuracy.update_samples
    with ExitStack() as patches:
        for owner, name, new in (
            (checkpoints, "load_found", load),
            (Sweep, "score", timed_cell),
            (PromptAccuracy, "update_samples", judged),
            (Extractor, "forward", clock.timed("judges", Extractor.forward)),
            (OpenClip, "text_features", clock.timed("judges", OpenClip.text_features)),
        ):
            patches.enter_context(mock.patch.object(owner, name, new))
        yield


def row(name: str, parts: dict[str, float]) -> str:
    rest = parts["whole"] - sum(parts[part] for part in PARTS)
    seconds = "".join(f"{parts[part]:>10.3f}" for part in PARTS)
    return f"{name:28}{seconds}{rest:>10.3f}{parts['whole']:>10.3f}{rest / parts['whole']:>8.1%}"


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    clock = Clock()
    print(f"{'cell':28}" + "".join(f"{name + ', s':>10}" for name in (*PARTS, "rest", "whole")) + f"{'rest':>8}")
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        words = [f"ckpt={sys.argv[1]}", f"out={folder}", "wandb.mode=disabled", *sys.argv[2:]]
        with watched(clock):
            evaluate.evaluate(compose("evaluate", words))
    print(row("all", clock.spent))


if __name__ == "__main__":
    main()
