"""Prints the peak memory of a process that writes many pictures with a network that takes no time, for each number of
pictures: `python benchmarks/bulk_memory.py`."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SEEDS = 100  # of each prompt


class Stripes:
    """Pictures that depend on prompt and seed alone."""

    about: Mapping[str, Any] = {"model": "none", "step": 0, "weights": "0" * 16, "recipe": {"steps": 1}}

    def sample(self, jobs: Sequence[Any]) -> Any:
        import torch

        noise = torch.Generator().manual_seed(jobs[0].seed)
        return torch.randint(0, 256, (len(jobs), 3, 32, 32), generator=noise, dtype=torch.uint8), 2.0


def write(folder: Path, layout: str, count: int) -> int:
    """Writes pictures and returns the peak memory of this process in KiB."""
    from tqdm import tqdm

    from dit.generation.bulk import Bulk
    from dit.generation.delivery import Delivery
    from dit.generation.output import Output
    from dit.generation.sheet import write_sheets
    from dit.generation.work import Work
    from dit.generation.writers import WRITERS

    prompts = [f"a large red star on a black background, number {number}" for number in range(count // SEEDS)]
    output = Output(Work(prompts, range(SEEDS)), WRITERS[layout](folder), {})
    output.begin([[64]], False)
    with tqdm(total=count, disable=True) as bar:
        Bulk(output, lambda number: Stripes(), Delivery()).run(bar, lambda output: write_sheets(output, 100))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--layouts", nargs="+", default=["folder", "webdataset", "parquet"])
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "LAYOUT", "COUNT"), help="write once and print the KiB")
    args = parser.parse_args()
    if args.one:
        print(write(Path(args.one[0]), args.one[1], int(args.one[2])))
        return
    print("| format |", *(f"{count:,} pictures |" for count in args.counts))
    print("|---|" + "---|" * len(args.counts))
    for layout in args.layouts:
        peaks = []
        for count in args.counts:
            with tempfile.TemporaryDirectory() as folder:
                words = [sys.executable, __file__, "--one", f"{folder}/out", layout, str(count)]
                peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout) / 1024)
        print(f"| {layout} |", *(f"{peak:.0f} MiB |" for peak in peaks), flush=True)


if __name__ == "__main__":
    main()
