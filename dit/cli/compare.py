"""Results side by side, and which differences are real: `python -m dit.cli.compare A B`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dit.cli.front import stop


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dit.cli.compare",
        description="Sets results of evaluate.py side by side and says how each differs from the first. Results of "
        "unlike protocols are refused.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="a results folder, or a cell's .json")
    parser.add_argument("--force", action="store_true", help="compare unlike protocols, and mark what is unlike")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the comparison here too")
    parser.add_argument(
        "--column", action="append", metavar="NAME", help="this score in place of the headlines; again for more"
    )
    return parser.parse_args(words)


def compare(given: Sequence[Path], force: bool, file: Path | None, asked: Sequence[str] | None) -> str:
    """What there is to print. Raises ValueError for what cannot be read, or not be compared."""
    # This file is a front door itself: what takes seconds to import waits until the command line is checked.
    from dit.errors import nearest
    from dit.evaluation.comparison import headlines_of, names_of, read
    from dit.evaluation.side_by_side import Comparison, refusal
    from dit.files import write_atomic

    found, floors = read(given)
    named = list(zip(names_of(found), found, strict=True))
    failed = [f"failed: {name}: {result.card.failed}" for name, result in named if result.card.failed]
    names = [name for name, result in named if not result.card.failed]
    results = [result for _, result in named if not result.card.failed]
    known = {column for result in results for column in result.card.scores}
    for column in asked or ():
        if column not in known:
            raise ValueError(f"--column {column}: none of the results has it.{nearest(column, known)}")
    columns = asked or [column for column in headlines_of(results) if column in known]
    comparison = Comparison(results, names, columns, floors)
    if any(comparison.unlike) and not force:
        raise ValueError(f"{refusal(names, comparison.unlike[1:])}; --force compares them all the same")
    if file is not None:
        write_atomic(file, comparison.csv())
    verdicts = comparison.verdicts() if len(results) > 1 else ""
    parts = [comparison.scores(), verdicts, "\n".join(comparison.notes() + failed)]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    args = arguments()
    try:
        print(compare(args.results, args.force, args.csv, args.column))
    except ValueError as error:
        stop(str(error))


if __name__ == "__main__":
    main()
