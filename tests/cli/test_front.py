"""The command line: help, misspelt words, and one line for each error."""

import re

import pytest

from dit.cli.front import command_name, range_as_list

from ..conftest import CONF, command, only_line_of


@pytest.mark.parametrize("words", [["train.py"], ["evaluate.py"], ["-m", "dit.cli.generate"]])
def test_help_teaches_and_is_quick(words):
    output = command("-X", "importtime", *words, "--help")
    assert output.returncode == 0, output.stderr
    assert f"Try:\n  python {' '.join(words)} " in output.stdout
    assert f"sampler: {', '.join(sorted(f.stem for f in CONF.glob('sampler/*.yaml')))}\n" in output.stdout
    imported = {line.rsplit("|")[-1].strip() for line in output.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "diffusers", "wandb"}


def test_help_of_generate_shows_its_own_settings():
    shown = command("-m", "dit.cli.generate", "--help").stdout
    assert "seeds: [0]" in shown
    keys = re.findall(r"^(\w+):", (CONF / "generate.yaml").read_text(), re.MULTILINE)
    missing = [key for key in keys if key not in ("defaults", "hydra") and not re.search(rf"\b{key}\b", shown)]
    assert missing == []
    assert "optimizer" not in shown


def test_help_of_a_group_an_option_and_a_key():
    from dit.cli.group_help import help_of

    shown = help_of("train", ["backbone"])
    assert "choose with backbone=NAME" in shown
    for file in CONF.glob("backbone/*.yaml"):
        assert f"\n  {file.stem} " in shown
    assert "  dit_b_4           DiT-B/4.\n" in shown, "an option is described by its first comment"
    assert "\n  backbone.width=128\n" in shown, "the keys of the default"
    assert "\n  backbone.width=768\n" in help_of("train", ["backbone=dit_b_2"])
    assert "  name: digits" in help_of("train", ["experiment=digits"])
    assert help_of("train", ["optimizer.lr"]) == "optimizer.lr=0.004"
    assert "By default: euler, heun, dpmpp_2m" in help_of("evaluate", ["sampler"])


def test_help_of_options_in_a_folder_of_the_user(tmp_path):
    from dit.cli.group_help import help_of

    (tmp_path / "backbone").mkdir()
    for name, comment in (("mine", "My own."), ("dit_b_4", "Another of this name.")):
        text = (CONF / "backbone/dit_b_4.yaml").read_text()
        (tmp_path / "backbone" / f"{name}.yaml").write_text(f"# {comment}\n{text}\ndropout: 0.25\n")
    assert "\n  backbone.dropout=0.25" in help_of("train", ["backbone=mine"], str(tmp_path))
    listed = help_of("train", ["backbone"], str(tmp_path))
    assert "My own." in listed
    assert "Another of this name." in listed, "it replaces the option of this name"


def test_help_of_a_group_on_the_command_line():
    shown = command("train.py", "--help", "optimizer")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "optimizer: choose with optimizer=NAME" in shown.stdout


def test_without_m_a_range_is_the_list_of_its_numbers(monkeypatch):
    assert range_as_list("seeds=range(0,3)") == "seeds=[0,1,2]"
    assert range_as_list("+a.b=range(1,6,2)") == "+a.b=[1,3,5]"
    for word in ("seeds=[0,1]", "seeds=1,2", "text='range(0,3)'", "broken=[", "backbone"):
        assert range_as_list(word) == word


@pytest.mark.parametrize(("started", "named"), [
    ("/site/bin/dit-generate", ["dit-train", "dit-evaluate", "dit-generate"]),
    ("train.py", ["python train.py", "python evaluate.py", "python -m dit.cli.generate"]),
])  # fmt: skip
def test_help_names_the_commands_as_the_user_starts_them(started, named, monkeypatch):
    monkeypatch.setattr("sys.argv", [started])
    assert [command_name(verb) for verb in ("train", "evaluate", "generate")] == named


@pytest.mark.parametrize(("words", "parts"), [
    (["experiment=shape"], ["experiment=shape", "'shapes'"]),
    (["optimizer.lrr=1"], ["optimizer.lrr", "'optimizer.lr'"]),
    (["+optimizer.lrr=1"], ["optimizer.lrr", "'optimizer.lr'"]),
    (["++trainer.max_step=1"], ["trainer.max_step", "'trainer.max_steps'"]),
    (["+seed=3"], ["+seed", "leave out the +"]),
    (["lr=1e-3"], ["lr: there is no such key", "'optimizer.lr'"]),
    (["bach_size=3"], ["bach_size", "'batch_size'"]),
    (["optimiser=adamw"], ["optimiser", "'optimizer'"]),
    (["+experimnt=digits"], ["experimnt", "'experiment'"]),
    (["batch_size=many"], ["batch_size='many'", "whole number"]),
    (["compile=2"], ["compile=2", "true or false"]),
    (["batch_size=2.5"], ["batch_size=2.5", "whole number"]),
    (["--config-dir", "/no/such", "seed=1"], ["--config-dir /no/such", "no such folder"]),
    (["-cn", "trin", "seed=1"], ["trin", "'train'"]),
    (["batch_size"], ["batch_size", "key=value"]),
    (["-m", "seed=0,1", "sampler=euler,huen"], ["sampler=huen", "'heun'"]),
    (["-m", "seed=0,x"], ["seed='x'", "whole number"]),
    (["seed=0,1"], ["seed=0,1", "add -m"]),
    (["--experiment", "shapes"], ["--experiment", "experiment=shapes"]),
    (["--config-name", "shapes_ddpm"], ["shapes_ddpm", "experiment=shapes_ddpm"]),
    (["--help", "bakbone"], ["--help bakbone", "'backbone'"]),
    (["--help", "backbone=dit_b_3"], ["backbone=dit_b_3", "Did you mean 'dit_b_"]),
    (["data.path=/tmp/bücher"], ["'data.path=\"/tmp/bücher\"'"]),
    (["data.prompts=[a cat (red), it's here]"], ["\"a cat (red)\"", "here\"]"]),
])  # fmt: skip
def test_a_misspelt_word_ends_in_one_line_with_the_nearest_right_one(words, parts):
    line = only_line_of(command("train.py", *words))
    for part in parts:
        assert part in line


@pytest.mark.parametrize(("word", "meant"), [
    ("steps=3", "Did you mean 'recipe.steps', 'trainer.max_steps'"), ("model=dit", "Did you mean 'backbone'?"),
    ("scale=2", "Did you mean 'guidance.scale', "), ("extractor=own", "'metric.fd_shapes.extractor'"),
])  # fmt: skip
def test_a_word_is_answered_by_the_keys_that_it_can_mean(word, meant):
    from dit.cli.front import first_fault

    assert meant in first_fault("train", [word])


def test_what_may_be_a_share_need_not_be_whole():
    from dit.annotations import check_value
    from dit.cli.front import first_fault
    from dit.places import PLACES

    interval = PLACES["trainer"].typed["val_check_interval"]
    for value in (700, 0.5, 1):
        check_value(value, interval, "trainer.val_check_interval")
    for value in (2.5, 0, -1, True, "x"):
        with pytest.raises(ValueError, match="val_check_interval"):
            check_value(value, interval, "trainer.val_check_interval")
    assert "references=2.5: expected a whole number" in first_fault("evaluate", ["references=2.5"])


@pytest.mark.parametrize(
    "text",
    ["a cat (red)", "it's here", 'say "hi"', "größe", "a=b", "a, b", "back\\slash", "x{y}", "[a] b", "a [b, c] (d, e)"],
)
def test_a_word_that_cannot_be_read_is_answered_by_one_that_can(text):
    """The quoted form, parsed by a shell and by Hydra, is the original text."""
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dit.cli.front import quoted

    (word,) = shlex.split(quoted(f"image={text}"))
    override = OverridesParser.create().parse_overrides([word])[0]
    assert override.value() == text


@pytest.mark.parametrize("text", ["a cat (red, small)", "it's here", 'say "a, b"', "a=b", "a [b, c] d", "[a] b"])
def test_a_prompt_in_a_list_is_answered_by_the_same_prompt_quoted(text):
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dit.cli.front import first_fault

    fault = first_fault("generate", ["ckpt=RUN", f"prompts=[{text}]"], sweeps=False)
    assert fault.startswith(f"prompts=[{text}]: cannot be read")
    (word,) = shlex.split(fault.rpartition("must be quoted: ")[2])
    assert OverridesParser.create().parse_overrides([word])[0].value() == [text]


def test_a_prompt_that_is_divided_at_its_commas_is_noted():
    import shlex

    from dit.cli.quoting import note_of_commas

    note = note_of_commas("prompts=[a red cat, on a mat]")
    assert note.startswith("note: prompts has 2 texts, divided at commas; one text with commas is written ")
    assert shlex.split(note)[-1] == 'prompts=["a red cat, on a mat"]'
    for word in ('prompts=["a, b"]', 'prompts=["a","b"]', "prompts=[a b]", "prompts=FILE", "steps=[1,2]"):
        assert note_of_commas(word) == ""


@pytest.mark.parametrize(
    "module", ["train", "evaluate", "generate", "serve", "export", "latents", "prepare", "provenance"]
)
def test_every_verb_is_a_module_that_refuses_before_it_imports(module):
    output = command("-X", "importtime", "-m", f"dit.cli.{module}", "no_such_key=1")
    assert output.returncode == 2
    assert output.stderr.splitlines()[-1].startswith("error: no_such_key: there is no such key")
    imported = {line.rsplit("|")[-1].strip() for line in output.stderr.splitlines() if line.startswith("import time")}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "diffusers", "wandb"}


met = []


def meet(cfg):
    met.append(cfg)


@pytest.mark.parametrize("words", [["--config-dir", "{}", "experiment=mine"], ["-cd", "{}", "-cn", "own", "name=mine"]])
def test_a_config_directory_of_ones_own(words, tmp_path, monkeypatch):
    from dit.cli.front import front_door

    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\nbatch_size: 7\n")
    (tmp_path / "own.yaml").write_text("defaults: [train, _self_]\nbatch_size: 7\n")
    words = [word.format(tmp_path) for word in words]
    monkeypatch.setattr("sys.argv", ["train.py", *words, "seed=3"])
    front_door("train", f"{__name__}:meet")
    cfg = met.pop()
    assert (cfg.batch_size, cfg.seed, cfg.name) == (7, 3, "mine")
    line = only_line_of(command("train.py", *words, "experiment=mien"))
    assert "Did you mean 'mine'?" in line


def test_plus_reaches_every_real_option_of_a_target():
    output = command("train.py", "+trainer.fast_dev_run=true", "--cfg", "job")
    assert output.returncode == 0, output.stderr
    from dit.cli.front import first_fault

    assert first_fault("train", ["+trainer.fast_dev_run=true", "+callbacks.previews.columns=4", "seed=3"]) is None
    assert "fast_dev_rum" in first_fault("train", ["+trainer.fast_dev_rum=true"])


@pytest.mark.parametrize(("words", "parts"), [
    (["batch_size=-2"], ["batch_size=-2"]),
    (["recipe.steps=0"], ["steps=0"]),
    (["optimizer.lr=-1"], ["-1"]),
    (["runs_dir=/dev/null/runs"], ["/dev/null/runs", "run_dir=DIR"]),
    (["experiment=folder", "data.path=/no/such"], ["/no/such", "no such folder"]),
    (["wandb.mode=online"], ["WANDB_API_KEY"]),
    (["resume=/no/such/run"], ["/no/such/run"]),
    (["autoencoder=kl", "autoencoder.path=/no/vae"], ["/no/vae", "shapes_autoencoder"]),
    (["autoencoder=kl"], ["autoencoder.path"]),
    (["task=paint"], ["task='paint'", "diffusion"]),
    (["seed=null"], ["seed=null", "whole number"]),
    (["+trainer.overfit_batches=1"], ["trainer.overfit_batches=1"]),
    (["trainer.max_steps=2.5"], ["trainer.max_steps=2.5", "whole number"]),
    (["grid.start=nan"], ["grid.start=nan"]),
    (["recipe=3"], ["recipe=3", "part of the config"]),
    (["optimizer.lr=null"], ["optimizer.lr=null", "budget_minutes"]),
    (["optimizer.lr=[]"], ["optimizer.lr=[]", "a number"]),
    (["backbone.depth=1000000000"], ["backbone.depth=1000000000"]),
    (["data.prompts=[]"], ["data.prompts=[]", "for held-out captions"]),
    (["data.prompts=a red star"], ["data.prompts='a red star'", "a list of text"]),
    (["data.prompts=[a red cow]"], ["'a red cow'", "not trained with 'cow'"]),
    (["+recipe.negative=cow"], ["'cow'", "not trained with 'cow'"]),
    (["text_encoder=classes", "backbone=dit_tiny"], ["different captions of 24 pictures", "text_encoder=words"]),
])  # fmt: skip
def test_a_wrong_value_ends_in_one_line(words, parts, tmp_path, monkeypatch):
    """Runs the command in this process and returns its error line."""
    import sys

    from dit.cli.front import front_door

    monkeypatch.delenv("WANDB_MODE", raising=False)
    places = [] if any("runs_dir" in w for w in words) else [f"run_dir={tmp_path / 'run'}"]
    places += [f"cache_dir={tmp_path / 'cache'}"]
    small = ["data.module.train.count=16", "data.module.val.count=8"] if "experiment=folder" not in words else []
    wandb = [] if "wandb.mode=online" in words else ["wandb.mode=disabled"]
    output = refused(["train.py", *places, *small, *wandb, "trainer.accelerator=cpu", *words], front_door, sys)
    for part in parts:
        assert part in output


def refused(argv, front_door, sys):
    import contextlib
    import io

    stderr, old = io.StringIO(), sys.argv
    sys.argv = argv
    try:
        with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as stopped:
            front_door("train", "dit.cli.train:train")
    finally:
        sys.argv = old
    assert stopped.value.code == 2
    lines = [line for line in stderr.getvalue().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr.getvalue()
    assert "Traceback" not in stderr.getvalue()
    return lines[0]
