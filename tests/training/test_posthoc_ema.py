"""Power-function averages in training: their law, reconstruction against tracking, snapshots, exact resuming."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dit.checkpoints.native import read_checkpoint
from dit.checkpoints.posthoc import coefficients, gamma_of, inner_product, reconstruct
from dit.checkpoints.snapshots import file_name, snapshots_of, write_snapshot
from dit.training.posthoc_ema import PosthocEMA

from ..conftest import train_tiny

STEPS = 24
WORDS = [f"trainer.max_steps={STEPS}", "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=99",
         "callbacks.previews.every=null", "trainer.val_check_interval=24", "callbacks.posthoc_ema.every=2"]  # fmt: skip


def snapshot(run, step, width):
    return load_file(run / "snapshots" / file_name(step, width))


def checkpoint(run, step):
    return read_checkpoint(run / "checkpoints" / f"step_{step:07d}.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("posthoc") / "run", *WORDS)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same training with other widths tracked, and kept exactly."""
    words = ["callbacks.posthoc_ema.widths=[0.07,0.15]", "callbacks.posthoc_ema.dtype=float32"]
    return train_tiny(tmp_path_factory.mktemp("posthoc") / "other", *WORDS, *words)


@pytest.fixture(scope="module")
def path(run):
    """The raw weights after every step."""
    states = [checkpoint(run, step)["state_dict"] for step in range(1, STEPS + 1)]
    return {name: torch.stack([state[name] for state in states]).double() for name in states[0]}


@pytest.mark.parametrize("width", [0.07, 0.15])
@pytest.mark.parametrize("step", [2, 24])
def test_an_average_is_the_profile_times_the_weights(other, path, width, step):
    """Step i has the share of the profile between i - 1 and i."""
    shares = torch.from_numpy(np.diff((np.arange(step + 1) / step) ** (gamma_of(width) + 1)))
    average = snapshot(other, step, width)
    for name, tensor in average.items():
        expected = torch.tensordot(shares, path[name][:step], 1)
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-5)
    assert average.keys() == path.keys()


@pytest.mark.parametrize("width", [0.07, 0.15])
def test_a_reconstruction_is_the_tracked_average_within_the_stated_error(run, other, path, width):
    """Two averages with profiles p and q differ by at most ||p - q|| times the distance of the weights from any fixed
    point (Cauchy-Schwarz, as both profiles integrate to 1), and by the rounding of the snapshots to float16."""
    how, weights = reconstruct(run, f"posthoc_{width}", STEPS)
    direct = snapshot(other, STEPS, width)
    gamma = gamma_of(width)
    profile_error = how.error * float(np.sqrt(inner_product(STEPS, gamma, STEPS, gamma)))
    factors = np.abs(coefficients(how.snapshots, width, STEPS)[0])
    largest = {name: max(snapshot(run, *s)[name].abs().max().item() for s in how.snapshots) for name in direct}
    for name, tensor in direct.items():
        moved = (path[name] - tensor.double()).square().sum().sqrt().item()
        rounding = factors.sum() * 2**-11 * largest[name] * tensor.numel() ** 0.5
        assert (weights[name].double() - tensor).norm() <= profile_error * moved + rounding + 1e-6, name
    ours, theirs = (torch.cat([w[name].flatten() for name in sorted(w)]) for w in (weights, direct))
    tracked = torch.cat([snapshot(run, STEPS, 0.1)[name].float().flatten() for name in sorted(direct)])
    assert (ours - theirs).norm() < 0.1 * (tracked - theirs).norm()  # far nearer than the nearest tracked width
    assert (STEPS, how.step) == (24, 24)


def test_a_tracked_width_is_the_snapshot_itself(run):
    how, weights = reconstruct(run, "posthoc_0.1", STEPS)
    assert how.error < 1e-6
    for name, tensor in snapshot(run, STEPS, 0.1).items():
        torch.testing.assert_close(weights[name], tensor.float(), atol=1e-7, rtol=1e-6)


def test_snapshots_are_float16_every_second_step_and_training_is_unchanged(run, other):
    assert snapshots_of(run) == [(step, width) for step in range(2, STEPS + 1, 2) for width in (0.05, 0.1)]
    assert {tensor.dtype for tensor in snapshot(run, 2, 0.05).values()} == {torch.float16}
    ours, theirs = checkpoint(run, STEPS), checkpoint(other, STEPS)
    assert all(torch.equal(tensor, theirs["state_dict"][name]) for name, tensor in ours["state_dict"].items())
    assert list(ours["callbacks"]["PosthocEMA"]["averages"]) == ["0.05", "0.1"]


def test_resuming_is_exact_to_the_byte_and_later_snapshots_are_removed(run, tmp_path):
    again, words = tmp_path / "run", [*WORDS, "trainer.accumulate_grad_batches=2", "trainer.max_steps=6"]
    whole = train_tiny(tmp_path / "whole", *words, "callbacks.posthoc_ema.every=1")
    shutil.copytree(whole, again)
    (again / "summary.json").unlink()
    for step in (4, 5, 6):
        (again / "checkpoints" / f"step_{step:07d}.ckpt").unlink()
    later = again / "snapshots" / file_name(9, 0.1)
    later.write_bytes(b"of a run that was interrupted after step 9")
    train_tiny(again, *words, "callbacks.posthoc_ema.every=1", "resume=auto")
    assert not later.exists()
    files = {run: {f.name: f.read_bytes() for f in (run / "snapshots").iterdir()} for run in (whole, again)}
    assert len(files[whole]) == 12
    assert files[whole] == files[again]
    averages = [checkpoint(run, 6)["callbacks"]["PosthocEMA"]["averages"] for run in (whole, again)]
    for width, weights in averages[0].items():
        assert all(torch.equal(averages[1][width][name], tensor) for name, tensor in weights.items())


@pytest.mark.slow
def test_a_run_that_is_resumed_without_averages_keeps_no_snapshots_of_steps_that_are_done_again(tmp_path):
    run = train_tiny(tmp_path / "run", "callbacks.posthoc_ema.every=1")
    (run / "summary.json").unlink()
    (run / "checkpoints" / "step_0000006.ckpt").unlink()
    train_tiny(run, "resume=auto")
    assert sorted({step for step, _ in snapshots_of(run)}) == [1, 2, 3, 4]
    (run / "summary.json").unlink()
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    train_tiny(run, "resume=auto", "trainer.max_steps=1")
    assert snapshots_of(run) == []


def test_the_last_step_has_a_snapshot_and_off_writes_none(tmp_path, tiny_run):
    assert not (tiny_run / "snapshots").exists()
    run = train_tiny(tmp_path / "run", "callbacks.posthoc_ema.every=4", "callbacks.previews.every=null")
    assert sorted({step for step, _ in snapshots_of(run)}) == [4, 6]


def test_a_run_without_averages_is_not_continued_with_them(tmp_path):
    run = train_tiny(tmp_path / "run", "trainer.max_steps=2")
    with pytest.raises(ValueError, match=r"checkpoint of step 2 has no averages of width 0.05, 0.1 .* with init=RUN"):
        train_tiny(run, f"resume={run}", "callbacks.posthoc_ema.every=1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"every": 0}, "every=0 must be at least 1"),
        ({"widths": []}, r"widths=\[\] must be different"),
        ({"widths": [0.1, 0.1000000001]}, "must be different"),
        ({"widths": [0.3]}, "must lie between 0 and 0.288"),
        ({"dtype": "int8"}, "choose one of float16, bfloat16, float32"),
    ],
)
def test_other_values_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        PosthocEMA(**({"every": 1} | words))


def test_parity_with_ema_pytorch(tmp_path):
    """Its first update counts as two steps with the same weights, and its coefficients need not sum to 1."""
    posthoc = pytest.importorskip("ema_pytorch").PostHocEMA
    draw, model = torch.Generator().manual_seed(0), torch.nn.Linear(6, 5)
    theirs = posthoc(model, sigma_rels=(0.05, 0.1), update_every=1, checkpoint_every_num_steps=20,
                     checkpoint_folder=str(tmp_path / "theirs"), checkpoint_dtype=torch.float32)  # fmt: skip
    ours = PosthocEMA(every=1000)
    trainer = Trainer(tmp_path)
    ours.on_train_start(trainer, model)
    for step in range(400):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=draw) / 20)
        theirs.update()
        for _ in range(2 if step == 0 else 1):
            trainer.global_step += 1
            ours.on_train_batch_end(trainer, model)
        for width, ema in zip((0.05, 0.1), theirs.ema_models if (step + 1) % 20 == 0 else (), strict=False):
            write_snapshot(tmp_path, step + 1, width, dict(ema.ema_model.named_parameters()), torch.float32)
    for average, ema in zip(ours.averages.values(), theirs.ema_models, strict=True):
        for name, p in ema.ema_model.named_parameters():
            torch.testing.assert_close(average[name], p, atol=1e-6, rtol=1e-5)
    for width in (0.04, 0.07, 0.15, 0.2):
        _, weights = reconstruct(tmp_path, f"posthoc_{width}", 400)
        made = dict(theirs.synthesize_ema_model(sigma_rel=width, step=400).ema_model.named_parameters())
        moved = (weights["weight"] - ours.averages["0.1"]["weight"]).norm()
        assert (weights["weight"] - made["weight"]).norm() < 0.05 * moved


class Trainer:
    """What the callback reads of a trainer."""

    is_global_zero, max_steps, global_step = True, -1, 0

    def __init__(self, folder):
        self.default_root_dir = folder
