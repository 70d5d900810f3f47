"""Every file under conf/ is composed and instantiated, and every experiment runs two steps."""

import inspect

import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from dit.build import build_backbone
from dit.cli.train import build_callbacks
from dit.config_check import check_config
from dit.generation.concepts import Concept, Threshold, as_json
from dit.generation.policy import Policy
from dit.metrics.extractors import open_clip_model
from dit.training.interruption import Interruption

from .conftest import CONF, composed
from .data.layouts import write_layouts
from .encoders.folders import save_clip, save_flux, save_language_model, save_open_clip, save_sd3, save_t5
from .encoders.small import saved

SKIP = {"hydra", "experiment", "debug"}
FILES = sorted((f.parent.name, f.stem) for f in CONF.glob("*/*.yaml") if f.parent.name not in SKIP)
EXPERIMENTS = sorted(f.stem for f in CONF.glob("experiment/*.yaml"))

# What a file needs from the user, and who may refuse it here: weights that are not on this machine.
NEEDS = {
    "data/folder": ["data.path={pictures}", "data.template=a *"],
    "data/buckets": ["data.path={pictures}", "data.template=a *"],
    "data/webdataset": ["data.path={pictures}/shards", "data.template=a *"],
    "data/parquet": ["data.path={pictures}/tables", "data.template=a *"],
    "data/huggingface": ["data.path={pictures}/saved", "data.template=a *"],
    "data/subject": [
        "data.path={pictures}/../few",
        "data.token=sks",
        "data.class_name=star",
        "data.prior={pictures}/../prior",
    ],
    "data/shapes_taught": ["data.prior={pictures}/../prior"],
    "then_evaluate/dreambooth": [
        *("data=subject", "data.path={pictures}/../few", "data.token=sks", "data.class_name=star"),
        "data.prior={pictures}/../prior",
    ],
    "data/prepared": ["data.path={prepared}"],
    "data/prepared_buckets": ["data.path={prepared}_buckets", "data.size=32"],
    "data/mixture": [
        "data.sources={{a:{{_target_:dit.data.folder.Folder,_partial_:true,path:{pictures},template:'a *'}}}}",
        "data.weights={{a:1}}",
    ],
    "autoencoder/kl": ["autoencoder.path=shapes_autoencoder"],
    "objective/hybrid": ["prediction=eps_learned_range"],
    **{f"marks/{kind}": ["marks.key={pictures}/../few/0.png"] for kind in ("pattern", "noise")},
    "marks/riva": ["marks.key={pictures}/../few/0.png", "marks.encoder=none", "marks.decoder=none"],
    "guidance/auto": ["guidance.network.ckpt=x"],
    "callbacks/default": ["callbacks.scores.every=1", "callbacks.posthoc_ema.every=1"],
}
OF_COMMANDS = {"cache": "evaluate", "marks": "generate"}  # groups that train.py does not have
DOWNLOADS = {
    f"metric/{name}"
    for name in (
        "fid", "sfid", "kid", "inception_score", "precision_recall", "density_coverage", "inception",
        "fd_dinov2", "nearest_train", "dinov2", "fd_clip", "clip_score", "cmmd", "fine_tuning",
    )
}  # fmt: skip
# Published autoencoders, and the small random ones that stand for them.
PUBLISHED = {"sd": "kl_4", "sdxl": "kl_4", "sd3": "kl_16", "flux": "kl_16", "tiny": "tiny", "dc": "dc"}

# The same for text encoders.
PRETRAINED = {
    "open_clip": lambda folder: {"model": f"local-dir:{save_open_clip(folder)}", "pretrained": None},
    "clip": lambda folder: {"name": str(save_clip(folder))},
    "t5": lambda folder: {"name": str(save_t5(folder))},
    "umt5": lambda folder: {"name": str(save_t5(folder, multilingual=True))},
    "llm": lambda folder: {"name": str(save_language_model(folder))},
    "sd3": lambda folder: {"name": str(save_sd3(folder))},
    "flux": lambda folder: {"name": str(save_flux(folder))},
}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    import numpy as np
    from PIL import Image

    root, draw = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(40):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    write_layouts(root)
    write_few(root.parent)
    return root


def write_few(place):
    """Writes few/, four pictures of a subject, and prior/, captioned ones."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(1)
    for name, count in (("few", 4), ("prior", 60)):
        (place / name).mkdir(exist_ok=True)
        for i in range(count):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / name / f"{i}.png")
    rows = [f'{{"file_name": "{i}.png", "text": "a star"}}\n' for i in range(60)]
    (place / "prior" / "metadata.jsonl").write_text("".join(rows))


@pytest.fixture(scope="session")
def prepared(pictures, tmp_path_factory):
    """A prepared folder; beside it is NAME_buckets, prepared in buckets."""
    from dit.cli.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared") / "store"
    words = ["data=buckets", f"data.path={pictures}", "data.template=a *", "data.size=32", f"cache_dir={folder}_cache"]
    prepare(composed("prepare", [*words, "autoencoder=identity", f"out={folder}_buckets", "device=cpu"]))
    words = ["data.module.train.count=8", "data.module.val.count=8", "device=cpu"]
    return prepare(composed("prepare", [*words, f"out={folder}"]))


def needs(name, pictures, prepared=None):
    return [word.format(pictures=pictures, prepared=prepared) for word in NEEDS.get(name, [])]


@pytest.mark.parametrize(("group", "option"), FILES, ids=lambda x: x)
def test_every_file_composes_and_instantiates(group, option, pictures, prepared, monkeypatch, tmp_path):
    name = f"{group}/{option}"
    if group == "policy":
        instantiate_policy(option, tmp_path)
        return
    command = OF_COMMANDS.get(group, "train")
    given = [] if command == "train" else ["ckpt=x"]
    cfg = composed(command, [f"{group}={option}", *needs(name, pictures, prepared), *given])
    node = cfg[group]
    resolved = OmegaConf.to_container(cfg, resolve=True)
    if command != "train":
        check_config(command, resolved, trusted=True)
    elif option != "run":  # which stands for what another run has
        check_config("train", resolved, trusted=True)
        resolved["text_encoder"] |= {k: ["a"] for k in ("words", "names") if k in resolved["text_encoder"]}
        check_config("train", resolved, trusted=False)  # as the run's checkpoint will hold it
    if name in DOWNLOADS:
        monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse_network)
        monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", refuse_network)
        with pytest.raises(Exception, match=r"cannot be (loaded|downloaded)"):
            instantiate(node)
    elif name == "marks/riva":
        pytest.importorskip("onnxruntime")
        with pytest.raises(Exception, match="cannot read the network none"):
            instantiate(node)
    elif group == "autoencoder" and option in PUBLISHED:
        instantiate(node, path=str(saved(tmp_path, PUBLISHED[option])))
    elif group == "text_encoder" and option in PRETRAINED:
        instantiate(node, **PRETRAINED[option](tmp_path / option))
    elif group == "text_encoder":
        known = "names" if "names" in node else "words"
        instantiate(node, **{known: ["a", "star"]})
    elif group == "backbone":
        reads_text = "token_dim" in inspect.signature(get_object(node._target_)).parameters
        sizes = {"token_dim": 8, "pooled_dim": 8} if reads_text else {"classes": 10}
        with torch.device("meta"):  # the large ones too
            build_backbone(node, {"channels": 4, "outputs": 1}, sizes)
    elif group == "objective":
        prediction = instantiate(cfg.prediction)
        taught = {"teacher": prediction} if option == "distribution_matching" else {}
        instantiate(node, path=instantiate(cfg.path), prediction=prediction, **taught)
    elif name == "guidance/auto":  # whose second network is a run
        instantiate(node, network=lambda x, time, condition: x)
    elif group == "callbacks":
        build_callbacks(cfg, {}, Interruption(None))
    elif group == "trainer":
        instantiate(node, accelerator="cpu", logger=False)
    else:
        instantiate(node)


def instantiate_policy(option, tmp_path):
    """The policies of generate, with the tiny CLIP and small files."""
    (tmp_path / "terms.txt").write_text("castle")
    clip = open_clip_model("shapes_clip")
    concept = Concept("no star", ("a star",), Threshold(0.5, 0.01, (0.0, 0.02), 99))
    (tmp_path / "concepts.json").write_text(as_json([concept], clip))
    words = ["ckpt=x", f"policy={option}"]
    if option in ("blocklist", "company"):
        words += [f"policy.blocklist.file={tmp_path / 'terms.txt'}"]
    if option in ("concepts", "company"):
        words += ["metric/extractor@policy.concepts.extractor=shapes_clip"]
        words += [f"policy.concepts.file={tmp_path / 'concepts.json'}"]
    cfg = composed("generate", words)
    check_config("generate", OmegaConf.to_container(cfg, resolve=True), trusted=True)
    assert len(Policy(instantiate(cfg.policy)).rules) == {"none": 0, "company": 3}.get(option, 1)


@pytest.mark.parametrize(("group", "first"), [("inception", "fid"), ("dinov2", "fd_dinov2")])
def test_the_weights_of_a_group_of_metrics_are_given_once(group, first):
    cfg = composed("train", [f"metric={group}", f"metric.{first}.extractor.weights=a.pt"])
    metrics = OmegaConf.to_container(cfg.metric, resolve=True)
    assert len(metrics) > 1
    assert {metric["extractor"]["weights"] for metric in metrics.values()} == {"a.pt"}


def refuse_network(*args, **kwargs):
    raise OSError("no network in tests")


@pytest.mark.parametrize("name", ["evaluate", "generate"])
def test_the_other_front_doors_compose(name):
    cfg = composed(name, ["ckpt=x"])
    assert instantiate(cfg.sampler)
    assert not cfg.grid  # that of the run


@pytest.mark.parametrize("debug", sorted(f.stem for f in CONF.glob("debug/*.yaml")))
def test_every_debug_form_composes(debug):
    cfg = composed("train", [f"debug={debug}"])
    assert cfg.wandb.mode == "disabled"
    assert cfg.trainer.max_steps <= 300


# Large experiments in miniature, and the small random encoders that stand for the published ones.
LARGE = {
    "imagenet256_dit_xl2": ("kl_4", None),
    "imagenet256_sit_xl2": ("kl_4", None),
    "t2i_256_cross": ("kl_4", save_t5),
    "t2i_256_mmdit": ("kl_16", save_sd3),
    "t2i_512_buckets": ("kl_16", save_sd3),
    "t2i_flux": ("kl_16", save_flux),
}
FINE_TUNED = {"dreambooth", "shapes_heart"}  # from a run of the default experiment
SMALL = ["data.module.train.count=64", "data.module.val.count=32"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_two_steps(experiment, pictures, tmp_path, capsys):
    from dit.cli.train import train

    debug = "tiny" if experiment in LARGE else "one_batch"
    words = [f"experiment={experiment}", f"debug={debug}", "trainer.max_steps=2", "trainer.accelerator=cpu"]
    words += [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", "batch_size=8"]
    words += needs("data/folder", pictures) if experiment.startswith("folder") or experiment in LARGE else []
    words += ["fit_autoencoder.steps=2"] if experiment == "folder_latents" else []
    if experiment in LARGE:
        autoencoder, save_text = LARGE[experiment]
        words += [f"autoencoder.path={saved(tmp_path, autoencoder)}"]
        words += [] if save_text is None else [f"text_encoder.name={save_text(tmp_path / 'text')}"]
    words += SMALL if experiment.startswith(("shapes", "scenes")) and experiment not in FINE_TUNED else []
    base = [f"cache_dir={tmp_path / 'cache'}", "debug=one_batch", "trainer.max_steps=1", "trainer.accelerator=cpu"]
    if experiment in FINE_TUNED or experiment == "distill_dmd":
        train(composed("train", [f"run_dir={tmp_path / 'base'}", *base, *SMALL]))
    if experiment == "distill_dmd":
        words += [f"distill={tmp_path / 'base'}", f"init={tmp_path / 'student'}"]
        taught = ["experiment=distill", f"distill={tmp_path / 'base'}", f"run_dir={tmp_path / 'student'}"]
        train(composed("train", [*taught, *base]))
    if experiment in FINE_TUNED:
        words += [f"init={tmp_path / 'base'}", "prior.count=40", "recipe.steps=1"]
    if experiment == "dreambooth":
        words += [w for w in needs("data/subject", pictures) if "prior" not in w] + ["data.class_caption=a red star"]
    folder = train(composed("train", words))
    assert (folder / "summary.json").is_file()
    assert (folder / "checkpoints" / "step_0000002.ckpt").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
