"""Throughput of the server: 40 mixed requests of as many clients at once, over HTTP, answered in three ways.

    python train.py backbone=mmdit_tiny +backbone.position=cropped +backbone.largest=4 \\
        +backbone.reads_padding=true trainer.max_steps=100 run_dir=RUN
    python benchmarks/serve.py --run RUN

batching: the network calls of all requests are joined. one at a time: the same server with limits.requests=1.
diffusers: the same endpoint, whose pictures are made by diffusers' StableDiffusion3Pipeline with the run's weights, one
request at a time. Every request has one picture and its own sampler, number of steps, guidance scale, prompt and seed.
The ways take turns, round by round, and the ratios to batching are medians over the rounds, so that other work on the
machine slows all of them; CPU time, which has that of the clients too, is disturbed less. Without an MM-DiT that
diffusers has (the first command), the third way is left out.

The table's last column is the largest difference of a picture's value, of 255, to batching's; of diffusers only for
sampler=euler, since its other samplers are not the same.
"""

import argparse
import base64
import io
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit.backbones.mmdit import MMDiT
from dit.cli.export import write_model
from dit.components import component
from dit.generation.asking import Limits, Menu
from dit.generation.batching import shared
from dit.generation.keys import Keys
from dit.generation.model import finite_pixels
from dit.generation.server import Server, app_of, bound
from dit.generation.service import Admitted, Made, Service
from dit.pipeline import Pipeline, Recipe
from dit.runs import Run, load_run
from dit.types import Condition

SAMPLERS = ("euler", "heun", "dpmpp_2m", "unipc_2", "ddpm")
STEPS, SCALES = (4, 8, 12, 16, 24), (1.0, 2.0, 4.0)
TIMEOUT = 600.0  # seconds for one answer
Body = dict[str, Any]
Times = Sequence[tuple[float, float]]  # of each round: by the clock, and CPU time


def bodies_of(run: Run, count: int) -> list[Body]:
    """Returns requests of OpenAI's endpoint."""
    draw, prompts = random.Random(0), list(run.config.data.prompts)
    return [
        {
            "prompt": draw.choice(prompts),
            "seed": seed,
            "sampler": draw.choice(SAMPLERS),
            "steps": draw.choice(STEPS),
            "guidance_scale": draw.choice(SCALES),
        }
        for seed in range(count)
    ]


class DiffusersService(Service):
    """The same service, whose pictures are made by a pipeline of diffusers, with the same initial noise."""

    def __init__(self, *given: Any, theirs: Any) -> None:
        super().__init__(*given)
        self.theirs, self.schedulers = theirs, schedulers()

    def _made(self, job: Admitted, recipe: Recipe, condition: Condition) -> Made:
        ask, null = job.ask, self.pipeline.null(recipe)
        assert null is not None
        shape = self.menu.shapes[ask.size]
        noise = self.pipeline.path.sampling_noise(list(ask.seeds), shape).start()
        self.theirs.scheduler = self.schedulers[ask.sampler]()
        with torch.inference_mode():
            images: Tensor = self.theirs(
                prompt_embeds=condition.tokens,
                pooled_prompt_embeds=condition.pooled,
                negative_prompt_embeds=null.tokens,
                negative_pooled_prompt_embeds=null.pooled,
                num_inference_steps=ask.steps,
                guidance_scale=ask.scale,
                height=ask.size[1],
                width=ask.size[0],
                latents=noise,
                output_type="pt",
                **({"sigmas": np.linspace(1, 0, ask.steps + 1)[:-1]} if ask.sampler == "euler" else {}),
            ).images
        files = self._delivered(job, finite_pixels(images * 2 - 1, ask.seeds))
        cost = self.batcher.meter.described(job.request.cost) | {"cache_hits": 0}  # not measured: 0
        return Made(files, ask.seeds, job.cost, time.monotonic() - job.started, cost)


def schedulers() -> dict[str, Callable[[], Any]]:
    """Returns diffusers' schedulers for rectified flow, each by the name of the sampler here that is most like it."""
    import diffusers

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return {
        "euler": diffusers.FlowMatchEulerDiscreteScheduler,
        "heun": diffusers.FlowMatchHeunDiscreteScheduler,
        "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**flow),
        "unipc_2": lambda: diffusers.UniPCMultistepScheduler(**flow),
        "ddpm": lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    }


def theirs_of(run: Run) -> Any:
    """Returns the run's network and autoencoder as diffusers' pipeline, without its text encoders: the server has the
    run's own."""
    import diffusers

    absent = {f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")}
    with tempfile.TemporaryDirectory() as folder:
        write_model(run, "diffusers", Path(folder))
        found = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    found.set_progress_bar_config(disable=True)
    return found


@contextmanager
def served(service: Service) -> Iterator[str]:
    """Serves in a thread of this process; yields the address."""
    service.warm_up()
    where = bound("127.0.0.1", 0)
    server = Server(service, app_of(service, Keys([]), "run"), 30)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [where]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{where.getsockname()[1]}/v1/images/generations"
    finally:
        server.should_exit = True
        thread.join()
        service.close(0)


def menu_of(run: Run, pipeline: Pipeline, limits: Limits) -> Menu:
    recipe = run.recipe(8)
    samplers = {name: component("sampler", name) for name in SAMPLERS}
    size = (run.config.data.size, run.config.data.size)
    guidance = lambda scale: component("guidance", "classifier_free", scale=scale)  # noqa: E731
    return Menu(pipeline, samplers, recipe.grid, guidance, 8, 2.0, [size], limits)


def burst(url: str, bodies: Sequence[Body]) -> tuple[tuple[float, float], list[np.ndarray]]:
    """Sends all requests at once; returns the seconds until the last answer, by the clock and of CPU time, and the
    pictures."""
    unlimited = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=TIMEOUT, limits=unlimited) as client, ThreadPoolExecutor(len(bodies)) as threads:
        start = time.perf_counter(), time.process_time()
        answers = list(threads.map(lambda body: client.post(url, json=body), bodies))
        seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    for answer in answers:
        answer.raise_for_status()
    texts = [answer.json()["data"][0]["b64_json"] for answer in answers]
    return seconds, [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int) for text in texts]


def row(name: str, times: Times, batched: Times, rows: float | None, apart: Sequence[int]) -> str:
    """Returns a row of the table. rows: of a network call, None if they are not counted. apart: differences."""
    cells = [name]
    for kind in (0, 1):
        ratios = [one[kind] / other[kind] for one, other in zip(times, batched, strict=True)]
        cells.append(f"{statistics.median(one[kind] for one in times):.2f}")
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    cells += ["1 or 2" if rows is None else f"{rows:.1f}", str(max(apart, default=""))]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--run", required=True)
    words.add_argument("--count", type=int, default=40)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of one network call")
    args = words.parse_args()
    torch.set_num_threads(args.threads)
    run = load_run(args.run, device="cpu")
    bodies = bodies_of(run, args.count)
    services: dict[str, Service] = {}
    for name in ("batching", "one at a time", *(["diffusers"] if isinstance(run.pipeline.backbone, MMDiT) else [])):
        pipeline, batcher = shared(run.pipeline)
        limits = Limits() if name == "batching" else Limits(requests=1)
        given = pipeline, batcher, menu_of(run, pipeline, limits)
        services[name] = DiffusersService(*given, theirs=theirs_of(run)) if name == "diffusers" else Service(*given)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in services}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(served(service)) for name, service in services.items()}
        for _ in range(args.rounds):
            made = {}
            for name, url in urls.items():
                taken, made[name] = burst(url, bodies)
                seconds[name].append(taken)
    print(f"{args.count} requests, {args.rounds} rounds, {args.threads} threads for a network call")
    print("| | seconds | ratio | CPU seconds | ratio | rows a network call | largest difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    euler = [body["sampler"] == "euler" for body in bodies]
    for name, times in seconds.items():
        alike = [True] * len(bodies) if name != "diffusers" else euler
        pairs = zip(made[name], made["batching"], alike, strict=True)
        apart = [int(np.abs(one - other).max()) for one, other, same in pairs if same]
        batcher = services[name].batcher
        rows = None if name == "diffusers" else batcher.rows / batcher.calls
        print(row(name, times, seconds["batching"], rows, apart))


if __name__ == "__main__":
    main()
