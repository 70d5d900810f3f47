"""Prompts from the command line or from a file: lines of text, JSON lines, or a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dit.errors import shortened
from dit.files import parse_json, read_lines, read_text

SUFFIXES = (".txt", ".jsonl", ".csv")
COLUMNS = ("prompt", "text", "caption")  # names of the prompt in a row; the first that is there


def given_prompts(value: str | Sequence[Any]) -> list[str]:
    """Returns the prompts of a list, of a file whose name ends with one of SUFFIXES, or a single prompt. Raises
    ValueError if the file cannot be read, or if there are none."""
    if not isinstance(value, str):
        found = [str(prompt) for prompt in value]
    elif Path(value).suffix not in SUFFIXES:
        found = [value]
    else:
        found = list(prompts_in(Path(value)))
    if not found:
        where = f"{value} has no prompts" if isinstance(value, str) else "the list of prompts is empty"
        raise ValueError(f"{where}; give at least one, e.g. prompts='[a large red star]' or prompts=FILE.txt")
    return found


def prompts_in(file: Path) -> Iterator[str]:
    """Yields the prompts of a file: the lines of a .txt that are not empty, or the column `prompt` (or `text`, or
    `caption`) of a .jsonl or a .csv with a header. Raises ValueError with the line of a row without a prompt."""
    if file.suffix == ".txt":
        yield from (line.strip() for line in read_lines(file) if line.strip())
        return
    for number, row in csv_rows(file) if file.suffix == ".csv" else json_rows(file):
        names = [name for name in COLUMNS if name in row]
        prompt = row[names[0]] if names else None
        if not isinstance(prompt, str) or not prompt.strip():
            held = shortened(", ".join(map(str, row))) or "nothing"
            raise ValueError(f"{file} line {number} has no prompt, a text in a column prompt; it holds {held}")
        yield prompt.strip()


def json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number and the object of every line that is not empty."""
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            row = parse_json(line, f"{file} line {number}")
            if not isinstance(row, dict):
                raise ValueError(f'{file} line {number} is no object; expected {{"prompt": "a red star"}}')
            yield number, row


def csv_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number of the last line and the values of every row below the header."""
    table = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        header = table.fieldnames or []
        if not set(header) & set(COLUMNS):
            held = shortened(", ".join(map(str, header))) or "nothing"
            raise ValueError(f"{file}: its first line must name a column prompt; it holds {held}")
        for row in table:
            yield table.line_num, {str(name): value for name, value in row.items() if value is not None}
    except csv.Error as error:
        raise ValueError(f"{file} line {table.line_num} cannot be read as CSV: {error}") from None
