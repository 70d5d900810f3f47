"""The weights that training begins with: those that `init` names, of a run or of another library, and the adapter on
them."""

from __future__ import annotations

import copy
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dit.adapters.extra import ExtraConditions
from dit.adapters.lora import LoRA
from dit.adapters.low_rank import merge
from dit.checkpoints.foreign import initialize
from dit.checkpoints.native import BASE, CONFIG, config_of, find_checkpoint, is_run, load_backbone
from dit.diffusion.prediction import Prediction
from dit.encoders.learned_token import LearnedToken
from dit.layers.embeddings import added_inputs
from dit.pipeline import Pipeline
from dit.plain_values import changed, described
from dit.tensors import fingerprint


def initial(pipeline: Pipeline, cfg: DictConfig) -> dict[str, str] | None:
    """Gives a pipeline the weights of `init`, if there are any, and the config's adapter, as training begins. Returns
    what `adapt` returns. Raises ValueError for weights of another model, and for an adapter with further inputs whose
    network was trained for another prediction or time."""
    check_clock(cfg, pipeline)
    if cfg.init is None:
        return adapt(pipeline, cfg)
    base = start_from(pipeline.backbone, cfg)
    check_prediction(cfg)
    return adapt(pipeline, cfg, base)


def check_clock(cfg: DictConfig, pipeline: Pipeline) -> None:
    """Raises ValueError if the clock of a network is to be changed, and its time is not 1000 t."""
    clock, prediction = OmegaConf.select(cfg, "adapter.clock"), pipeline.prediction
    if clock is None:
        return
    if not isinstance(prediction, Prediction) or abs(prediction.c_noise(pipeline.path.point(0.5)) - 500) > 1:
        raise ValueError(
            f"adapter.clock={clock:g} is for networks whose time is 1000 t, and the one of this prediction, "
            f"prediction._target_={cfg.prediction._target_}, is another: say adapter.clock=null"
        )


def check_prediction(cfg: DictConfig) -> None:
    """Raises ValueError if an adapter adds inputs to a run's network whose prediction, or time, is another one."""
    if is_foreign(cfg.init) or cfg.get("adapter") is None or not has_inputs(instantiate(cfg.adapter)):
        return
    held = find_checkpoint(cfg.init, whole=False)[1][CONFIG].get("prediction")
    if found := changed(held, OmegaConf.to_container(cfg.prediction, resolve=True), "prediction"):
        raise ValueError(
            f"init={cfg.init} has another prediction than the one that the adapter's inputs are added to: "
            f"{described(found)}; say inherit=[prediction] for that of the run"
        )


def adapt(pipeline: Pipeline, cfg: DictConfig, base: dict[str, str] | None = None) -> dict[str, str] | None:
    """Applies the config's adapter to the backbone: after its initial weights, before those of a checkpoint. Then adds
    the learned token, if there is one, to be trained and stored with the backbone.

    Returns the path and the fingerprint of the weights under the adapter if it leaves them as they are, else None:
    `base` if it is known, else those of `init`."""
    adapter = None if cfg.get("adapter") is None else instantiate(cfg.adapter)
    if base is None and cfg.init is not None and getattr(adapter, "separate", False):
        path = cfg.init if is_foreign(cfg.init) else find_checkpoint(cfg.init, whole=False)[0]
        base = {"path": str(path), "fingerprint": fingerprint(pipeline.backbone)}
    if adapter is not None:
        pipeline.backbone = adapter(pipeline.backbone)
    if cfg.data.get("learn_token"):
        learned = LearnedToken(pipeline.text_encoder, cfg.data.token, cfg.data.get("class_name", ""))
        pipeline.backbone.add_module("learned_token", learned)
    return base


def start_from(backbone: nn.Module, cfg: DictConfig) -> dict[str, str] | None:
    """Loads the weights that `init` names: of a run, or of another library. The embeddings of further inputs come with
    them if the run has the same adapter; a low-rank adapter with such inputs then goes on, on the same base, whose path
    and fingerprint are returned, else None. Raises ValueError if the run has another backbone."""
    where = Path(cfg.init)
    if is_foreign(cfg.init):
        initialize(backbone, where)
        return None
    path, checkpoint = find_checkpoint(where)
    held = checkpoint[CONFIG].get("backbone")
    other, own = held if isinstance(held, dict) else {}, OmegaConf.to_container(cfg.backbone, resolve=True)
    assert isinstance(own, dict)
    differing = [str(key) for key in {*other, *own} if other.get(key) != own.get(key)]
    if differing:
        raise ValueError(f"init={where} has another backbone: it differs in {', '.join(sorted(differing))}")
    adapter, base = checkpoint[CONFIG].get("adapter"), checkpoint.get(BASE)
    given = None if cfg.get("adapter") is None else OmegaConf.to_container(cfg.adapter, resolve=True)
    changes = changed(adapter, given, "adapter")
    if adapter is None:
        load_backbone(backbone, checkpoint)
    elif not changes and has_inputs(added := instantiate(adapter)):
        if base is not None:
            load_base(backbone, cfg, path, base)
        else:
            backbone.to("meta")  # all weights are replaced
        load_backbone(added(backbone), checkpoint)
        return dict(base) if base is not None else None
    else:
        config = config_of(path, checkpoint)  # names no code but that of dit and of packages with consent
        trained = copy.deepcopy(backbone.to("meta"))  # all weights are replaced
        if base is not None:
            load_base(trained, config, path, base)
        refuse_learned_token(config, path)
        trained = instantiate(config.adapter)(trained)
        if inputs := added_inputs(trained):
            raise ValueError(
                f"init={where} was trained with the inputs {', '.join(inputs)} of an adapter, and is continued by the "
                f"same adapter alone: it has {described(changes)}; say these values"
            )
        load_backbone(trained, checkpoint)
        backbone.load_state_dict(instantiate(config.adapter).merge(merge(trained)).state_dict(), assign=True)
    return None


def load_base(backbone: nn.Module, cfg: DictConfig, path: Path, base: dict[str, str]) -> None:
    """Loads the weights under the adapter of a checkpoint. Raises ValueError if they cannot be read or are others than
    those that the adapter was trained on."""
    held, expected = f"{path} holds only an adapter of {base['path']}", base["fingerprint"]
    based = cfg.copy()
    based.init = base["path"]
    try:
        start_from(backbone, based)
    except ValueError as error:
        raise ValueError(f"{held}, which cannot be loaded: {error}; put it back there") from None
    found = fingerprint(backbone)
    if found != expected:
        raise ValueError(f"{held}, whose weights are others now: {found}, not {expected}; put them back there")


def refuse_learned_token(config: DictConfig, path: Path) -> None:
    """Raises ValueError for a run with a learned token, whose vector belongs to the text encoder."""
    if OmegaConf.select(config, "data.learn_token"):
        raise ValueError(
            f"{path} has a learned token, which weights of the backbone alone do not hold; sample the run itself, "
            f"or train it without data.learn_token"
        )


def is_foreign(init: str | None) -> bool:
    """Returns True if `init` names weights of another library, False for those of a run or for None."""
    return init is not None and not is_run(init)


def has_inputs(adapter: object) -> bool:
    """Returns whether an adapter adds further inputs to a network."""
    return isinstance(adapter, ExtraConditions) or (isinstance(adapter, LoRA) and adapter.conditions is not None)
