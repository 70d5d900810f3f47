"""Finds the parts that conf/ and the page docs/extending.md name, so that the laws of their kind test them without a row
of their own. Parts of your own package: PARTS=myconf PYTHONPATH=. pytest tests/backbones tests/diffusion ..."""

import atexit
import os
import re
import sys
import tempfile
from functools import cache
from pathlib import Path

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from .conftest import CONF, ROOT

PAGE = ROOT / "docs" / "extending.md"


def files_of(page: Path) -> dict[str, str]:
    """The files that a page shows, each a block whose first line is its path."""
    return dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", page.read_text(), re.DOTALL))


def write_files(page: Path, folder: Path) -> Path:
    for name, text in files_of(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@cache
def example_conf() -> Path:
    """The config folder of the page's parts, whose package can be imported from now on."""
    place = tempfile.TemporaryDirectory(prefix="dit_parts_")
    atexit.register(place.cleanup)
    sys.path.append(place.name)
    return write_files(PAGE, Path(place.name)) / "myconf"


def folders() -> list[Path]:
    return [CONF, example_conf(), *map(Path, filter(None, [os.environ.get("PARTS")]))]


def read(kind: str, name: str) -> DictConfig:
    """A yaml of a kind, with those of its `defaults` that are of the same kind."""
    file = next(file for folder in folders() if (file := folder / kind / f"{name}.yaml").is_file())
    own = OmegaConf.load(file)
    above = [part for part in own.pop("defaults", []) if isinstance(part, str) and part != "_self_"]
    return OmegaConf.merge(*(read(kind, part) for part in above), own)


def found(kind: str, tested: set[str]) -> dict[str, DictConfig]:
    """The parts of a kind that no row tests, by name: nodes with a _target_ that is not in `tested` (full names). Of a
    yaml that names several parts (conf/sampler, conf/metric), each; of one of data, the training split's node."""
    parts = {}
    for name in sorted({file.stem for folder in folders() for file in folder.glob(f"{kind}/*.yaml")}):
        node = read(kind, name)
        if kind == "data":
            node = OmegaConf.create({"data": node, "batch_size": 8, "seed": 0, "cache_dir": "cache"}).data.module
            nodes = {name: node.train} if "train" in node else {}
        else:
            nodes = {name: node} if "_target_" in node else {key: part for key, part in node.items() if part}
        parts |= {key: part for key, part in nodes.items() if "_target_" in part and part._target_ not in tested}
    return parts


def full_name(part) -> str:
    """The _target_ of a function, a class or a partial."""
    part = getattr(part, "func", part)
    part = getattr(part, "func", part)
    part = part if hasattr(part, "__qualname__") else type(part)
    return f"{part.__module__}.{part.__qualname__}"


def target(node: DictConfig):
    return get_object(node._target_)
