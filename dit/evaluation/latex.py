"""Tables of results for papers: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def escaped(text: str) -> str:
    """Returns a text for LaTeX."""
    return "".join(SIGNS.get(sign, sign) for sign in text)


def value(cell: Mapping[str, Any], number: bool) -> str:
    """Returns a cell of `dit.evaluation.tables.table`: a number with the distances to the ends of its interval; bold
    for the best, starred for what is not significantly different from it."""
    if not number or not cell["text"]:
        return escaped(cell["text"])
    text = cell["text"]
    if len(cell["sides"]) == 2:
        text += "_{-" + cell["sides"][0] + "}^{+" + cell["sides"][1] + "}"
    bold = r"\mathbf{" + text + "}" if cell["mark"] == "★" else text
    return f"${bold}$" + ("*" if cell["mark"] == "≈" else "")


def table_latex(table: Mapping[str, Any], note: str) -> str:
    """Returns a table of `dit.evaluation.tables.table` as a tabular of the booktabs package, `note` as a comment."""
    columns, labels = table["columns"], table["labels"]

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    rows = [line([value(cell, i >= labels) for i, cell in enumerate(row)]) for row in table["rows"]]
    floors = [
        line([escaped(floor["name"]), *[""] * (labels - 1), *(value(cell, True) for cell in floor["cells"])])
        for floor in table["floors"]
    ]
    lines = [
        *(f"% {sentence}" for sentence in note.splitlines()),
        r"\begin{tabular}{" + "l" * labels + "r" * (len(columns) - labels) + "}",
        r"\toprule",
        line([escaped(column.title) for column in columns]),
        r"\midrule",
        *rows,
        *([r"\midrule", *floors] if floors else []),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"
