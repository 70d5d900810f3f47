"""What training logs of its speed: images, waiting, operations, and the time that is left."""

import csv
import json
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dit.backbones.dit import DiT
from dit.backbones.pixart import PixArt
from dit.data.latent_dataset import LatentDataset
from dit.training.flops import meta_copy, peak_of, training_flops
from dit.training.interruption import Interruption
from dit.training.progress import FIRST, Throughput, in_words, time_left
from dit.types import Condition

from ..conftest import train_tiny

IN, OUT, RANK = 32, 8, 2
X, LABEL = torch.zeros(3, 2, 4, 4), Condition(label=torch.zeros(3, dtype=torch.int64))


class OneMatrix(nn.Module):
    """A matrix, and one of low rank beside it."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Linear(IN, OUT, bias=False)
        self.down, self.up = nn.Linear(IN, RANK, bias=False), nn.Linear(RANK, OUT, bias=False)

    def forward(self, x, time, condition):
        flat = x.flatten(1)
        return self.matrix(flat) + self.up(self.down(flat))


def counted(net, x=X, condition=LABEL):
    return training_flops(meta_copy(net), x, condition)


def test_operations_of_a_sample_are_those_that_are_computed():
    forward = 2 * (IN * OUT + IN * RANK + RANK * OUT)
    weights, through = forward, 2 * RANK * OUT  # gradients of the three matrices, and of the input of `up`
    net = OneMatrix()
    assert counted(net) == forward + weights + through
    net.matrix.requires_grad_(False)  # low-rank adaptation
    assert counted(net) == forward + weights + through - 2 * IN * OUT
    net.requires_grad_(False)
    assert counted(net) == forward


def test_dit_xl_2_has_the_multiply_adds_of_its_paper():
    with torch.device("meta"):
        net = DiT(4, 1000, width=1152, depth=28, heads=16)
    flops = counted(net, torch.empty(1, 4, 32, 32, device="meta"), LABEL)
    assert flops / 3 / 2 == pytest.approx(118.6e9, rel=0.01)  # the backward pass has twice those of the forward pass


def test_a_compiled_network_is_counted_without_compiling_it_and_its_weights_do_not_change():
    tokens = torch.zeros(3, 5, 8)
    text = Condition(tokens=tokens, mask=torch.ones(3, 5, dtype=torch.bool))
    net = PixArt(2, 8, width=32, depth=1, heads=2)
    plain = counted(net, X, text)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.compile(backend=lambda graph, inputs: pytest.fail("compiled"))
    assert counted(net, X, text) == plain > 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_cpu_has_no_known_peak():
    assert peak_of(torch.device("cpu"), "bf16-mixed") is None


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("Some GPU", None)]
)
def test_the_peak_of_a_gpu_is_known_by_its_name_in_half_precision(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_of(torch.device("cuda"), "bf16-mixed") == peak
    assert peak_of(torch.device("cuda"), "32-true") is None


WORDS = ["trainer.max_steps=64", "callbacks.throughput.every=10", "trainer.val_check_interval=64",
         "callbacks.previews.every=null", "callbacks.checkpoints.every=64", "closing_prompts=1"]  # fmt: skip


def rows(run, column):
    """The values of a column, each once: a row repeats those that were not measured again."""
    return list(dict.fromkeys(float(row[column]) for row in csv.DictReader(open(run / "metrics.csv")) if row[column]))


def test_the_learning_rates_are_logged_without_any_callback(tmp_path):
    run = train_tiny(tmp_path / "run", "optimizer=muon", "callbacks.throughput=null", "callbacks.bar=null",
                     "trainer.max_steps=4", "lr_schedule.warmup=4", "lr_schedule.decay=0.0", "optimizer.lr=0.004")  # fmt: skip
    assert rows(run, "train/lr") == pytest.approx([0.001, 0.002, 0.003, 0.004])
    assert rows(run, "train/muon_lr") == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def test_rates_waiting_learning_rate_and_the_time_that_is_left(tmp_path, monkeypatch, capsys):
    real = LatentDataset.__getitem__

    def slow(data, visits):
        time.sleep(0.02)
        return real(data, visits)

    monkeypatch.setattr(LatentDataset, "__getitem__", slow)
    monkeypatch.setattr("dit.data.module.Prefetched", lambda loader: loader)
    run = train_tiny(tmp_path / "run", *WORDS, "callbacks.throughput.peak_tflops=0.5", "lr_schedule.warmup=4",
                     "optimizer.lr=0.004", "lr_schedule.decay=0.0")  # fmt: skip
    waits = rows(run, "train/data_seconds_per_step")
    assert len(waits) == 6
    assert all(0.02 <= wait < 0.2 for wait in waits)
    summary = json.loads((run / "summary.json").read_text())
    assert 64 * 0.02 <= summary["data_seconds"] < summary["train_seconds"]
    tflops, mfu, rate = (rows(run, f"train/{name}") for name in ("model_tflops", "mfu", "images_per_second"))
    assert mfu == pytest.approx([value / 0.5 for value in tflops])
    assert len({round(value * 1e12 / images) for value, images in zip(tflops, rate, strict=True)}) == 1  # per image
    assert rows(run, "train/lr") == pytest.approx([0.001, 0.002, 0.003, 0.004])
    [(left, each)] = re.findall(r"about \d+ s left: (\d+) steps at ([\d.]+) s, plus", capsys.readouterr().err)
    assert 34 <= int(left) <= 64
    assert float(each) >= 0.02


@pytest.mark.parametrize(("seconds", "words"), [
    (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (3 * 86400, "3 days"),
])  # fmt: skip
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


def test_the_time_that_is_left_ends_at_max_time():
    pace = "1,200 steps at 0.15 s, plus validation, previews and scores"
    assert time_left(1200, 0.15, None) == time_left(1200, 0.15, 181.0) == f"about 3 min left: {pace}"
    assert time_left(1200, 0.15, 60.0) == f"about 60 s left until trainer.max_time, enough for about 400 of {pace}"


def test_slow_steps_are_forecast_after_seconds_and_not_after_thirty(monkeypatch, capsys):
    """Steps of 4 s, but for the first, which takes a minute: the third after it ends 12 s after the measuring begins."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    callback = Throughput()
    trainer: Any = SimpleNamespace(
        global_step=0, max_steps=100, world_size=2, is_global_zero=True, log_every_n_steps=10**9, precision="32-true",
        strategy=SimpleNamespace(root_device=torch.device("cpu")), callbacks=[Interruption()],
    )  # fmt: skip
    module: Any = nn.Module()
    batch: Any = [SimpleNamespace(index=range(8))]
    callback.on_train_start(trainer, module)
    said = []
    for step in range(1, 41):
        callback.on_train_batch_start(trainer, module, batch, step)
        now[0] += 60 if step == 1 else 4
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module)
        if err := capsys.readouterr().err:
            said.append((step, err.strip()))
    assert callback.images == 40 * 8 * 2  # of both ranks
    assert said == [(FIRST + 3, "about 6 min left: 94 steps at 4 s, plus validation, previews and scores")]


def test_without_a_peak_there_is_no_mfu_and_with_a_profiler_no_waiting(tmp_path):
    run = train_tiny(tmp_path / "run", *WORDS, "+trainer.profiler=simple", "trainer.max_steps=10")
    columns = next(csv.DictReader(open(run / "metrics.csv"))).keys()
    assert "train/model_tflops" in columns
    assert not {"train/mfu", "train/data_seconds_per_step"} & columns
    assert "data_seconds" not in json.loads((run / "summary.json").read_text())
