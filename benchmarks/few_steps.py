"""Draws samples of a few-step student beside those of its teacher, on the same prompts and noise:
`python benchmarks/few_steps.py TEACHER STUDENT docs/few_steps.png`. `--previews` takes the prompts of the teacher's
previews instead, which a run of other data needs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.diffusion.guidance import ClassifierFree, Embedded
from dit.picture_files import save_png
from dit.runs import load
from dit.sample_grid import captioned_grid

PROMPTS = [
    "a large red star on a black background", "a small cyan circle on a grey background",
    "a large green triangle on a white background", "a small yellow square on a black background",
    "a large pink star on a grey background", "a small blue triangle on a white background",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--previews", action="store_true")
    args = parser.parse_args()
    teacher, student = load(args.teacher), load(args.student)
    prompts = list(teacher.config.data.prompts)[:6] if args.previews else PROMPTS
    guided = ClassifierFree(args.scale)
    rows = {"teacher, 32 steps": teacher.sample(prompts, sampler="euler", steps=32, guidance=guided)}
    for steps in (1, 2, 4, 8):
        made = student.sample(prompts, sampler="flow_map", steps=steps, guidance=Embedded(args.scale))
        rows[f"student, {steps} step{'s' * (steps > 1)}"] = made
    images = torch.cat([samples.pixels for samples in rows.values()])
    header = [prompt.removeprefix("a ") for prompt in prompts]
    save_png(captioned_grid(images, list(rows), len(prompts), side=112, header=header), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
