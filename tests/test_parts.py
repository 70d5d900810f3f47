"""Parts are found by their yaml."""

import pytest

from .parts import found, full_name


@pytest.mark.parametrize(("kind", "name"), [
    ("backbone", "mixer"), ("sampler", "half_fresh"), ("guidance", "late"), ("objective", "huber"), ("metric", "redness"),
    ("data", "stripes"), ("callbacks", "gradient_norm"),
])  # fmt: skip
def test_a_part_in_a_folder_of_its_own_is_found(kind, name):
    parts = found(kind, set())
    assert parts[name]._target_.startswith("mypackage.")
    assert name not in found(kind, {parts[name]._target_})
    assert any(part._target_.startswith(("dit.", "lightning.")) for part in parts.values())


def test_a_folder_of_the_environment_is_read_too(tmp_path, monkeypatch):
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "own.yaml").write_text("own: {_target_: elsewhere.own, _partial_: true}\n")
    monkeypatch.setenv("PARTS", str(tmp_path))
    assert found("sampler", set())["own"]._target_ == "elsewhere.own"


def test_names_are_those_of_a_target():
    from functools import partial

    from dit.diffusion.sampler.ddim import ddim

    assert full_name(partial(ddim, eta=1.0)) == full_name(ddim) == "dit.diffusion.sampler.ddim.ddim"
