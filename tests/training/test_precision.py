"""bfloat16 if the machine has it, else float32."""

import pytest
import torch

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


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_an_x86_cpu_has_bfloat16_only_with_its_instructions(avx512, amx, expected, monkeypatch):
    """oneDNN says yes of AVX-512 alone, on which bf16 is emulated."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert precision.has_bfloat16("cpu") is expected


def test_the_warning_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(precision, "has_bfloat16", lambda accelerator: False)
    precision.precision_here("bf16-mixed", "auto")
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "no bfloat16 instructions" in printed
