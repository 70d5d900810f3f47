"""Schema of the commands: the keys of each with their types. A key that holds a part names its place (`dit.places`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from dit.annotations import Batch, Count, NotNegative, Positive, Seed, Share, Steps, Width, Within
from dit.places import Sizes, Workers


@dataclass(frozen=True)
class At:
    """Marks a key of a command as a place. each: it holds parts by name, or null for an omitted one. listed:
    parameters that may be lists of values to evaluate."""

    place: str
    each: bool = False
    listed: Sequence[str] = ()


Paths = str | Sequence[str]
Numbers = Steps | Sequence[Steps]
Prompts = str | Sequence[str | int]
Precision = Literal["auto", "32", "tf32", "bf16", 32]
AdapterEntries = str | Sequence[str | Mapping[str, str | float]] | None
Samplers = Annotated[Any, At("sampler", each=True)]
RunsGrid = Annotated[Any, At("run's grid")]


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
    steps: Numbers
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
    wandb: Wandb
    sampler: Samplers
    grid: RunsGrid
    guidance: Annotated[Any, At("guidance", listed=("scale",))]
    cache: Annotated[Any, At("cache", listed=("threshold",))] | None
    metric: Annotated[Any, At("metric", each=True)]


class Generate(TypedDict):
    ckpt: Paths
    trust: Paths | None
    weights: str
    adapters: AdapterEntries
    adapter_scale: float
    device: str
    precision: Precision
    compile: bool
    prompts: Prompts | None
    seeds: Seed | Sequence[Seed] | str
    n: Count | None
    size: Sizes | None
    image: str | None
    strength: Share | None
    mask: str | None
    border: tuple[NotNegative, NotNegative, NotNegative, NotNegative]
    source: str | None
    resample: Steps
    stretch: Steps
    batch_size: Batch | Literal["auto"]
    devices: Positive
    out: str
    format: Literal["folder", "imagefolder", "webdataset", "parquet"]
    shard_size: Positive
    sheet: NotNegative
    replace: bool
    sampler: Samplers
    grid: RunsGrid
    guidance: Annotated[Any, At("run's guidance")]
    cache: Annotated[Any, At("cache")] | None
    recipe: Annotated[Any, At("run's recipe")]
    policy: Annotated[Any, At("policy", each=True)]
    audit: str | None
    audit_subject: str


class Synthesize(TypedDict):
    ckpt: str
    weights: str
    adapters: AdapterEntries
    adapter_scale: float
    trust: Paths | None
    device: str
    precision: Precision
    compile: bool
    n: Count
    prompts: Prompts | None
    seed: Seed
    tries: Positive
    checker: bool
    duplicates: Literal["thumbnail", "pdq"] | None
    distance: Annotated[float, Within(0, 256)] | None
    train_pictures: Count | None
    batch_size: Batch | Literal["auto"]
    devices: Positive
    out: str
    format: Literal["imagefolder", "webdataset", "parquet"]
    shard_size: Positive
    sheet: NotNegative
    sampler: Samplers
    grid: RunsGrid
    guidance: Annotated[Any, At("run's guidance")]
    cache: Annotated[Any, At("cache")] | None
    recipe: Annotated[Any, At("run's recipe")]


class Calibrate(TypedDict):
    concept: str
    texts: str | Sequence[str] | None
    pictures: str
    examples: str | None
    rate: Share
    size: Sizes | None
    batch_size: Batch
    device: str
    out: str
    extractor: Annotated[Any, At("extractor")]


class ServerLimits(TypedDict):
    pictures: Positive
    steps: Positive
    prompt_characters: Positive
    calls: Positive
    pending_calls: Positive
    requests: Positive
    body_bytes: Positive


class Serve(TypedDict):
    ckpt: str | None
    trust: Paths | None
    weights: str
    adapters: AdapterEntries
    adapter_scale: float
    device: str
    precision: Precision
    host: str
    port: Annotated[int, Within(0, 65535)]
    model: str | None
    steps: Steps | None
    sizes: Sizes | None
    max_rows: Positive
    key_file: str | None
    new_key: str | None
    calls_per_day: Positive | None
    drain_seconds: Annotated[float, Within(0)]
    limits: ServerLimits
    sampler: Samplers
    grid: RunsGrid
    guidance: Annotated[Any, At("run's guidance")]


class Export(TypedDict):
    ckpt: str
    trust: Paths | None
    weights: str
    adapters: AdapterEntries
    adapter_scale: float
    out: str
    format: str


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


class Verify(TypedDict):
    file: str
    anchors: str | None
    key: str | None
    size: Sizes | None


class Authority(TypedDict):
    out: str
    days: NotNegative


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
