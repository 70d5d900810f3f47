"""Schema of the parts of a config: the places that there are, and which parts of dit each accepts. A command line may
name code of other packages, a file only with consent. Slow imports happen only when a part is checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from dit.annotations import Batch, Count, Depth, NotNegative, Positive, Seed, Share, Steps, Width, Within


@dataclass(frozen=True)
class Place:
    """Describes the parts that a place of the config accepts.

    home: the package or module of dit that defines them, or the full name of the only one. gives: the full name of
    their type. parts: the places inside, by parameter. given: the parameters that code passes. typed: annotations that
    replace or narrow those of the part. open: parameters that may be null until a run fills them. partial: the part is
    called later and then returns the type in `gives`. run: without a _target_ the place means the part of the run that
    a command reads, with the given settings changed.
    """

    home: str
    gives: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    given: Sequence[str] = ()
    typed: Mapping[str, Any] = field(default_factory=dict)
    open: Sequence[str] = ()
    partial: bool = False
    run: bool = False


@dataclass(frozen=True)
class At:
    """Marks a key of a command as a place. each: it holds parts by name, or null for an omitted one. listed:
    parameters that may be lists of values to evaluate."""

    place: str
    each: bool = False
    listed: Sequence[str] = ()


Samplers = Annotated[Any, At("sampler", each=True)]
RunsGrid = Annotated[Any, At("run's grid")]
Workers = Annotated[int, Within(0, 256)]
Sizes = Width | tuple[Width, Width] | Sequence[tuple[Width, Width]]  # a square, [WIDTH,HEIGHT], or a list of such pairs
# Bounds by parameter name; a name means the same in every part of dit.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("patch", "width", "heads", "length", "size"), Width),
    **dict.fromkeys(("depth", "encoder_depth", "text_depth", "registers", "dual", "overlap"), Depth),
    **dict.fromkeys(("steps", "total"), Steps),
    **dict.fromkeys(("n", "count", "val_limit", "splits", "subsets", "subset_size"), Count),
    **dict.fromkeys(("batch_size", "slice_size"), Batch),
    **dict.fromkeys(("keep", "columns", "fake_updates"), Positive),
    "references": Count | None,  # null: by the number of real pictures
    "single_depth": Depth | None,  # null: twice `depth`
    **dict.fromkeys(("every", "patience"), Positive | None),  # null: never
    "warmup_calls": Positive,
    "most_reuses": Positive | None,
    "mlp_ratio": Annotated[float, Within(0.01, 64)],
    "refresh_rate": NotNegative,
    "seed": Seed,
    "workers": Workers,
}
SPLITS = ("train", "val", "unseen", "extra", "subject")
MODEL = ("width", "depth", "heads")  # chosen by budget_minutes if null
CONDITIONS = ("channels", "outputs", "classes", "token_dim", "pooled_dim")
PLACES = {
    "backbone": Place("dit.backbones", "torch.nn.Module", {"norm": "norm", "mlp": "mlp"}, CONDITIONS, open=MODEL),
    "adapter": Place("dit.adapters", "dit.types.Adapter", {"conditions": "conditions"}),
    "conditions": Place("dit.adapters.extra.ExtraConditions"),
    "norm": Place("dit.layers.norm", "torch.nn.Module", given=("dim",), partial=True),
    "mlp": Place("dit.layers.mlp", "torch.nn.Module", given=("dim", "hidden"), partial=True),
    "autoencoder": Place("dit.encoders", "dit.types.Autoencoder"),
    "text_encoder": Place("dit.encoders", "dit.types.TextEncoder", open=("words", "names")),
    "path": Place("dit.diffusion.path", "dit.diffusion.process.Process", {"betas": "betas"}),
    "betas": Place("dit.diffusion.path", "torch.Tensor", {"betas": "betas"}),
    "prediction": Place(
        "dit.diffusion.prediction", "dit.diffusion.process.NetworkOutput", {"c_noise": "c_noise", "mean": "prediction"}
    ),
    "c_noise": Place("dit.diffusion.prediction", "dit.diffusion.prediction.TimeConditioning"),
    "density": Place("dit.diffusion", "dit.diffusion.time.Density", {"density": "density", "shift": "shift"}),
    "shift": Place("dit.diffusion.resolution", "dit.diffusion.resolution.Shift"),
    "weighting": Place("dit.diffusion.objective", "dit.diffusion.objective.Weighting"),
    "objective": Place(
        "dit.diffusion",
        "dit.diffusion.objective.TrainingObjective",
        {"density": "density", "weighting": "weighting", "identity": "identity", "grid": "grid"},
        ("path", "prediction", "teacher"),
    ),
    "identity": Place("dit.diffusion.flow_map", "dit.diffusion.flow_map.Identity"),
    "sampler": Place(
        "dit.diffusion.sampler", "dit.diffusion.sampler.transition.Sampler", {"rule": "rule", "diffusion": "diffusion"}
    ),
    "rule": Place("dit.diffusion.sampler.multistep", "dit.diffusion.sampler.multistep.Rule"),
    "diffusion": Place("dit.diffusion.sampler.stochastic", "dit.diffusion.sampler.stochastic.Diffusion"),
    "grid": Place("dit.diffusion", "dit.diffusion.time.Grid", {"grid": "grid", "shift": "shift"}),
    "guidance": Place(
        "dit.diffusion.guidance",
        "dit.diffusion.guidance.Guidance",
        {"network": "network", "guidance": "inner guidance"},
    ),
    "inner guidance": Place("dit.diffusion.guidance"),
    "network": Place("dit.runs.network_of", "torch.nn.Module"),
    "cache": Place("dit.layers.step_cache", "dit.layers.step_cache.FirstBlockCache"),
    "recipe": Place(
        "dit.pipeline.Recipe.from_config",
        "dit.pipeline.Recipe",
        {"sampler": "sampler", "grid": "grid", "guidance": "guidance", "cache": "cache"},
    ),
    "optimizer": Place(
        "dit.training.optimizer", "torch.optim.Optimizer", given=("parameters",), open=("lr",), partial=True
    ),
    "lr_schedule": Place(
        "dit.training.optimizer",
        "torch.optim.lr_scheduler.LRScheduler",
        given=("optimizer", "steps"),
        open=("warmup",),
        partial=True,
    ),
    "callback": Place(
        "dit.training",
        "lightning.Callback",
        {"recipe": "recipe", "metric": "metric", "metrics": "metric"},
        typed={"size": Sizes | None},
        open=("decay",),
    ),
    "metric": Place("dit.metrics", "dit.metrics.base.ImageMetric", {"extractor": "extractor", "checker": "checker"}),
    "likelihood": Place("dit.evaluation.likelihood", "dit.evaluation.likelihood.BitsPerDim", {"grid": "grid"}),
    "extractor": Place("dit.metrics", "dit.metrics.extractors.Extractor"),
    "checker": Place("dit.data", "dit.types.Checker"),
    "policy": Place(
        "dit.generation", "dit.generation.policy.Rule", {"classifier": "classifier", "extractor": "extractor"}
    ),
    "marks": Place("dit.generation", "dit.generation.marks.Mark"),
    "classifier": Place("dit.generation.classifiers", "dit.generation.classifiers.PictureClassifier"),
    "data": Place("dit.data", "dit.data.module.PictureData", dict.fromkeys(SPLITS, "split")),
    "split": Place("dit.data", "dit.types.CaptionedImages", {"sources": "source"}, open=("path",)),
    "source": Place("dit.data", "dit.types.CaptionedImages", given=("size", "split"), open=("path",), partial=True),
    "trainer": Place(
        "lightning.Trainer",
        "lightning.Trainer",
        {"strategy": "strategy"},
        typed={
            **dict.fromkeys(("max_steps", "accumulate_grad_batches", "log_every_n_steps", "num_nodes"), Positive),
            "limit_val_batches": NotNegative | Share | None,
            "val_check_interval": Positive | Annotated[float, Within(1e-6, 1)] | None,
            "gradient_clip_val": Annotated[float, Within(0)] | None,
        },
        open=("max_steps",),
    ),
    "strategy": Place("dit.training.parallel", "lightning.pytorch.strategies.Strategy"),
}
PLACES["run's grid"] = replace(PLACES["grid"], run=True)
PLACES["run's guidance"] = replace(PLACES["guidance"], run=True, typed={"scale": float | None})
PLACES["run's recipe"] = replace(
    PLACES["recipe"],
    parts={"sampler": "sampler", "grid": "run's grid", "guidance": "run's guidance", "cache": "cache"},
)
# Metrics of pictures are in dit.metrics, metrics of the model in dit.evaluation.likelihood.
ALTERNATIVES = {"metric": "likelihood"}
# The class whose arguments the key `module` holds, by task.
MODULES = {
    "autoencoder": Place(
        "dit.training.autoencoder.AutoencoderModule", "", {"checker": "checker"}, ("optimizer", "schedule", "seed")
    ),
    "clip": Place("dit.training.clip.ClipModule", given=("captions", "optimizer", "schedule", "seed")),
}
