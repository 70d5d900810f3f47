"""FSDP2 and HSDP on CPU processes over gloo, against one process: losses, weights, averages, samples, checkpoints."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh

from dit.checkpoints.native import averages_of, checkpoints_of, read_checkpoint
from dit.checkpoints.sharded import REST
from dit.cli.export import export
from dit.runs import load
from dit.training.optimizer import Muon, muon
from dit.training.parallel import blocks_of, change_blocks, gathered, placed_like, shard, whole

from ..backbones.test_backbones import BACKBONES, OWN, inputs
from ..conftest import TINY, command, composed, only_line_of, train_tiny

# 17 held-out pictures and 9 scored ones: ranks have different numbers of batches and of network calls.
WORDS = ["data.module.val_limit=17", "callbacks.scores.every=2", "callbacks.scores.n=9", "callbacks.scores.batch_size=4",
         "callbacks.scores.references=32", "callbacks.ema.decay=[0.9,0.3]", "callbacks.checkpoints.keep=9",
         "callbacks.posthoc_ema.every=1", "callbacks.posthoc_ema.dtype=float32"]  # fmt: skip
MUON = [
    "optimizer=muon",
    "trainer.accumulate_grad_batches=2",
    "callbacks.ema.decay=[0.9,0.3]",
    "data.module.val_limit=17",
]
LENGTH = [
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
]


def train(run: Path, *words: str) -> Path:
    output = command("train.py", *TINY, f"run_dir={run}", f"cache_dir={run.parent / 'cache'}", *words, *LENGTH)
    assert output.returncode == 0, output.stderr
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def one(folder):
    return train_tiny(folder / "one", *WORDS)


@pytest.fixture(scope="module")
def two(folder):
    return train(folder / "two", "trainer=fsdp", *WORDS)


def differences(ours: Path, theirs: Path) -> dict[str, float]:
    """Returns the greatest difference of weights, of averages and of optimizer states of the last checkpoints."""
    a, b = (read_checkpoint(checkpoints_of(run)[0]) for run in (ours, theirs))
    assert a["global_step"] == b["global_step"] == 6
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert list(averages_of(a)) == list(averages_of(b)) == ["ema_0.9", "ema_0.3"]
    trees = {
        "weights": [c["state_dict"] for c in (a, b)],
        "optimizer": [states(c["optimizer_states"][0]) for c in (a, b)],
    }
    trees |= {name: [averages_of(c)[name] for c in (a, b)] for name in averages_of(a)}
    return {kind: max(float((x[k] - y[k]).abs().max()) for k in x) for kind, (x, y) in trees.items()}


def assert_same_snapshots(ours: Path, theirs: Path) -> None:
    files = [{path.name: path.read_bytes() for path in (run / "snapshots").iterdir()} for run in (ours, theirs)]
    assert files[0] == files[1]


def states(optimizer):
    parts = optimizer.get("parts", [optimizer])
    return {(i, p, k): v for i, part in enumerate(parts) for p, held in part["state"].items() for k, v in held.items()}


def metrics(run: Path) -> list[dict[str, float]]:
    rows = csv.DictReader(open(run / "metrics.csv"))
    return [{name: float(value) for name, value in row.items() if value != ""} for row in rows]


def assert_same_course(ours: Path, theirs: Path, rounding: float) -> None:
    """Weights, averages, optimizer states, losses and scores agree within a rounding, and previews to the bit."""
    found = differences(ours, theirs)
    assert max(found.values()) < rounding, found
    assert all("train/lr" in row for row in metrics(ours))
    for row, expected in zip(metrics(ours), metrics(theirs), strict=True):
        assert row == {name: pytest.approx(value, rel=max(rounding, 1e-5)) for name, value in expected.items()}
    files = [sorted(path.name for path in (run / "snapshots").glob("*")) for run in (ours, theirs)]
    assert files[0] == files[1]
    for file in files[0]:
        a, b = (load_file(run / "snapshots" / file) for run in (ours, theirs))
        assert max(float((a[key] - b[key]).abs().max()) for key in b) < rounding, file
    for step in (3, 6):
        assert (ours / "samples" / f"step_{step:07d}.png").read_bytes() == (
            theirs / "samples" / f"step_{step:07d}.png"
        ).read_bytes()


@pytest.mark.slow
def test_fsdp_trains_as_one_process_does(one, two):
    assert_same_course(two, one, 1e-6)
    assert len(list((two / "snapshots").iterdir())) == 12
    summary = json.loads((two / "summary.json").read_text())
    assert summary["images_per_second"] * summary["train_seconds"] == pytest.approx(6 * 8)  # of both ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["trainer=ddp"], ["trainer=ddp", "trainer.devices=4"], ["trainer=fsdp", "trainer.devices=4"], ["trainer=hsdp"]],
    ids=" ".join,
)
def test_other_strategies_and_four_processes_train_as_one_process_does(one, folder, words):
    assert_same_course(train(folder / "_".join(words).replace("=", "_"), *words, *WORDS), one, 1e-6)


@pytest.mark.slow
def test_hsdp_trains_with_muon_and_recomputed_activations_as_one_process_does(folder):
    """Muon's bfloat16 products turn a difference in a gradient's last bit into one of their own last bit."""
    one = train_tiny(folder / "one_muon", *MUON)
    four = train(folder / "four", "trainer=hsdp", *MUON, "activation_checkpointing=true")
    assert_same_course(four, one, 5e-4)


def assert_widths_are_scored(run: Path, folder: Path) -> None:
    """Averages of a run of two processes that was resumed: read back, and swept with their estimated errors."""
    state = read_checkpoint(checkpoints_of(run)[0])["callbacks"]["PosthocEMA"]["averages"]["0.1"]
    average = load(run, "posthoc_0.1", "cpu")
    for name, tensor in average.pipeline.backbone.state_dict().items():
        torch.testing.assert_close(tensor, state[f"backbone.{name}"], atol=1e-6, rtol=1e-5)
    words = ["n=4", "references=32", "steps=[1]", "guidance.scale=[1]", "shown=2", "wandb.mode=disabled",
             "sampler=euler", "metric=prompt_accuracy", "confirm=false", f"out={folder / 'scores'}", "device=cpu"]  # fmt: skip
    places = [f"ckpt={run}", f"cache_dir={run.parent / 'cache'}"]
    output = command("evaluate.py", *places, *words, "weights=[posthoc_0.05,posthoc_0.10,posthoc_0.07]")
    assert output.returncode == 0, output.stderr
    assert "posthoc_0.07: width 0.07 at step 6, from 12 snapshots, with an estimated relative error of 2.1 %" in (
        output.stderr
    )
    [results] = (folder / "scores").glob("**/results.json")
    made = [card["subject"]["posthoc"] for card in json.loads(results.read_text())["cards"]]
    assert [(how["width"], len(how["snapshots"])) for how in made] == [(0.05, 12), (0.1, 12), (0.07, 12)]


FAULTY_RANK = """
import runpy, sys
from dataclasses import replace
from dit.training.diffusion import DiffusionModule

def loss(module, *args, real=DiffusionModule.loss):
    found = real(module, *args)
    return replace(found, losses=found.losses * (float("nan") if module.global_step == 3 else 1))

DiffusionModule.loss = loss
sys.argv = {words}
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "undone"), [("skip", [(4, 4)]), ("roll_back", [(3, 4)])])
def test_a_fault_on_one_rank_of_sharded_training_is_handled_alike_by_all(tmp_path, policy, undone):
    """Only this process, rank 0, has losses that are not finite in step 4; the other is started by Lightning. Step 4 is
    judged before its checkpoint is written, and the last checkpoint before is that of step 2."""
    words = ["trainer=fsdp", f"callbacks.guard.policy={policy}", "callbacks.checkpoints.keep=9", *LENGTH]
    places = [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    output = command("-c", FAULTY_RANK.format(words=["train.py", *TINY, *places, *words]))
    assert output.returncode == 0, output.stderr
    saved = {step: read_checkpoint(tmp_path / "run/checkpoints" / f"step_{step:07d}.ckpt") for step in (2, 4, 6)}
    assert saved[6]["callbacks"]["StabilityGuard"]["undone"] == undone
    assert all(weight.isfinite().all() for weight in saved[6]["state_dict"].values())
    same = [torch.equal(w, saved[4]["state_dict"][name]) for name, w in saved[2]["state_dict"].items()]
    assert all(same) == (policy == "roll_back")
    [spike] = [json.loads(file.read_text()) for file in (tmp_path / "run" / "spikes").iterdir()]
    assert (spike["step"], spike["action"]) == (4, policy)
    assert [(row["rank"], row["loss"] is None) for row in spike["samples"]] == [(0, True)] * 4 + [(1, False)] * 4


@pytest.mark.slow
def test_bfloat16_with_recomputed_activations_and_accumulation_is_near_to_one_process(folder):
    words = ["trainer.precision=bf16-mixed", "activation_checkpointing=true", "trainer.accumulate_grad_batches=2"]
    one = train_tiny(folder / "one_bf16", *words)
    two = train(folder / "two_bf16", "trainer=fsdp", *words)
    for row, expected in zip(metrics(two), metrics(one), strict=True):
        assert row.get("train/loss") == pytest.approx(expected.get("train/loss"), rel=0.02)


def unfinished(run: Path, copy: Path) -> Path:
    """Returns a copy of a run that was killed after the checkpoint of step 4."""
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    last = checkpoints_of(copy)[0]
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    return copy


@pytest.mark.slow
def test_resuming_is_exact_with_as_many_processes_and_equal_up_to_rounding_with_others(one, two, tmp_path):
    again = train(unfinished(two, tmp_path / "again"), "trainer=fsdp", *WORDS, "resume=auto")
    assert max(differences(again, two).values()) == 0
    assert_same_snapshots(again, two)
    assert_widths_are_scored(again, tmp_path)
    for name in ("train/loss", "val/loss", "train/gradient_norm", "train/update_norm"):
        assert [row.get(name) for row in metrics(again)] == [row.get(name) for row in metrics(two)]
    alone = train_tiny(unfinished(two, tmp_path / "alone"), *WORDS, "resume=auto")
    assert checkpoints_of(alone)[0].is_file()
    assert max(differences(alone, one).values()) < 1e-6
    wider = train(unfinished(one, tmp_path / "wider"), "trainer=fsdp", *WORDS, "resume=auto")
    assert checkpoints_of(wider)[0].is_dir()
    assert max(differences(wider, one).values()) < 1e-6


@pytest.mark.slow
def test_every_command_reads_a_sharded_checkpoint(two, tmp_path):
    newest = checkpoints_of(two)[0]
    assert [file.name for file in (two / "checkpoints").iterdir() if file.name.startswith(".")] == []
    assert sorted(newest.iterdir())[0].name == REST
    samples = [load(where, "ema_0.3", "cpu").sample(["a large red star"], steps=2).images for where in (two, newest)]
    assert torch.equal(*samples)
    words = [f"ckpt={newest}", "prompts=[a large red star]", f"out={tmp_path / 'made'}", "device=cpu"]
    assert command("-m", "dit.cli.generate", *words).returncode == 0
    assert (tmp_path / "made_grid.png").is_file()
    out = export(composed("export", [f"ckpt={two}", f"out={tmp_path / 'out'}", "format=safetensors", "weights=raw"]))
    weights = {f"backbone.{name}": tensor for name, tensor in load_file(out / "model.safetensors").items()}
    expected = read_checkpoint(newest)["state_dict"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_a_broken_sharded_checkpoint_is_refused_and_the_one_before_is_used(two, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(two, copy)
    newest, before = checkpoints_of(copy)[:2]
    shards = sorted(newest.glob("*.safetensors"))
    shards[1].write_bytes(shards[1].read_bytes()[:-40])
    for with_tensors in (True, False):
        with pytest.raises(ValueError, match=r"step_0000006\.ckpt is broken"):
            read_checkpoint(newest, with_tensors)
    shards[1].unlink()
    with pytest.raises(ValueError, match=r"step_0000006\.ckpt is broken: it has \d+ of \d+ rows of "):
        read_checkpoint(newest)
    assert load(copy, device="cpu").path == before
    assert "falling back to the one before" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_leaves_no_part_of_a_checkpoint(two, tmp_path):
    """Files of more than 250,000 bytes cannot be written, which are those of the shards."""
    words = [
        "train.py",
        *TINY,
        f"run_dir={tmp_path / 'run'}",
        f"cache_dir={two.parent / 'cache'}",
        "trainer=fsdp",
        *LENGTH,
    ]
    limited = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000)); sys.argv = {words}"
    output = command("-c", f"{limited}; runpy.run_path('train.py', run_name='__main__')")
    assert "step_0000001.ckpt: [Errno 27] File too large" in only_line_of(output)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer=fsdp", "trainer.devices=1"], "trainer.devices=1 gives one: set trainer.devices to 2 or more"),
        (["trainer=hsdp", "trainer.devices=3"], "replicas=2 does not divide 3 processes into groups of at least 2"),
        (["trainer=hsdp", "trainer.devices=2"], "replicas=2 does not divide 2 processes into groups of at least 2"),
        (["trainer=hsdp", "trainer.strategy.replicas=0"], "replicas=0"),
        (["trainer=fsdp", "compile=true"], "say compile=blocks"),
    ],
    ids=["one_process", "uneven", "one_each", "zero", "compiled whole"],
)  # fmt: skip
def test_what_cannot_be_sharded_is_refused_in_one_line(words, message, tmp_path):
    output = command(
        "train.py", *TINY, f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path}", *words, "trainer.accelerator=cpu"
    )
    assert message in only_line_of(output)


@pytest.mark.slow
def test_a_sweep_of_sharded_runs_is_one_sweep(tmp_path):
    words = [f"runs_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "seed=0,1", *LENGTH, "trainer.max_steps=2"]
    output = command("train.py", "-m", *TINY, "trainer=fsdp", *words)
    assert output.returncode == 0, output.stderr
    [sweep] = (tmp_path / "shapes_pixels").iterdir()
    assert sorted(p.parent.name for p in sweep.glob("*/summary.json")) == ["0", "1"]
    assert metrics(sweep / "0") != metrics(sweep / "1")


def test_muon_is_torchs():
    """The step that gathers sharded matrices is torch's own for whole ones."""
    torch.manual_seed(0)
    start = [torch.randn(6, 4), torch.randn(4, 9)]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = [
        make(weights, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for make, weights in ((Muon, ours), (torch.optim.Muon, theirs))
    ]
    for _ in range(4):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            for p, matrix in zip(weights, start, strict=True):
                p.grad = (p.detach() * matrix).sin()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], start[0])


def gradients(network):
    """Returns the gradients of a loss by parameter, and the loss."""
    x, time, condition = inputs()
    loss = network(x, time, condition).square().mean()
    loss.backward()
    return {name: whole(p.grad) for name, p in network.named_parameters() if p.grad is not None}, loss.item()


def built(make):
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_recomputed_activations_change_neither_names_nor_gradients(make):
    plain, changed = built(make), built(make)
    change_blocks(changed, recompute=True, compile=False)
    kept: dict[bool, int] = {}
    for again, network in ((False, plain), (True, changed)):
        saved: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        )
        with hooks:
            network(*inputs())
        kept[again] = sum(saved)
    assert kept[True] < kept[False]
    (ours, loss), (theirs, expected) = gradients(changed), gradients(plain)
    assert loss == expected
    assert list(changed.state_dict()) == list(plain.state_dict())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(gradient, theirs[name]) for name, gradient in ours.items())


@pytest.mark.slow
def test_blocks_are_compiled_as_one_graph_each_with_the_same_gradients():
    plain, changed = built(BACKBONES["dit"]), built(BACKBONES["dit"])
    change_blocks(changed, recompute=True, compile=True)
    ours, theirs = gradients(changed)[0], gradients(plain)[0]
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)


def join(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)


def shard_every_backbone(rank: int, folder: str) -> None:
    join(rank, folder)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    for name, make in OWN.items():
        expected, loss = gradients(built(make))
        network = built(make)
        assert len(blocks_of(network)) >= 2, name
        shard(network, mesh)
        with gathered(network), torch.inference_mode():
            for _ in range(rank):  # no rank waits for another
                network(*inputs())
        ours, own = gradients(network)
        assert own == pytest.approx(loss, rel=1e-6)
        assert ours.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(
                ours[key], gradient, atol=1e-6, rtol=1e-4, msg=lambda m, at=(name, key): f"{at}: {m}"
            )
        mixed, plain = built(make), built(make)
        shard(mixed, mesh, mixed=True)
        with torch.autocast("cpu", torch.bfloat16):
            (ours, own), (expected, loss) = gradients(mixed), gradients(plain)
        assert own == pytest.approx(loss, rel=0.02), name
        assert {gradient.dtype for gradient in ours.values()} == {torch.float32}
        assert all(gradient.isfinite().all() for gradient in ours.values())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_every_backbone_has_the_gradients_of_one_process_when_it_is_sharded(tmp_path):
    torch.multiprocessing.spawn(shard_every_backbone, (str(tmp_path),), nprocs=2)


def muon_of_shards(rank: int, folder: str) -> None:
    join(rank, folder)
    plain, sharded = (built(BACKBONES["dit"]) for _ in range(2))
    shard(sharded, init_device_mesh("cpu", (2,)))
    optimizers = [muon(net.named_parameters(), 0.1, (0.9, 0.95), 0.1, 0.1) for net in (plain, sharded)]
    for step in range(3):
        for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = placed_like(q, p.grad)
        for optimizer in optimizers:
            optimizer.step()
    for (name, p), q in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert torch.equal(whole(q), p), name
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_muon_of_shards_is_that_of_whole_matrices_to_the_bit(tmp_path):
    torch.multiprocessing.spawn(muon_of_shards, (str(tmp_path),), nprocs=2)
