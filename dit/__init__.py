"""Train and evaluate diffusion transformers, with results that can be trusted.

The names below are the public API; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dit.components import component
    from dit.diffusion.denoiser import Denoiser
    from dit.diffusion.noise import Noise
    from dit.diffusion.objective import Objective
    from dit.layers.features import intermediate_features
    from dit.pipeline import Pipeline, Recipe
    from dit.runs import Run, from_config, load
    from dit.sample_grid import Samples
    from dit.scoring.score import score
    from dit.types import Condition, Draw

PLACES = {
    "component": "dit.components",
    "Condition": "dit.types",
    "Denoiser": "dit.diffusion.denoiser",
    "Draw": "dit.types",
    "Noise": "dit.diffusion.noise",
    "Objective": "dit.diffusion.objective",
    "Pipeline": "dit.pipeline",
    "Recipe": "dit.pipeline",
    "Run": "dit.runs",
    "Samples": "dit.pipeline",
    "from_config": "dit.runs",
    "intermediate_features": "dit.layers.features",
    "load": "dit.runs",
    "score": "dit.scoring.score",
}
__all__ = [
    "Condition",
    "Denoiser",
    "Draw",
    "Noise",
    "Objective",
    "Pipeline",
    "Recipe",
    "Run",
    "Samples",
    "component",
    "from_config",
    "intermediate_features",
    "load",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'dit' has no attribute {name!r}; it has {', '.join(sorted(PLACES))}")
    return getattr(import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*PLACES, "__version__"])
