"""bfloat16 if the machine has it, else float32."""

import pytest

from dit.training import precision


@pytest.mark.parametrize(
    ("requested", "here", "taken"),
    [
        ("bf16-mixed", True, "bf16-mixed"),
        ("bf16-mixed", False, "32-true"),
        ("bf16-true", False, "bf16-true"),
        ("32-true", False, "32-true"),
        ("16-mixed", False, "16-mixed"),
    ],
)
def test_bfloat16_is_used_if_the_machine_has_it(requested, here, taken, monkeypatch, capsys):
    monkeypatch.setattr(precision, "has_bfloat16", lambda accelerator: here)
    assert precision.precision_here(requested, "cpu") == taken
    assert ("warning" in capsys.readouterr().err) == (requested != taken)
