"""What pictures cost: energy counters of machines that have them, and prices."""

import sys
from types import SimpleNamespace

import pytest
import torch

from dit import cost
from dit.cost import Cost, Meter, Price

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def zone(root, number, name, microjoules, most=1000):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "POWERCAP", tmp_path)
    return tmp_path


def test_rapl_is_the_sum_of_the_packages_and_a_counter_that_begins_again_loses_nothing(powercap):
    zone(powercap, "0", "package-0", 100)
    zone(powercap, "0:0", "core", 5)
    zone(powercap, "1", "package-1", 990)
    zone(powercap, "2", "psys", 7)
    meter, shared = Meter(CPU), Meter(CPU, processes=2)
    start, half = meter.now(), shared.now()
    for number, name, value in (("0", "package-0", 400), ("0:0", "core", 9), ("1", "package-1", 20), ("2", "psys", 99)):
        zone(powercap, number, name, value)
    assert meter.method == "rapl"
    assert meter.since(start).joules == pytest.approx((300 + 30) / 1e6)
    assert shared.since(half).joules == pytest.approx((300 + 30) / 2e6), "two processes share the packages"


def test_a_counter_that_is_lost_during_work_makes_its_energy_unknown(powercap):
    package = zone(powercap, "0", "package-0", 100)
    meter = Meter(CPU)
    start = meter.now()
    (package / "energy_uj").unlink()
    assert meter.since(start).joules is None
    zone(powercap, "0", "package-0", 300)
    assert meter.since(start).joules == pytest.approx(200e-6)


def test_energy_that_cannot_be_read_is_unknown(powercap):
    assert Meter(CPU).method == "unknown", "there are no counters"
    zone(powercap, "0", "package-0", 100)
    (powercap / "intel-rapl:0/energy_uj").unlink()
    meter = Meter(CPU)
    spent = meter.since(meter.now(), 4)
    assert spent.seconds > 0
    assert meter.described(spent) | {"seconds": 0} == {
        "network_calls": 4, "seconds": 0, "energy_joules": None, "energy_method": "unknown",
    }  # fmt: skip
    assert meter.in_words(spent, 4) == "energy unknown"


def fake_nvml(joules, fails=False):
    class NVMLError(Exception):
        pass

    def energy(handle):
        if fails or joules[0] == "lost":
            raise NVMLError
        assert handle == "GPU-1234"
        return joules[0] * 1000

    return SimpleNamespace(
        nvmlInit=lambda: None, NVMLError=NVMLError, nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )  # fmt: skip


def test_the_energy_of_a_gpu_is_that_of_its_own_counter(monkeypatch):
    joules = [5.0]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(joules))
    meter = Meter(GPU, Price(2.0, "USD"), processes=4)
    start, joules[0] = meter.now(), 7.5
    assert (meter.method, meter.since(start).joules) == ("nvml", 2.5), "a process has its own GPU"
    shared = Meter(GPU, processes=2, same_gpu=True)
    start, joules[0] = shared.now(), 8.5
    assert shared.since(start).joules == 0.5, "two processes share a GPU"
    start, joules[0] = meter.now(), "lost"
    assert (meter.since(start).joules, meter.now().joules) == (None, None), "the driver fails for a moment"
    joules[0] = 9.0
    assert meter.now().joules == 9.0
    assert meter.in_words(Cost(8, 9.0, 5.0), 2) == "energy 2.5 J a picture (nvml), 0.625 USD for 1000 pictures"
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(joules, fails=True))
    assert Meter(GPU).method == "unknown", "a GPU without a counter"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter(GPU).method == "unknown", "pynvml is not installed"


def test_costs_add_up_and_an_unknown_part_makes_the_sum_unknown():
    assert Cost(2, 1.0, 3.0) + Cost(4, 0.5, 1.0) == Cost(6, 1.5, 4.0)
    assert Cost(2, 1.0, 3.0) * 0.5 == Cost(1, 0.5, 1.5)
    assert (Cost(2, 1.0, 3.0) + Cost(0, 0.0, None)).joules is None


@pytest.mark.parametrize(("given", "fault"), [
    ((1.5, None), "cost.price_per_hour=1.5 has no currency; add one, cost.currency=EUR"),
    ((1.5, "euros"), "cost.currency=euros must be three capital letters, such as EUR"),
])  # fmt: skip
def test_a_price_has_a_currency(given, fault):
    with pytest.raises(ValueError, match=fault):
        Price(*given)
