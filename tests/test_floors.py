"""The house: a file imports only from lower floors, and packages on one floor do not import each other."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {
        "annotations",
        "config",
        "cost",
        "config_generation",
        "config_check",
        "places",
        "types",
        "versions",
        "files",
        "errors",
        "code_digest",
        "components",
        "devices",
        "distributed",
        "environment",
        "plain_values",
        "precision",
        "hub",
        "picture_files",
        "sample_grid",
        "tensors",
        "trust",
        "diffusion",
        "layers",
        "assets",
    },
    {"adapters", "backbones", "encoders", "data", "metrics", "pipeline"},
    {"build", "checkpoints"},
    {"scoring", "runs"},
    {"training", "evaluation", "generation"},
    {"cli"},
]
OPEN_TO_ALL = {"types"}
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((ROOT / "dit").rglob("*.py"))


def picture(file: str) -> dict[str, int]:
    """The floor of each room by the picture in a document: a line that begins with a digit begins a floor."""
    text = (ROOT / file).read_text()
    [block] = re.findall(r"```\n([^`]*^5 +cli[^`]*)```", text, re.MULTILINE)
    found, floor = {}, None
    for line in block.splitlines():
        if match := re.match(r"([0-5]) ", line):
            floor = int(match[1])
        if floor is not None and file == "README.md" and (room := re.match(r"[0-5 ] ([a-z_]+)(/|\.py) +\S", line)):
            found[room[1]] = floor
        elif floor is not None and file != "README.md":
            found |= dict.fromkeys(re.findall(r"[a-z_]+", line), floor)
    return found


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_the_pictures_of_the_house_are_the_floors(file):
    assert picture(file) == FLOOR_OF


def test_every_room_is_there():
    there = {path.name.removesuffix(".py") for path in (ROOT / "dit").iterdir() if path.name[0] not in "._"}
    assert FLOOR_OF.keys() == there


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "dit").parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module or ""] if node.module != "dit" else [f"dit.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("dit.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", [f for f in FILES if f.parent.name != "dit" or f.name != "__init__.py"], ids=str)
def test_imports_only_from_lower_floors(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{path}: {room} has no floor; put it into FLOORS"
    for other in imported_rooms(path) - {room} - OPEN_TO_ALL:
        assert FLOOR_OF[other] < FLOOR_OF[room] or FLOOR_OF[room] == 0, (
            f"{path} on floor {FLOOR_OF[room]} imports {other}"
        )


def test_init_files_are_empty_or_one_docstring():
    for path in (f for f in FILES if f.name == "__init__.py" and f.parent.name != "dit"):
        assert len(ast.parse(path.read_text()).body) <= 1, path


def test_the_core_needs_only_torch_and_numpy():
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in (ROOT / "dit/diffusion").rglob("*.py")]
    code = f"""
import sys, torch, numpy
before = {{name.split(".")[0] for name in sys.modules}}
import {", ".join(m for m in modules if not m.endswith("__init__"))}
print(sorted({{name.split(".")[0] for name in sys.modules}} - before - {{"dit"}} - set(sys.stdlib_module_names)))
"""
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
