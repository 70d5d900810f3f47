"""Schema of the commands: the keys of each with their types. A key that holds a part names its place (`dit.places`)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from dit.annotations import (
    AdapterEntries,
    Batch,
    Count,
    NotNegative,
    Paths,
    Positive,
    Precision,
    Prompts,
    Seed,
    Share,
    Steps,
    Width,
    Within,
)
from dit.config_generation import Authority, Calibrate, Generate, PriceOf, RunWeights, Serve, Synthesize, Verify
from dit.places import At, RunsGrid, Samplers, Sizes, Workers

# Keys of train.py that do not change results.
WITHOUT_EFFECT = {
    *("resume", "resume_override", "trust", "run_dir", "runs_dir", "cache_dir", "wandb"),
    *("then_evaluate", "optimized_metric"),
}
# Keys of train.py that may be null, for `dit.training.budget` to fill.
OPEN = (
    *("backbone.width", "backbone.depth", "backbone.heads", "optimizer.lr"),
    *("trainer.max_steps", "trainer.val_check_interval", "lr_schedule.warmup", "callbacks.ema.decay"),
)


def key_of(override: str) -> str:
    """Returns the key of an override, without its + or ~: +trainer.max_time=1 has trainer.max_time."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def has_no_effect(key: str) -> bool:
    """Returns whether a dotted key of train.py cannot change results: it says where something is stored or logged."""
    return key.split(".")[0] in WITHOUT_EFFECT or key.endswith(".cache_dir")


class Wandb(TypedDict):
    project: str
    mode: Literal["auto", "online", "offline", "disabled"]
    group: str | None


class Sampling(TypedDict):
    precision: Precision
    compile: bool


class Filter(TypedDict):
    licence: str | Sequence[str] | None
    exclude: str | None
    require_licence: bool


class Fields(TypedDict):
    image: str | None
    text: str | None
    label: str | None


class Prior(TypedDict):
    count: Positive
    prompts: Sequence[str] | None
    seed: Seed
    batch_size: Batch


class Data(TypedDict):
    size: Width
    caption_words: NotRequired[Positive]
    prompts: NotRequired[Sequence[str] | None]
    flip: NotRequired[bool]
    posterior: NotRequired[Literal["mode", "sample"]]
    size_conditions: NotRequired[bool]
    path: NotRequired[str]
    name: NotRequired[str | None]
    fields: NotRequired[Fields]
    shape: NotRequired[str]
    token: NotRequired[str]
    class_name: NotRequired[str]
    learn_token: NotRequired[bool]
    caption: NotRequired[str]
    class_caption: NotRequired[str]
    class_prompts: NotRequired[Sequence[str] | None]
    prior: NotRequired[str | None]
    sources: NotRequired[Annotated[Any, At("source", each=True)]]
    weights: NotRequired[Mapping[str, float] | None]
    copies: NotRequired[str | None]
    captions: NotRequired[Literal["auto", "none"]]
    template: NotRequired[str | None]
    val_share: NotRequired[Share]
    max_broken: NotRequired[Annotated[float, Within(0)] | None]
    resize: NotRequired[Literal["adm", "bicubic", "bilinear", "lanczos"]]
    crop: NotRequired[Literal["centre", "none"]]
    filter: NotRequired[Filter]
    verify: NotRequired[bool]
    module: Annotated[Any, At("data")]


class Train(TypedDict):
    task: Literal["diffusion", "autoencoder", "clip"]
    name: str
    seed: Seed
    batch_size: Batch
    resume: str | None
    trust: NotRequired[Paths | None]
    resume_override: bool
    init: str | None
    inherit: NotRequired[Sequence[str]]
    distill: NotRequired[str | None]
    run_dir: str | None
    runs_dir: str
    cache_dir: str
    budget_minutes: NotRequired[Annotated[float, Within(0)] | None]
    prior: NotRequired[Prior | None]
    fit_autoencoder: NotRequired[Mapping[str, Any] | None]
    caption_dropout: Share
    closing_prompts: Count
    then_evaluate: NotRequired[Mapping[str, Any] | None]
    optimized_metric: NotRequired[str | None]
    compile: bool | Literal["blocks"]
    activation_checkpointing: NotRequired[bool]
    wandb: Wandb
    sampling: Sampling
    data: Data
    module: NotRequired[Any]
    autoencoder: Annotated[Any, At("autoencoder")]
    text_encoder: Annotated[Any, At("text_encoder")]
    backbone: Annotated[Any, At("backbone")]
    adapter: NotRequired[Annotated[Any, At("adapter")]]
    path: Annotated[Any, At("path")]
    prediction: Annotated[Any, At("prediction")]
    density: Annotated[Any, At("density")]
    weighting: Annotated[Any, At("weighting")]
    objective: Annotated[Any, At("objective")]
    sampler: Samplers
    grid: Annotated[Any, At("grid")]
    guidance: Annotated[Any, At("guidance")]
    recipe: Annotated[Any, At("recipe")]
    optimizer: Annotated[Any, At("optimizer")]
    lr_schedule: Annotated[Any, At("lr_schedule")]
    trainer: Annotated[Any, At("trainer")]
    callbacks: Annotated[Any, At("callback", each=True)]
    metric: Annotated[Any, At("metric", each=True)]


class Evaluate(TypedDict):
    ckpt: Paths | None
    checkpoints: Literal["newest", "all"]
    trust: Paths | None
    weights: Paths
    adapters: AdapterEntries
    adapter_scale: float | Sequence[float]
    images: str | None
    model: str | None
    real: str | Annotated[Any, At("split")] | None
    statistics: bool
    train: str | Annotated[Any, At("split")] | None
    subject: str | Annotated[Any, At("split")] | None
    base: str | None
    class_prompts: Prompts | None
    size: Sizes | None
    dtype: str
    lora: Paths | None
    lora_scale: float | Sequence[float]
    options: Mapping[str, Any]
    device: str
    precision: Precision
    compile: bool
    steps: Steps | Sequence[Steps]
    grids: str | Sequence[str] | None
    n: Count | None
    prompts: Prompts | None
    seed: Seed
    references: Count | None
    train_references: Count | None
    confirm: bool
    batch_size: Batch
    out: str | None
    cache_dir: str
    shown: Count
    cost: PriceOf
    wandb: Wandb
    sampler: Samplers
    grid: RunsGrid
    guidance: Annotated[Any, At("guidance", listed=("scale",))]
    cache: Annotated[Any, At("cache", listed=("threshold",))] | None
    metric: Annotated[Any, At("metric", each=True)]


class Export(RunWeights):
    ckpt: str
    out: str
    format: str
    licence: str | None


class Provenance(TypedDict):
    ckpt: str
    trust: Paths | None
    without: str | None
    out: str | None


class Latents(TypedDict):
    data: Data
    cache_dir: str
    autoencoder: Annotated[Any, At("autoencoder")]
    split: str
    n: Annotated[int, Within(2)]
    seed: Seed
    batch_size: Batch
    device: str
    out: str


class Prepare(TypedDict):
    data: Data
    autoencoder: Annotated[Any, At("autoencoder")]
    text_encoder: Annotated[Any, At("text_encoder")]
    splits: Sequence[str]
    out: str
    append: bool
    verify: bool
    shard_mb: Positive
    batch_size: Batch
    workers: Workers
    max_broken: NotNegative
    device: str
    devices: Positive
    seed: Seed
    cache_dir: str


COMMANDS: dict[str, Any] = {
    "authority": Authority,
    "verify": Verify,
    "train": Train,
    "evaluate": Evaluate,
    "generate": Generate,
    "synthesize": Synthesize,
    "serve": Serve,
    "calibrate": Calibrate,
    "export": Export,
    "provenance": Provenance,
    "latents": Latents,
    "prepare": Prepare,
}
