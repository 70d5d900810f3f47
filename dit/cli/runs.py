"""A table over runs, such as those of a sweep: `python -m dit.cli.runs DIR`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit.cli.front import command_name, stop

if TYPE_CHECKING:
    from dit.evaluation.runs_table import RunsTable

OUT = "overview"  # the folder of the files, below that of the runs


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command_name("runs"),
        description="Shows a table over the runs below a folder: what was overridden, with means and 95 % intervals "
        "over runs that differ only in the seed; the best setting is marked. Writes runs.html with curves, runs.csv, "
        "settings.csv, runs.tex and plots/ into DIR/overview, and prints that folder as the last line.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of runs, such as runs/shapes/SWEEP")
    parser.add_argument(
        "--metric", action="append", metavar="NAME", help="this metric of summary.json; repeat it for more"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the files here")
    return parser.parse_args(words)


def show_runs(
    folder: Path, metrics: Sequence[str] | None = None, out: Path | None = None
) -> tuple[RunsTable, dict[str, bytes]]:
    """Prints the table, writes the files, and returns the table and the plots. Raises ValueError without runs."""
    # Imports that take seconds follow after the command line is checked.
    from dit.evaluation.runs_page import write_runs
    from dit.evaluation.runs_table import RunsTable

    found = RunsTable(folder, metrics)
    target = (folder / OUT if out is None else out).absolute()
    plots = write_runs(found, target)
    print(found.text(), target, sep="\n\n", flush=True)
    return found, plots


def end_sweep(folder: Path) -> None:
    """Shows the runs of a sweep that has ended, on rank 0 and if any has begun; logs them to W&B if the runs are."""
    from dit.evaluation.run_records import run_folders
    from dit.training.run_directory import is_first

    if not is_first() or not any(run_folders(folder)):
        return
    try:
        found, plots = show_runs(folder)
        log_to_wandb(found, folder, plots)
    except ValueError as error:
        print(f"note: no table of the runs: {error}", file=sys.stderr)


def log_to_wandb(found: RunsTable, folder: Path, plots: dict[str, bytes]) -> None:
    """Logs the tables, the curves and the page of a sweep in a W&B run of its own, beside those of its runs."""
    from dit.evaluation.tables import plain_row
    from dit.training.loggers import wandb_run

    settings = found.runs[0].origin.config["wandb"]
    group = settings["group"] or folder.name
    run = wandb_run(folder, settings["project"], settings["mode"], group, "runs", {"runs": len(found.runs)})
    if run is None:
        return
    import wandb
    from PIL import Image

    def table(rows: Sequence[dict[str, object]]) -> wandb.Table:
        columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
        return wandb.Table(columns=columns, data=[[row.get(str(name)) for name in columns] for row in rows])

    try:
        page = wandb.Html((folder / OUT / "runs.html").read_text(encoding="utf-8"), inject=False)
        tables = {"settings": table([plain_row(row) for row in found.folded]), "runs": table(found.run_rows())}
        images = {name: wandb.Image(Image.open(io.BytesIO(data))) for name, data in plots.items()}
        run.log({**tables, "page": page, **images})
    finally:
        run.finish()


def main() -> None:
    args = arguments()
    try:
        show_runs(args.folder, args.metric, args.out)
    except ValueError as error:
        stop(str(error))


if __name__ == "__main__":
    main()
