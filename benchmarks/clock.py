"""Prints how fast the velocity of a run changes with the time, with its own clock and with slower ones whose time
embedding is refitted (`adapter.clock`): `python benchmarks/clock.py RUN`."""

from __future__ import annotations

import argparse
import copy
import pathlib
import sys

import torch
from hydra.utils import instantiate
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from dit.adapters.extra import ExtraConditions
from dit.data.captions import all_captions
from dit.diffusion.flow_map import Map
from dit.diffusion.path import Path
from dit.diffusion.prediction import Flow
from dit.layers.embeddings import time_embeddings
from dit.runs import load

PICTURES, STEPS = 8, 16  # whose points on the way from noise to a picture are used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    args = parser.parse_args()
    run, met = load(args.run, device="cpu"), []
    pipeline = run.pipeline
    path, prediction = pipeline.path, pipeline.prediction
    if not isinstance(path, Path) or not isinstance(prediction, Flow):
        sys.exit(
            f"{args.run}: prediction._target_={run.config.prediction._target_} gives no velocity; name a run of "
            f"prediction=flow"
        )
    captions = all_captions(instantiate(run.config.data.module).train)
    prompts = [captions[i % len(captions)] for i in range(PICTURES)]
    run.sample(
        prompts, sampler="euler", steps=STEPS, guidance=1.0, watch=lambda point, x, estimate: met.append((point.t, x))
    )
    x = torch.cat([x for _, x in met])
    t = torch.tensor([t for t, _ in met], dtype=torch.float64).repeat_interleave(PICTURES)
    condition, usual = pipeline.encode(prompts * STEPS), None
    for clock in (1000, 250, 64, 16, 4, 1):
        network = copy.deepcopy(pipeline.backbone)
        if clock < 1000:
            network = ExtraConditions([], clock=clock)(network)
        fit = next(time.fit_error for _, time in time_embeddings(network))
        flow = Map(network, path, prediction, condition)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            v, by_time, *_ = torch.func.jvp(lambda t, flow=flow: flow.output(x, t, t), (t,), (torch.ones_like(t),))
            _, by_x, *_ = torch.func.jvp(lambda x, flow=flow: flow.output(x, t, t), (x,), (v,))
        usual = v if usual is None else usual
        off, *sizes = (part.flatten(1).norm(dim=1).mean() for part in (v - usual, v, by_time, by_x))
        embedding = "" if fit is None else f"embedding off by {fit:.1%}, "
        print(
            f"{clock:g} t: {embedding}|u| {sizes[0]:.2f}, changed by {off / sizes[0]:.1%}; |d_t u| {sizes[1]:.1f}, "
            f"|u . d_x u| {sizes[2]:.1f}"
        )


if __name__ == "__main__":
    main()
