import copy
import csv
import json

import pytest
import torch

from dit.checkpoints.native import averages_of, read_checkpoint
from dit.cli.train import train
from dit.encoders.text import WordEncoder
from dit.training.autoencoder import AutoencoderModule
from dit.training.ema import EMA
from dit.training.loggers import MetricsCsv, wandb_mode
from dit.training.optimizer import adamw, muon, warmup_and_decay
from dit.training.previews import Previews
from dit.types import CaptionedBatch

from ..conftest import composed, train_tiny


def network():
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"blocks": torch.nn.Linear(6, 6), "out": torch.nn.Linear(6, 2)})


def loss_of(net):
    x = torch.linspace(-1, 1, 48).view(8, 6)
    return net["out"](torch.tanh(net["blocks"](x))).square().mean()


OPTIMIZERS = {
    "adamw": lambda net: adamw(net.named_parameters(), lr=0.05, betas=(0.9, 0.95), weight_decay=0.01),
    "muon": lambda net: muon(
        ((n.replace("blocks", "blocks.0.mlp"), p) for n, p in net.named_parameters()),
        0.05,
        (0.9, 0.95),
        0.01,
        0.05,
    ),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestOptimizer:
    def walk(self, net, optimizer, schedule, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(net)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    def test_the_loss_falls(self, make):
        net = network()
        optimizer = make(net)
        losses = self.walk(net, optimizer, warmup_and_decay(optimizer, 40, 5, 0.5), 40)
        assert losses[-1] < 0.2 * losses[0]

    def test_state_restores_exactly(self, make):
        net = network()
        optimizer = make(net)
        schedule = warmup_and_decay(optimizer, 20, 5, 0.5)
        self.walk(net, optimizer, schedule, 7)
        saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), schedule.state_dict()))
        expected = self.walk(net, optimizer, schedule, 7)
        again = network()
        other = make(again)
        other_schedule = warmup_and_decay(other, 20, 5, 0.5)
        for part, state in zip((again, other, other_schedule), saved, strict=True):
            part.load_state_dict(state)
        assert self.walk(again, other, other_schedule, 7) == expected

    def test_every_parameter_moves(self, make):
        net = network()
        before = copy.deepcopy(net.state_dict())
        optimizer = make(net)
        self.walk(net, optimizer, warmup_and_decay(optimizer, 10, 1, 0), 2)
        assert all((before[name] != value).any() for name, value in net.state_dict().items())


def test_only_matrices_decay():
    groups = adamw(network().named_parameters(), 0.1, (0.9, 0.95), 0.3).param_groups
    assert {(p.dim() > 1, g["weight_decay"]) for g in groups for p in g["params"]} == {
        (True, 0.3),
        (False, 0.0),
    }


def test_tables_and_learned_tokens_are_neither_decayed_nor_orthogonalised():
    from dit.backbones.ddt import DDT
    from dit.backbones.pixart import PixArt

    small = {"channels": 4, "width": 16, "depth": 1, "heads": 2, "registers": 1}
    for net in (DDT(classes=3, encoder_depth=1, **small), PixArt(token_dim=8, **small)):
        named = dict(net.named_parameters())
        looked_up = [p for name, p in named.items() if "table" in name or "registers" in name]
        assert looked_up
        (decayed,) = (g for g in adamw(named.items(), 0.1, (0.9, 0.95), 0.3).param_groups if g["weight_decay"])
        assert not {id(p) for p in looked_up} & {id(p) for p in decayed["params"]}
        turned = muon(named.items(), 0.1, (0.9, 0.95), 0.0, 0.1).parts[0].param_groups[0]["params"]
        assert len(turned) > 4
        assert not {id(p) for p in looked_up} & {id(p) for p in turned}


def test_warmup_hold_and_decay():
    optimizer = torch.optim.SGD(network().parameters(), lr=2.0)
    schedule = warmup_and_decay(optimizer, steps=100, warmup=10, decay=0.5)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:51] == pytest.approx([2.0] * 42)
    assert rates[75] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.05


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="learning rate 0"):
        adamw(network().named_parameters(), 0, (0.9, 0.95), 0.0)


def test_metrics_csv_reads_as_one_run(tmp_path):
    log = MetricsCsv(tmp_path, every=2)
    for step in range(5):
        log.log_metrics({"train/loss": step / 7, "epoch": 0}, step)
    log.log_metrics({"val/loss": 0.5}, 5)
    log.write()
    again = MetricsCsv(tmp_path)
    again.resume_at(3)
    again.log_metrics({"train/loss": 9.0}, 3)
    again.finalize("success")
    rows = list(csv.DictReader(open(tmp_path / "metrics.csv")))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["train/loss"]) for row in rows] == [0 / 7, 1 / 7, 2 / 7, 9.0]


def test_wandb_is_offline_without_a_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode("auto") == "offline"
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        wandb_mode("online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode("auto") == "online"
    for forbidden in ("offline", "disabled"):  # what the environment says wins, and nothing leaves against it
        monkeypatch.setenv("WANDB_MODE", forbidden)
        assert wandb_mode("auto") == forbidden
        with pytest.raises(ValueError, match=f"WANDB_MODE={forbidden}"):
            wandb_mode("online")
    with pytest.raises(ValueError, match="'of'"):
        wandb_mode("of")


def test_ema_swaps_in_and_out_to_the_bit():
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)

    module, ema = Module(), EMA(0.9)
    ema.averages["ema_0.9"] = {n: torch.full_like(p, 7.0) for n, p in ema.trained(module).items()}
    assert not any(name.startswith("frozen") for name in ema.averages["ema_0.9"])
    before = copy.deepcopy(module.state_dict())
    with ema.applied(module):
        assert all((p == 7).all() for p in module.net.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_run_directory_keeps_its_contract(tiny_run):
    summary = json.loads((tiny_run / "summary.json").read_text())
    for key in (
        "prompt_accuracy",
        "prompt_accuracy_unseen",
        "train_seconds",
        "steps",
        "images_per_second",
        "val/loss",
    ):
        assert isinstance(summary[key], int | float), key
    assert summary["steps"] == 6
    rows = list(csv.DictReader(open(tiny_run / "metrics.csv")))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(float(row["train/loss"]) > 0 for row in rows)
    assert [row["step"] for row in rows if row["val/loss"]] == ["3", "6"]
    assert {p.name for p in (tiny_run / "samples").iterdir()} == {"step_0000003.png", "step_0000006.png"}
    assert (tiny_run / "config.yaml").is_file()
    output = json.loads((tiny_run / "environment.json").read_text())
    assert output["packages"]["torch"] == torch.__version__.split("+")[0]
    assert output["git_commit"]


def test_checkpoints_are_plain_and_small(tiny_run):
    files = sorted(p.name for p in (tiny_run / "checkpoints").iterdir())
    assert files == ["step_0000002.ckpt", "step_0000004.ckpt", "step_0000006.ckpt"]
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / files[-1])
    assert all(name.startswith("backbone.") for name in checkpoint["state_dict"])
    [averaged] = averages_of(checkpoint).values()
    assert averaged.keys() == checkpoint["state_dict"].keys()


def first_loss(run):
    return float(next(csv.DictReader(open(run / "metrics.csv")))["train/loss"])


def test_training_in_bf16_is_of_the_same_task(tiny_run, tmp_path):
    """The network starts as zero, so the first loss depends only on data and noise, which must be bit-exact."""
    run = train_tiny(tmp_path / "run", "trainer.precision=bf16-true", "trainer.max_steps=2")
    assert first_loss(run) == pytest.approx(first_loss(tiny_run), rel=1e-6)
    weights = read_checkpoint(run / "checkpoints" / "step_0000002.ckpt")["state_dict"].values()
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


@pytest.mark.parametrize("task", ["autoencoder", "clip"])
def test_the_other_tasks_train_in_bf16(task, tmp_path):
    words = [f"experiment=shapes_{task}", "debug=one_batch", "trainer.accelerator=cpu", "batch_size=4"]
    words += [f"run_dir={tmp_path}", f"cache_dir={tmp_path}", "data.module.train.count=16", "data.module.val.count=8"]
    losses = {}
    for precision in ("32-true", "bf16-true"):
        run = train(composed("train", [*words, f"run_dir={tmp_path / precision}", f"trainer.precision={precision}"]))
        losses[precision] = first_loss(run)
    assert losses["bf16-true"] == pytest.approx(losses["32-true"], rel=0.03)


def test_a_picture_meets_the_same_noise_in_any_batch():
    """The loss of a batch is the mean of its parts' losses, for any number of ranks."""
    net = {"block_out_channels": [8], "latent_channels": 2, "norm_num_groups": 4, "mid_block_add_attention": False}
    module = AutoencoderModule(net, adamw, warmup_and_decay, seed=0)
    index, images = torch.arange(4) + 7, torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)

    def loss(rows, source=0, epoch=0):
        batch = CaptionedBatch(images[rows], [""] * len(rows), index[rows], torch.full((len(rows),), epoch))
        return module.loss(batch, source).item()

    assert loss([0, 1, 2, 3]) == pytest.approx((loss([2, 0]) + loss([3, 1])) / 2, rel=1e-5)
    assert len({loss([0]), loss([0], source=1), loss([0], epoch=1)}) == 3


def test_previews_and_validation_change_no_loss(tiny_run, tmp_path):
    def losses(run):
        return [row["train/loss"] for row in csv.DictReader(open(run / "metrics.csv"))]

    quiet = train_tiny(tmp_path / "run", "callbacks.previews.every=100", "trainer.val_check_interval=6")
    assert losses(quiet) == losses(tiny_run)


@pytest.mark.slow
def test_workers_change_no_loss(tiny_run, tmp_path):
    def losses(run):
        return [(row["train/loss"], row["val/loss"]) for row in csv.DictReader(open(run / "metrics.csv"))]

    assert losses(train_tiny(tmp_path / "run", "data.module.workers=2")) == losses(tiny_run)


def test_no_text_is_encoded_to_draw_previews(tmp_path, monkeypatch):
    encode, draw, read, drawings = WordEncoder.encode, Previews.draw, [], []

    def watched(previews, *parts):
        read.clear()
        draw(previews, *parts)
        drawings.append(list(read))

    monkeypatch.setattr(WordEncoder, "encode", lambda text, prompts: read.append(prompts) or encode(text, prompts))
    monkeypatch.setattr(Previews, "draw", watched)
    train_tiny(tmp_path / "run", "guidance.scale=3")
    assert drawings == [[], []]


def test_accumulation_gives_the_same_steps(tiny_run, tmp_path):
    run = train_tiny(tmp_path / "run", "trainer.accumulate_grad_batches=2", "batch_size=8", "trainer.max_steps=2",
                     "trainer.val_check_interval=2", "callbacks.checkpoints.every=1")  # fmt: skip
    assert (run / "checkpoints" / "step_0000002.ckpt").is_file()
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
