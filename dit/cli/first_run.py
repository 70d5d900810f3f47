"""Runs `make train`: trains the default experiment, evaluates it briefly and prints where the pictures are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dit.files import read_json

BRIEF = ("n=64", "sampler=[euler,dpmpp_2m]", "steps=[2,4,8,16]", "guidance.scale=[1,3]", "references=512")


def last_line(command: list[str]) -> str:
    """Runs a command, prints its output, and returns its last line. Exits if the command fails."""
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        sys.exit(process.returncode)
    return last


def main() -> None:
    run = Path(last_line([sys.executable, "-m", "dit.cli.train", *sys.argv[1:]]))
    results = Path(last_line([sys.executable, "-m", "dit.cli.evaluate", f"ckpt={run}", *BRIEF]))
    summary = read_json(run / "summary.json", nan=True)
    known, unseen = summary["prompt_accuracy"], summary["prompt_accuracy_unseen"]
    print(f"\nprompt accuracy  {known:.3f} (combinations that do not occur in training: {unseen:.3f})")
    print(f"run              {run}")
    print(f"pictures         {run / 'samples'} and {results / 'report.html'}")


if __name__ == "__main__":
    main()
