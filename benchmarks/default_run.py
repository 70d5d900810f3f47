"""What the default experiment reaches: `python benchmarks/default_run.py` trains it for several seeds, one after
another, and prints a table. Options after `--` go to train.py, e.g. `-- experiment=digits`."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = ("prompt_accuracy", "prompt_accuracy_unseen", "train_seconds", "images_per_second", "val/loss")


def run(seed: int, words: list[str]) -> dict[str, float]:
    """Trains one seed; its summary."""
    command = [sys.executable, "train.py", f"seed={seed}", "wandb.mode=disabled", *words]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads((Path(output.stdout.splitlines()[-1]) / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("words", nargs="*", help="options for train.py")
    options = parser.parse_args()
    rows = {seed: run(seed, options.words) for seed in options.seeds}
    columns = [name for name in COLUMNS if name in next(iter(rows.values()))]
    print("| seed | " + " | ".join(columns) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for seed, row in rows.items():
        print(f"| {seed} | " + " | ".join(f"{row[name]:.3f}" for name in columns) + " |")
    print("| mean | " + " | ".join(f"{statistics.mean(r[name] for r in rows.values()):.3f}" for name in columns) + " |")


if __name__ == "__main__":
    main()
