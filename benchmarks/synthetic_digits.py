"""What synthetic digits are worth: a support vector machine is trained on pictures of a run of experiment=digits, or on
real ones, and tested on the 297 real held-out digits: `python benchmarks/synthetic_digits.py RUN`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from dit.data.digits import HELD_OUT, Digits
from dit.evaluation.statistics import wilson
from dit.picture_files import read

Pictures = tuple[np.ndarray, list[str]]  # (N, 64) in [0, 16], and the captions
ROOT = Path(__file__).parents[1]


def real(split: str) -> Pictures:
    digits = Digits(split)
    return digits.pixels.reshape(len(digits), -1) / 16.0, digits.captions


def synthetic(ckpt: str, n: int, words: list[str]) -> tuple[Pictures, str]:
    """Returns the pictures of a call of synthesize, and the numbers of made and rejected ones in words."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "digits"
        command = [sys.executable, "-m", "dit.cli.synthesize", f"ckpt={ckpt}", f"out={out}", f"n={n}", *words]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        rows = [json.loads(line) for line in (out / "generated.jsonl").read_text().splitlines()]
        kept = [row for row in rows if "file" in row]
        pixels = np.stack([read(out / row["file"]).mean(0).reshape(-1) / 16.0 for row in kept])
    rejected = [row["rejected"].partition(":")[0] for row in rows if "rejected" in row]
    counts = ", ".join(f"{rejected.count(name)} {name}" for name in sorted(set(rejected)))
    return (pixels, [row["prompt"] for row in kept]), counts or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ckpt", help="a run of experiment=digits")
    parser.add_argument("--n", type=int, default=1500)
    args = parser.parse_args()
    print("| training pictures | number | rejected | accuracy on real digits | 95 % interval |\n|---|---|---|---|---|")
    tests, labels = real("val")
    arms: dict[str, list[str] | None] = {"real": None}
    for scale in (1, 2):
        arms[f"synthetic, guidance {scale}, all"] = [f"guidance.scale={scale}", "checker=false", "duplicates=null"]
        arms[f"synthetic, guidance {scale}, filtered"] = [f"guidance.scale={scale}"]
    for name, words in arms.items():
        (pixels, captions), rejected = (real("train"), "-") if words is None else synthetic(args.ckpt, args.n, words)
        right = int((SVC(gamma=0.001).fit(pixels, captions).predict(tests) == np.array(labels)).sum())
        low, high = wilson(right, HELD_OUT)
        row = f"{len(pixels)} | {rejected} | {right / HELD_OUT:.3f} | [{low:.3f}, {high:.3f}]"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
