"""Compares results side by side and tests their differences: `python -m dit.cli.compare A B`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dit.cli.front import command_name, stop


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command_name("compare"),
        description="Shows results of evaluate.py side by side, and how each differs from the first. Results with "
        "different protocols are refused.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="a results folder, or a cell's .json")
    parser.add_argument(
        "--force", action="store_true", help="compare different protocols, and mark the scores that they affect"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the comparison here too")
    parser.add_argument(
        "--column", action="append", metavar="NAME", help="this score instead of the headlines; repeat it for more"
    )
    return parser.parse_args(words)


def refuse_runs(paths: Sequence[Path]) -> None:
    """Raises ValueError with the command that scores them if runs or checkpoints are given instead of results."""
    runs = [str(path) for path in paths if (path / "checkpoints").is_dir() or path.suffix == ".ckpt"]
    if runs:
        many = len(runs) > 1
        raise ValueError(
            f"{' and '.join(runs)} {'are runs' if many else 'is a run'}, and compare reads results of evaluate.py; "
            f"{'one sweep scores and compares them' if many else 'score it first'}: {command_name('evaluate')} "
            f"ckpt={'[' + ','.join(runs) + ']' if many else runs[0]}"
        )


def compare(paths: Sequence[Path], force: bool, csv: Path | None, columns: Sequence[str] | None) -> str:
    """Returns the text to print, and writes the table `csv` if given. columns: the scores; None for the headlines.

    Raises ValueError for results that cannot be read or compared.
    """
    # Imports that take seconds follow after the command line is checked.
    from dit.errors import nearest
    from dit.evaluation.comparison import headlines_of, names_of, read_results
    from dit.evaluation.side_by_side import Comparison, refusal
    from dit.files import write_atomic

    refuse_runs(paths)
    found, floors = read_results(paths)
    named = list(zip(names_of(found), found, strict=True))
    failed = [f"failed: {name}: {result.card.failed}" for name, result in named if result.card.failed]
    names = [name for name, result in named if not result.card.failed]
    results = [result for _, result in named if not result.card.failed]
    known = {column for result in results for column in result.card.scores}
    for column in columns or ():
        if column not in known:
            raise ValueError(f"--column {column}: none of the results has it.{nearest(column, known)}")
    columns = columns or [column for column in headlines_of(results) if column in known]
    comparison = Comparison(results, names, columns, floors)
    if any(comparison.differing) and not force:
        raise ValueError(f"{refusal(names, comparison.differing[1:])}; use --force to compare them anyway")
    if csv is not None:
        write_atomic(csv, comparison.csv())
    differences = comparison.verdicts() if len(results) > 1 else ""
    parts = [comparison.scores(), differences, "\n".join(comparison.notes() + failed)]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    args = arguments()
    try:
        print(compare(args.results, args.force, args.csv, args.column))
    except ValueError as error:
        stop(str(error))


if __name__ == "__main__":
    main()
