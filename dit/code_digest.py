"""Hashes of code, so that cached results are used only with the code that computed them."""

from __future__ import annotations

import ast
import hashlib
import inspect
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


def meaning(source: str) -> str:
    """Returns the syntax tree of a Python source as text, without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def files_of(room: str) -> list[Path]:
    """Returns the source files of a part of dit: a package, e.g. "encoders", or a file, e.g. "diffusion/noise"."""
    path = ROOT / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@cache
def code_digest(*rooms: str) -> str:
    """Returns 16 hex digits, a hash of the code of these parts of dit, named as in `files_of`, without comments and
    docstrings."""
    whole = hashlib.sha256()
    for room in sorted(rooms):
        for file in files_of(room):
            whole.update(f"{file.relative_to(ROOT)}\n{meaning(file.read_text(encoding='utf-8'))}\n".encode())
    return whole.hexdigest()[:16]


def foreign_code(*parts: Any) -> dict[str, str]:
    """Returns name -> 16 hex digits, a hash of the source file, of each part that is defined outside dit. A part is a
    function, a class, or an object, for which its class is used. One without a source file has "no source"."""
    found = {}
    for part in parts:
        while isinstance(part, partial):
            part = part.func
        defined = part if inspect.isroutine(part) or inspect.isclass(part) else type(part)
        module = str(getattr(defined, "__module__", None))
        if module.split(".")[0] == "dit":
            continue
        try:
            source = inspect.getsourcefile(defined)
        except TypeError:
            source = None
        text = None if source is None else meaning(Path(source).read_text(encoding="utf-8"))
        digest = "no source" if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]
        found[f"{module}.{getattr(defined, '__qualname__', '')}"] = digest
    return dict(sorted(found.items()))
