"""What may stand in a config: parts in their places, values of their types, and from a file nothing else."""

import copy
import random
import re
import sys

import pytest
import torch
from omegaconf import OmegaConf

import dit.config
import dit.places
from dit.config_check import check_config
from dit.plain_values import check_plain

from .conftest import TINY, composed
from .mutations import parts_in, paths_in


def plain(name, words):
    return OmegaConf.to_container(composed(name, words), resolve=True)


@pytest.fixture(scope="module")
def run_config():
    """That of a run, as its checkpoint holds it."""
    config = plain("train", TINY)
    config["text_encoder"]["words"] = ["a", "large", "red", "star"]
    check_config("train", config, trusted=False)
    return config


NODES = [
    {"_target_": "os.system", "command": "touch {file}"},
    {"_target_": "subprocess.Popen", "args": ["touch", "{file}"]},
    {"_target_": "builtins.open", "file": "{file}", "mode": "w"},
    {"_target_": "builtins.exec", "_args_": ["open('{file}', 'w')"]},
    {"_target_": "dit.cli.first_run.last_line", "command": ["touch", "{file}"]},
    {"_target_": "dit.cli.first_run.subprocess.run", "_args_": [["touch", "{file}"]]},
    {"_target_": "dit.files.write_atomic", "path": "{file}", "content": "x"},
    {"_target_": "dit.files.replacing", "path": "{file}"},
    {"_target_": "dit.picture_files.save_png", "image": None, "path": "{file}"},
    {"_target_": "dit.runs.instantiate", "config": {"_target_": "os.system", "command": "touch {file}"}},
    {"_target_": "dit.cli.train.train", "cfg": {}},
    {"_target_": "hydra.utils.get_class", "path": "antigravity.geohash"},
    {"_target_": "antigravity.geohash", "latitude": 1, "longitude": 1, "datedow": "x"},
    {"_target_": "torch.save", "obj": 1, "f": "{file}"},
    {"_target_": "dit.backbones.dit.nn.Linear", "in_features": 1, "out_features": 1},
    {"_target_": "dit.backbones.dit.init_weights", "net": None},
    {"_target_": "dit.encoders.text.torch.load", "f": "{file}"},
    {"_target_": "dit.data.module.L.Trainer"},
    {"_target_": "dit.training.checkpoints.AtomicCheckpointIO"},
]
TEXTS = [
    "${oc.env:HOME}",
    "${oc.create:{_target_: os.system, command: 'touch x'}}",
    "${hydra:runtime.cwd}",
    "a ${seed} b",
    "???",
]


def filled(node, file):
    if isinstance(node, dict):
        return {key: filled(value, file) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, file) for value in node]
    return node.replace("{file}", file) if isinstance(node, str) else node


def hostile(config, draw, file):
    """A config with code where its author wants it: as a part, inside one, or as a text that would be resolved."""
    changed = copy.deepcopy(config)
    path = draw.choice(list(paths_in(changed)))
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    kind = draw.random()
    if kind < 0.6:
        parent[path[-1]] = filled(copy.deepcopy(draw.choice(NODES)), file)
    elif kind < 0.75 and isinstance(parent, dict):
        parent["more"] = {"deeper": [filled(copy.deepcopy(draw.choice(NODES)), file)]}
    elif kind < 0.85:
        node = draw.choice(list(parts_in(changed)))
        node[draw.choice(["_args_", "_recursive_"])] = draw.choice([[1], False])
    else:
        parent[path[-1]] = draw.choice(TEXTS)
    return changed


def as_a_file_is_checked(config):
    check_plain(config, "config")
    check_config("train", config, trusted=False)


@pytest.fixture
def nothing_happens(monkeypatch, tmp_path):  # the folder is made before
    """Fails a test that starts a process, opens a connection, writes a file, or imports what was not imported."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"code ran: {args}")

    open_as_it_was = open

    def reading(file, mode="r", *args, **kwargs):
        assert not set(mode) & set("wax+"), f"{file} was opened to be written"
        return open_as_it_was(file, mode, *args, **kwargs)

    for name in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "socket.socket", "os.mkdir", "os.open"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("builtins.open", reading)
    yield
    monkeypatch.undo()


def test_hostile_configs_run_nothing(run_config, nothing_happens, tmp_path):
    """400 of them, and none is even looked up outside dit."""
    draw, file = random.Random(0), str(tmp_path / "made")
    before = set(sys.modules)
    for number in range(400):
        config = hostile(run_config, draw, file)
        with pytest.raises(ValueError, match=r"\w"):
            as_a_file_is_checked(config)
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        assert "antigravity" not in new, number
    outside = {name for name in set(sys.modules) - before if not name.startswith(("dit", "torch", "lightning"))}
    assert not outside & {"subprocess", "antigravity", "ctypes.util", "pty"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [
    {"autoencoder": {"_target_": "dit.cli.first_run.last_line", "command": ["touch", "{file}"]}},
    {"autoencoder": {"_target_": "dit.files.write_atomic", "path": "{file}", "content": "x"}},
    {"text_encoder": "${oc.create:{_target_: dit.files.write_atomic, path: '{file}', content: x}}"},
    {"prediction": {"_target_": "os.system", "command": "touch {file}"}},
])  # fmt: skip
def test_a_hostile_checkpoint_is_refused_by_every_reader(change, tiny_run, tmp_path):
    from dit.checkpoints.native import checkpoints_of
    from dit.runs import check_second_network, load_run, network_of

    file = tmp_path / "made"
    checkpoint = torch.load(checkpoints_of(tiny_run)[0], weights_only=True)
    checkpoint["dit_config"] |= filled(change, str(file))
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    where = str(tmp_path / "hostile.ckpt")
    guidance = OmegaConf.create({"network": {"ckpt": where}})
    for read in (load_run, network_of, lambda ckpt: check_second_network(guidance, OmegaConf.create({}))):
        with pytest.raises(ValueError, match=r"hostile\.ckpt"):
            read(where)
    assert not file.exists()


@pytest.mark.parametrize(("key", "value", "message"), [
    ("backbone", {"_target_": "dit.layers.block.Block", "dim": 4, "heads": 1}, "choose one from dit.backbones"),
    ("backbone.norm", {"_target_": "dit.layers.norm.rms_norm"}, "needs _partial_: true"),
    ("backbone.mlp", {"_target_": "dit.layers.norm.rms_norm", "_partial_": True}, "choose one from dit.layers.mlp"),
    ("grid", {"_target_": "dit.diffusion.time.LogitNormal"}, "does not have the type of this key"),
    ("density", {"_target_": "dit.diffusion.time.Karras"}, "does not have the type of this key"),
    ("grid", {"_target_": "dit.diffusion.time.Karras", "_partial_": True}, "leave out _partial_"),
    ("path", {"_target_": "dit.diffusion.path.linear_betas", "steps": 10}, "does not have the type of this key"),
    ("optimizer._partial_", False, "needs _partial_: true"),
    ("sampler.euler", {"_target_": "dit.diffusion.sampler.ddim.ddim"}, "needs denoise"),
    ("prediction.clok", 1, "takes no clok"),
    ("optimizer.lr", None, "expected a number"),
    ("optimizer.betas", [0.9], "a list of 2"),
    ("grid.start", float("nan"), "finite"),
    ("batch_size", True, "expected a whole number"),
    ("data.size", 0, "of at least 1|in \\[1, 65536\\]"),
    ("seed", -1, r"in \[0, 4294967295\]"),
    ("recipe", {}, "expected a part of the config"),
    ("callbacks", None, "parts of the config by name"),
    ("runs_dir", 5, "needs quotes"),
    ("trainer.max_steps", -1, "of at least 1"),
    ("trainer._target_", "lightning.Fabric", "is not run without your consent"),
])  # fmt: skip
def test_what_does_not_fit_its_place_is_named(key, value, message, run_config):
    config = copy.deepcopy(run_config)
    parent = config
    *path, last = key.split(".")
    for name in path:
        parent = parent.setdefault(name, {"_target_": "x"})
    parent[last] = value
    with pytest.raises(ValueError, match=message) as error:
        check_config("train", config, trusted=False)
    assert path[0] if path else key in str(error.value)


class MySampler:
    def __init__(self, strength: float = 1.0) -> None: ...

    def __call__(self, denoise, x, points, noise): ...


def test_a_command_line_may_name_other_peoples_code_and_a_file_may_not(run_config):
    own = {"_target_": f"{__name__}.MySampler", "strength": 2}
    config = run_config | {"sampler": {"mine": own}}
    config["recipe"] = run_config["recipe"] | {"sampler": {"mine": own}}
    check_config("train", config, trusted=True)
    with pytest.raises(
        ValueError,
        match=r"sampler\.mine: .*MySampler' is code outside dit, which is not run without your consent: .*trust=tests",
    ):
        check_config("train", config, trusted=False)
    own["strength"] = "much"
    with pytest.raises(ValueError, match=r"sampler\.mine\.strength='much': expected a number"):
        check_config("train", config, trusted=True)


@pytest.mark.parametrize(("value", "message"), [
    ([], "is no group"),
    ({"a": {1: 2}}, "a key that is no text"),
    ({"a": (1, 2)}, "a tuple"),
    ({"a": torch.zeros(1)}, "a Tensor"),
    ({"${a}": 1}, "would be resolved"),
])  # fmt: skip
def test_a_file_holds_plain_values_alone(value, message):
    with pytest.raises(ValueError, match=message):
        check_plain(value, "config")


def test_a_file_that_never_ends_is_refused():
    endless, wide = {}, ["x"] * 100
    endless["a"] = endless
    for _ in range(10):
        wide = [wide] * 100
    for value in (endless, {"a": wide}):
        with pytest.raises(ValueError, match="more than"):
            check_plain(value, "config")


@pytest.mark.parametrize("command", sorted(dit.config.COMMANDS))
def test_every_key_of_a_command_is_described(command):
    """A key that is added to conf/ needs its type in dit/config.py, or its typos and wrong values are not found."""
    words = {"train": [], "latents": [], "prepare": ["out=x"], "calibrate": [], "authority": [], "verify": []}.get(
        command, ["ckpt=x"]
    )
    cfg = composed(command, words)
    optional = {"module", "adapter"} if command == "train" else set()
    assert set(cfg) == set(dit.config.COMMANDS[command].__annotations__) - optional


def test_every_place_has_its_home_and_type():
    from dit.config_check import find

    for name, place in dit.places.PLACES.items():
        assert find(place.gives or "dit", name) if place.gives else place.home
        assert re.fullmatch(r"(dit|lightning)\.[\w.]+", place.home)
        assert set(place.parts.values()) <= dit.places.PLACES.keys()
