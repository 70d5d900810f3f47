"""The laws of a callback. A new one in conf/callbacks gets them without a row; those of dit have tests of their own."""

import pytest

from dit.checkpoints.native import checkpoints_of, read_checkpoint

from ..conftest import train_tiny
from ..parts import found

NEW = {key: node for key, node in found("callbacks", set()).items() if not node._target_.startswith("dit.")}


def test_the_example_is_found():
    assert "gradient_norm" in NEW


@pytest.mark.parametrize("name", NEW)
def test_a_callback_changes_no_weights_and_survives_a_resume(name, tiny_run, tmp_path):
    """Watching is not training: with the callback a run has the same weights, and so has its second half."""
    words = [f"+callbacks.{name}.{key}={value}" for key, value in NEW[name].items()]
    run = train_tiny(tmp_path / "run", *words)
    resumed = train_tiny(tmp_path / "half", f"resume={checkpoints_of(run)[-1]}", *words)
    expected = read_checkpoint(checkpoints_of(tiny_run)[0], whole=True)["state_dict"]
    for folder in (run, resumed):
        weights = read_checkpoint(checkpoints_of(folder)[0], whole=True)["state_dict"]
        assert all(weights[key].equal(value) for key, value in expected.items())
