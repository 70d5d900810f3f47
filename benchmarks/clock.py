"""Prints how fast the velocity of a run changes with the time, with its own clock and with slower ones whose time
embedding is refitted (`adapter.clock`): `python benchmarks/clock.py RUN`."""

from __future__ import annotations

import argparse
import copy
import pathlib
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from dit.adapters.extra import ExtraConditions
from dit.diffusion.flow_map import Map
from dit.diffusion.path import Path
from dit.diffusion.prediction import Prediction
from dit.runs import load

PICTURES, STEPS = 8, 16  # whose points on the way from noise to a picture are used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    args = parser.parse_args()
    run, met = load(args.run, device="cpu"), []
    pipeline, prompts = run.pipeline, ["a large red star on a black background"] * PICTURES
    path, prediction = pipeline.path, pipeline.prediction
    assert isinstance(path, Path)
    assert isinstance(prediction, Prediction)
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
        flow = Map(network, path, prediction, condition)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            v, by_time, *_ = torch.func.jvp(lambda t, flow=flow: flow.output(x, t, t), (t,), (torch.ones_like(t),))
            _, by_x, *_ = torch.func.jvp(lambda x, flow=flow: flow.output(x, t, t), (x,), (v,))
        usual = v if usual is None else usual
        off, *sizes = (part.flatten(1).norm(dim=1).mean() for part in (v - usual, v, by_time, by_x))
        print(
            f"{clock:g} t: |u| {sizes[0]:.2f}, changed by {off / sizes[0]:.1%}; |d_t u| {sizes[1]:.1f}, "
            f"|u . d_x u| {sizes[2]:.1f}"
        )


if __name__ == "__main__":
    main()
