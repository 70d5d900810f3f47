"""A thousand damaged configs and files, and some command lines: each works or ends in one line, in bounded time."""

import contextlib
import copy
import io
import json
import random
import shutil
import signal

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dit.build import build_pipeline
from dit.cli.front import message_of
from dit.cli.train import build_callbacks
from dit.config_check import check_config
from dit.evaluation.recipes import recipes_of
from dit.runs import load_run
from dit.training.interruption import Interruption
from dit.training.trainer import trainer_options

from .conftest import TINY, command, composed
from .mutations import damaged, mutated

pytestmark = pytest.mark.slow


class Hang(BaseException):
    """Nothing catches it on its way."""


def ends_well(act, what, seconds=20):
    """Runs `act`: it may work, or raise what a command answers in one line. Returns whether it worked."""

    def hang(*_):
        raise Hang(what)

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            act()
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise AssertionError(f"{what} ends in a traceback: {error!r}") from error
        assert message
        assert "\n" not in message
        return False
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return True


def plain(name, words):
    return OmegaConf.to_container(composed(name, words), resolve=True)


def build_training(config):
    check_config("train", config, trusted=True)
    cfg = OmegaConf.create(config)
    pipeline = build_pipeline(cfg, device="meta")
    pipeline.check(instantiate(cfg.recipe))
    instantiate(cfg.objective, path=pipeline.path, prediction=pipeline.prediction)
    optimizer = instantiate(cfg.optimizer)(list(pipeline.backbone.named_parameters()))
    instantiate(cfg.lr_schedule)(optimizer, steps=10)
    data = instantiate(cfg.data.module)
    options = trainer_options(config["trainer"], min(len(data.train), data.train_limit or len(data.train)), 8)
    callbacks = build_callbacks(cfg, {}, Interruption(config["trainer"].get("max_time")))
    instantiate(options, logger=False, callbacks=callbacks)


def build_sampling(command_name, config):
    check_config(command_name, config, trusted=True)
    cfg = OmegaConf.create(config)
    if command_name == "generate":
        instantiate(cfg.recipe)
    elif command_name == "evaluate":
        list(recipes_of(cfg, OmegaConf.create({"grid": {"_target_": "dit.diffusion.time.UniformTime"}})))


def test_damaged_configs():
    draw, worked = random.Random(0), 0
    train = plain("train", [*TINY, "metric=prompt_accuracy"])
    train["text_encoder"]["words"] = ["a", "red", "star"]
    others = {name: plain(name, ["ckpt=x"]) for name in ("evaluate", "generate", "export")}
    others["generate"]["prompts"], others["export"]["out"] = ["a red star"], "x"
    for number in range(600):
        name = draw.choice(["train", "train", *others])
        config, what = mutated(train if name == "train" else others[name], draw)
        act = (lambda c=config: build_training(c)) if name == "train" else lambda c=config, n=name: build_sampling(n, c)
        worked += ends_well(act, f"{name} {number}: {what}")
    assert 20 < worked < 400  # neither all nor none, or nothing is tried


def test_damaged_checkpoints(tiny_run, tmp_path):
    from dit.checkpoints.native import checkpoints_of

    draw, file, worked = random.Random(1), tmp_path / "damaged.ckpt", 0
    whole = checkpoints_of(tiny_run)[0]
    content = torch.load(whole, weights_only=True)
    plain_parts = {key: content[key] for key in ("dit_config", "global_step")}
    for number in range(120):
        if number % 4 == 0:
            file.write_bytes(damaged(whole.read_bytes(), draw))
            what = "bytes"
        else:
            changed, what = mutated(copy.deepcopy(plain_parts), draw)
            parts = {**content, **changed} if "dit_config" in changed else {"state_dict": content["state_dict"]}
            if number % 4 == 1:
                key = draw.choice(list(content))
                parts[key], what = draw.choice([None, 3, "x", [], {}, {1: 2}, {"a": torch.zeros(2)}]), f"{key} changed"
            torch.save(parts, file)
        worked += ends_well(lambda: load_run(file, "ema", "cpu"), f"checkpoint {number}: {what}")
    assert worked < 90


@pytest.mark.parametrize(("name", "value"), [
    ("width", 2**40), ("width", 60_000), ("depth", 10**9), ("depth", 900), ("patch", 2**15), ("heads", 0),
    ("mlp_ratio", 1e30), ("registers", 10**9), ("base", 10**18), ("depth", 2), ("qk_norm", 3),
])  # fmt: skip
def test_a_network_that_the_checkpoint_has_no_weights_for_takes_no_memory(name, value, tiny_run, tmp_path):
    from dit.checkpoints.native import checkpoints_of

    content = torch.load(checkpoints_of(tiny_run)[0], weights_only=True)
    content["dit_config"]["backbone"][name] = value
    torch.save(content, tmp_path / "other.ckpt")
    worked = ends_well(lambda: load_run(tmp_path / "other.ckpt", "ema", "cpu"), f"{name}={value}", seconds=10)
    assert worked == (name == "base")  # which shapes no weight


def test_damaged_run_directories(tiny_run, tmp_path):
    from dit.checkpoints.native import read_run_config
    from dit.training import run_directory

    draw, cfg = random.Random(2), composed("train", TINY)
    for number in range(40):
        run = tmp_path / str(number)
        shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("samples"))
        files = [file for file in sorted(run.rglob("*")) if file.is_file()]
        for file in draw.sample(files, 3):
            if draw.random() < 0.2:
                file.unlink()
            else:
                file.write_bytes(damaged(file.read_bytes() or b"x", draw))
        ends_well(lambda run=run: load_run(run, "ema", "cpu"), f"run {number}")
        ends_well(lambda run=run: run_directory.same_config(run, cfg), f"run {number}")
        ends_well(lambda run=run: read_run_config(run / "config.yaml"), f"run {number}")
        shutil.rmtree(run)
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    )
    (tmp_path / "config.yaml").write_text(bomb)
    assert not ends_well(lambda: read_run_config(tmp_path / "config.yaml"), "aliases of aliases")
    (tmp_path / "config.yaml").write_text("[" * 100_000)
    assert not ends_well(lambda: read_run_config(tmp_path / "config.yaml"), "a deep list")


def test_damaged_json(tmp_path):
    from dit.checkpoints.foreign import read_folder
    from dit.data.listing import rows_of_metadata
    from dit.evaluation.card import Card
    from dit.evaluation.comparison import is_card
    from dit.files import read_json

    draw, file = random.Random(3), tmp_path / "config.json"
    model = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8}
    model |= {"in_channels": 4, "num_layers": 1, "patch_size": 2, "num_embeds_ada_norm": 3, "norm_eps": 1e-5}
    torch.save({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.bin")
    for number in range(200):
        changed, what = mutated(model, draw)
        data = json.dumps(changed).encode()
        file.write_bytes(damaged(data, draw) if number % 2 else data)
        for read in (read_json, Card.read, is_card, rows_of_metadata, lambda path: read_folder(path.parent)):
            ends_well(lambda read=read: read(file), f"{number}: {what}")
    file.write_text("[" * 100_000 + "]" * 100_000)
    for read in (read_json, Card.read, is_card, rows_of_metadata, lambda path: read_folder(path.parent)):
        assert not ends_well(lambda read=read: read(file), "a deep list")


LINES = [
    ("train.py", "data.size=0"), ("train.py", "seed=null"), ("train.py", "recipe=3"), ("train.py", "trainer.devices=0"),
    ("train.py", "optimizer.lr=[]"), ("train.py", "run_dir=5"), ("train.py", "backbone.depth=1000000000"),
    ("train.py", "backbone.width=60000", "backbone.heads=1"), ("train.py", "trainer.max_steps=0"),
    ("train.py", "trainer.accelerator=[]"), ("train.py", "+trainer.overfit_batches=1"),
    ("train.py", "data.module.train=nan"), ("train.py", "callbacks.ema.decay=[]"),
    ("evaluate.py", "n=0"), ("evaluate.py", "steps=[0]"), ("evaluate.py", "guidance.scale=[]"),
    ("evaluate.py", "device=3"), ("evaluate.py", "weights=[1]"), ("evaluate.py", "real=true"),
    ("-m dit.cli.generate", "prompts=[]"), ("-m dit.cli.generate", "prompts=[a]", "recipe.steps=0"),
    ("-m dit.cli.generate", "prompts=[a]", "border=[1]"), ("-m dit.cli.generate", "prompts=[a]", "seeds={}"),
    ("-m dit.cli.export", "out=[1]"), ("-m dit.cli.export", "out={}", "format=3"),
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_command_lines(line, tiny_run, tmp_path):
    words = [*line[0].split(), *line[1:]]
    if "train" in line[0]:
        words += ["debug=one_batch", f"cache_dir={tmp_path / 'cache'}", "data.module.train.count=16"]
        words += ["data.module.val.count=8"] + ([] if "run_dir" in line[1] else [f"run_dir={tmp_path / 'run'}"])
    else:
        words += [f"ckpt={tiny_run}"] + ([] if "export" in line[0] else [f"out={tmp_path / 'out'}"])
    words = [word for word in words if not (word.startswith("data.module.train.") and "data.module.train=nan" in line)]
    done = command(*words, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
