"""Schema of the commands that make, serve, check and sign pictures; part of `dit.config`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypedDict

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
    Within,
)
from dit.places import At, RunsGrid, Samplers, Sizes

Marks = Annotated[Any, At("marks")] | None


class RunWeights(TypedDict):
    """Keys of the commands that load the weights of a run."""

    trust: Paths | None
    weights: str
    adapters: AdapterEntries
    adapter_scale: float


class SampledRun(RunWeights):
    """Keys of the commands that sample from a run."""

    device: str
    precision: Precision
    sampler: Samplers
    grid: RunsGrid
    guidance: Annotated[Any, At("run's guidance")]


class PriceOf(TypedDict):
    price_per_hour: Annotated[float, Within(0)] | None
    currency: str | None


class Delivered(TypedDict):
    """Keys of the commands that give pictures to others."""

    policy: Annotated[Any, At("policy", each=True)]
    marks: Marks
    certificate: str | None
    certificate_key: str | None
    audit: str | None
    audit_subject: str
    cost: PriceOf
    review: str | None


class Generate(SampledRun, Delivered):
    ckpt: Paths
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
    encoding: Literal["png", "jpeg", "webp"]
    quality: Annotated[int, Within(1, 100)]
    shard_size: Positive
    sheet: NotNegative
    replace: bool
    measure: Count | None
    cache: Annotated[Any, At("cache")] | None
    recipe: Annotated[Any, At("run's recipe")]


class Synthesize(SampledRun, Delivered):
    ckpt: str
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
    pending_requests: Positive
    requests: Positive
    body_bytes: Positive
    picture_bytes: Positive
    picture_pixels: Positive


class Serve(SampledRun, Delivered):
    ckpt: str | None
    host: str
    port: Annotated[int, Within(0, 65535)]
    model: str | None
    steps: Steps | None
    sizes: Sizes | None
    max_rows: Positive
    picture_cache: str | None
    picture_cache_mb: Positive
    key_file: str | None
    new_key: str | None
    calls_per_day: Positive | None
    anchors: str | None
    drain_seconds: Annotated[float, Within(0)]
    limits: ServerLimits


class Verify(TypedDict):
    file: str
    anchors: str | None
    marks: Marks
    ckpt: str | None
    weights: str
    trust: Paths | None
    device: str
    prompt: str | None
    seeds: Seed | Sequence[Seed] | str | None
    size: Sizes | None


class Authority(TypedDict):
    out: str
    days: NotNegative
