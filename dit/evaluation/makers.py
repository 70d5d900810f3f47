"""What makes the pictures of a cell that are not sampled from a run: somebody's pictures, or a pipeline of diffusers.

Each maker gives the pictures of this process's rank, as `dit.scoring.samples.sample_prompts` does for runs.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit.diffusion.noise import generator
from dit.distributed import rank_batches
from dit.errors import first_line
from dit.files import read_json
from dit.hub import BROKEN, offline
from dit.scoring.references import subset_indices
from dit.scoring.samples import Done, SampleBatch, to_uint8
from dit.tensors import fingerprint
from dit.types import CaptionedImages

INDEX = "model_index.json"
NEEDED = {"num_inference_steps", "guidance_scale", "generator", "output_type"}


def given(
    source: CaptionedImages,
    prompts: Sequence[str],
    batch_size: int,
    done: Done = lambda images: None,
) -> Iterator[SampleBatch]:
    """Pictures of a source, chosen by `subset_indices`, one for each prompt, which is what it should show; `done`
    gets the number of pictures in each batch. Raises ValueError, at once, where the source has fewer."""
    n = len(prompts)
    if n < 1 or batch_size < 1:
        raise ValueError(f"n={n} and batch_size={batch_size} must be at least 1")
    if n > len(source):
        raise ValueError(f"n={n} pictures are to be scored, and there are {len(source)}; say n={len(source)} or less")

    places = subset_indices(len(source), n)

    def batches() -> Iterator[SampleBatch]:
        for rows in rank_batches(n, batch_size):
            images = torch.from_numpy(source.images(places[rows]))
            done(len(rows))
            yield SampleBatch(images, [prompts[i] for i in rows], rows)

    return batches()


class DiffusersModel:
    """A pipeline folder of diffusers, from text or, as DiTPipeline, from classes, which are asked for by their number
    or their name. options: further arguments of its call, e.g. height or max_sequence_length.

    Only safetensors are loaded, and nothing from the network or from code in the folder. Raises ValueError where that
    is not enough, for a pipeline of another task, and for options that it does not have.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.device, self.dtype, self.options = Path(folder), torch.device(device), dtype, options or {}
        self.pipe = load_pipeline(self.folder, dtype).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        if getattr(self.pipe, "safety_checker", None) is not None:
            self.pipe.safety_checker = None  # it would blacken pictures unseen
        self.name = type(self.pipe).__name__
        takes = set(inspect.signature(type(self.pipe).__call__).parameters)
        self.asks = "class_labels" if "class_labels" in takes else "prompt"
        denoiser = getattr(self.pipe, "transformer", None) or getattr(self.pipe, "unet", None)
        if not {self.asks, *NEEDED} <= takes or takes & {"image", "num_frames"} or not isinstance(denoiser, nn.Module):
            raise ValueError(f"{folder} is a {self.name}, which makes no pictures from texts or classes alone")
        if unknown := set(self.options) - (takes - {"self", "return_dict", self.asks, *NEEDED}):
            raise ValueError(f"{self.name} has no options {', '.join(sorted(unknown))}; it takes {', '.join(takes)}")
        self.denoiser: Any = denoiser
        self.alone = False  # whether each picture must be made by itself
        modules = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        self.weights = {name: fingerprint(part) for name, part in sorted(modules.items())}

    @property
    def described(self) -> dict[str, Any]:
        """All that its pictures depend on besides prompts, seeds, steps and scale, for a card: plain values."""
        scheduler = self.pipe.scheduler
        config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        told = {
            "kind": self.name,
            "weights": self.weights,
            "dtype": str(self.dtype).removeprefix("torch."),
            "scheduler": {"class": type(scheduler).__name__, **config},
            "options": dict(self.options),
        }
        return json.loads(json.dumps(told, default=str, sort_keys=True))

    def made(
        self,
        prompts: Sequence[str],
        seed: int,
        steps: int,
        guidance_scale: float,
        batch_size: int,
        done: Done = lambda images: None,
    ) -> Iterator[SampleBatch]:
        """A picture for every prompt. That of place i comes from `seed` + i alone, and begins with the noise that a run
        of our own begins with for this seed. Raises ValueError, at once, for prompts that name no class of the model.
        """
        if steps < 1 or batch_size < 1 or not prompts:
            raise ValueError(f"steps={steps}, batch_size={batch_size}, {len(prompts)} prompts: each must be at least 1")
        asked = self.classes(prompts, guidance_scale) if self.asks == "class_labels" else list(prompts)
        settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "pt", **self.options}

        def batches() -> Iterator[SampleBatch]:
            for rows in rank_batches(len(prompts), batch_size):
                start = time.perf_counter()
                images, evaluations = self._draw([asked[i] for i in rows], [seed + i for i in rows], settings)
                seconds = time.perf_counter() - start
                pixels, broken = to_uint8(images * 2 - 1)
                done(len(rows))
                yield SampleBatch(pixels, [prompts[i] for i in rows], rows, evaluations / len(rows), seconds, broken)

        return batches()

    def classes(self, prompts: Sequence[str], guidance_scale: float) -> list[int]:
        """The class that each prompt is the number or a name of."""
        count, names = self.denoiser.config.num_embeds_ada_norm, self.pipe.labels
        if guidance_scale > 1 and count != 1000:
            raise ValueError(
                f"guidance_scale={guidance_scale}: {self.name} leads away from class 1000, and this model has {count} "
                f"classes; say guidance_scale=1"
            )
        # DiTPipeline takes a class's name, "tench, Tinca tinca", apart at the commas.
        found = [int(p) if p.isdecimal() else names.get(p, names.get(p.split(",")[0].strip(), -1)) for p in prompts]
        for prompt, label in zip(prompts, found, strict=True):
            if not 0 <= label < count:
                raise ValueError(
                    f"prompt {prompt!r} is no class of {self.folder}: give a number below {count} or a name"
                )
        return found

    def _draw(self, asked: Sequence[Any], seeds: Sequence[int], settings: Mapping[str, Any]) -> tuple[Tensor, int]:
        """(B, 3, H, W) float32 on the CPU, about in [0, 1], and how many rows the denoiser has seen."""
        if self.alone and len(seeds) > 1:
            parts = [self._draw([one], [seed], settings) for one, seed in zip(asked, seeds, strict=True)]
            return torch.cat([images for images, _ in parts]), sum(count for _, count in parts)
        with (
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            counting(self.denoiser) as rows,
        ):
            torch.manual_seed(generator(seeds[0], 1).initial_seed())
            before = self._global_rng_state()
            generators = [generator(seed, 0) for seed in seeds]
            try:
                images = self.pipe(**{self.asks: list(asked)}, generator=generators, **settings).images
            except (ValueError, TypeError, AttributeError, NotImplementedError, ImportError) as error:
                raise ValueError(f"{self.name} of {self.folder} fails: {first_line(error)}") from error
            drawn = not torch.equal(before, self._global_rng_state())
        if not isinstance(images, Tensor) or images.shape[:2] != (len(asked), 3):
            raise ValueError(f"{self.folder}: {self.name} did not give a picture of three channels for each prompt")
        if drawn and len(seeds) > 1:  # its scheduler asks the global generator, which a batch would share
            self.alone = True
            return self._draw(asked, seeds, settings)
        return images.float().cpu(), sum(rows)

    def _global_rng_state(self) -> Tensor:
        """The state of the generators that are global."""
        states = [torch.get_rng_state()]
        return torch.cat([*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states)


@contextmanager
def counting(net: nn.Module) -> Iterator[list[int]]:
    """The rows of each forward pass while this lasts."""
    rows: list[int] = []
    hook = net.register_forward_hook(lambda module, inputs, output: rows.append(len(output[0])))
    try:
        yield rows
    finally:
        hook.remove()


def load_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """Raises ValueError where the folder holds no pipeline, or one that cannot be loaded safely."""
    import diffusers

    try:
        index = read_json(folder / INDEX)
        name = index["_class_name"]
        parts = [part[0] for key, part in index.items() if not key.startswith("_") and isinstance(part, list)]
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ValueError(f"{folder} is no pipeline of diffusers: it has no {INDEX}, or not a whole one") from None
    if code := next(folder.rglob("*.py"), None):
        raise ValueError(f"{folder} holds code, {code.relative_to(folder)}, which is not run here; take it away")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ValueError(f"{folder} is a {name}, which is no pipeline of diffusers {diffusers.__version__}")
    for part in parts:
        if part not in (None, "diffusers", "transformers") and not hasattr(diffusers.pipelines, str(part)):
            raise ValueError(f"{folder} has a part of the library {part}; only diffusers and transformers are loaded")
    diffusers.utils.logging.disable_progress_bar()
    precision = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"
    sparing = diffusers.utils.is_accelerate_available()  # without it diffusers would ask for it
    settings = {precision: dtype, "low_cpu_mem_usage": sparing, "use_safetensors": True, "local_files_only": True}
    try:
        with offline():
            return kind.from_pretrained(folder, **settings)
    except (*BROKEN, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} cannot be loaded ({first_line(error)}); its weights must be safetensors") from None
