"""Samples of diffusers pipelines: loaded safely, one seed for each picture, network evaluations counted."""

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
from dit.evaluation.diffusers_lora import load_loras
from dit.files import read_json, sha256_of
from dit.hub import BROKEN, offline
from dit.scoring.samples import Done, SampleBatch, to_uint8
from dit.tensors import fingerprint

INDEX = "model_index.json"
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt")  # those that are loaded are hashed by their tensors
REQUIRED = {"num_inference_steps", "guidance_scale", "generator", "output_type"}


class DiffusersModel:
    """A text-to-image or class-to-image (`DiTPipeline`) pipeline folder of diffusers. A class prompt is the number or
    a name of the class. options: further arguments of the pipeline's call, e.g. height or max_sequence_length. lora:
    files, or folders of one file, that its own loader adds; `scale_lora` sets their weight, which is 1 at first.

    Loads safetensors only, nothing from the network and no code from the folder. Raises ValueError if the folder needs
    more than that, for a pipeline of another task, and for unknown options.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        options: Mapping[str, Any] | None = None,
        lora: Sequence[str | Path] = (),
    ) -> None:
        self.folder, self.device, self.dtype, self.options = Path(folder), torch.device(device), dtype, options or {}
        self.pipe = load_pipeline(self.folder, dtype).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        if getattr(self.pipe, "safety_checker", None) is not None:
            self.pipe.safety_checker = None  # it would replace pictures by black ones without an error
        self.name = type(self.pipe).__name__
        known = set(inspect.signature(type(self.pipe).__call__).parameters)
        self.condition_argument = "class_labels" if "class_labels" in known else "prompt"
        required = {self.condition_argument, *REQUIRED}
        denoiser = getattr(self.pipe, "transformer", None) or getattr(self.pipe, "unet", None)
        if not required <= known or known & {"image", "num_frames"} or not isinstance(denoiser, nn.Module):
            raise ValueError(f"{folder} is a {self.name}, which does not sample pictures from texts or classes only")
        if unknown := set(self.options) - (optional := known - required - {"self", "return_dict"}):
            raise ValueError(f"{self.name} has no options {', '.join(sorted(unknown))}; use {', '.join(optional)}")
        self.denoiser: Any = denoiser
        self.per_sample = False  # whether each picture must be sampled in a separate batch
        self.takes_size = {"height", "width"} <= known
        modules = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        self.weights = {name: fingerprint(part) for name, part in sorted(modules.items())}
        self.lora = load_loras(self.pipe, lora)

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height) of its pictures if no size is given: that of the options, of the pipeline's defaults, or
        of the latents that the network was trained on. A sweep compares it with that of the pictures. Raises ValueError
        if none of these is known."""
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        trained = getattr(self.pipe, "default_sample_size", None) or self.denoiser.config.get("sample_size")
        cells = [trained, trained] if isinstance(trained, int) else list(trained or (0, 0))  # height, width
        found = []
        for name, side in zip(("height", "width"), cells, strict=True):
            default = parameters[name].default if name in parameters else None
            found.append(self.options.get(name) or default or side * self._factor)
        if not all(found):
            raise ValueError(f"{self.folder}: {self.name} names no size of its pictures; give size=[WIDTH,HEIGHT]")
        return found[1], found[0]

    @property
    def _factor(self) -> int:
        """Pixels of a side per latent cell; 1 without an autoencoder."""
        if hasattr(self.pipe, "vae_scale_factor"):
            return int(self.pipe.vae_scale_factor)
        vae = self.pipe.components.get("vae")
        return 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def description(self) -> dict[str, Any]:
        """Everything that its pictures depend on besides prompts, seeds, steps and scale, as plain values for a
        card."""
        scheduler = self.pipe.scheduler
        config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        found = {
            "kind": self.name,
            "weights": self.weights,
            "files": settings_files(self.folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "scheduler": {"class": type(scheduler).__name__, **config},
            "options": dict(self.options),
            **({"lora": self.lora} if self.lora else {}),
        }
        return json.loads(json.dumps(found, default=str, sort_keys=True))

    def scale_lora(self, scale: float) -> None:
        """Sets the weight of all LoRA files; at 0 the pictures are those of the pipeline alone."""
        if self.lora:
            self.pipe.set_adapters([f"lora_{i}" for i in range(len(self.lora))], [scale] * len(self.lora))

    def sample(
        self,
        prompts: Sequence[str],
        seed: int,
        steps: int,
        guidance_scale: float,
        batch_size: int,
        done: Done = lambda images: None,
        size: tuple[int, int] | None = None,
    ) -> Iterator[SampleBatch]:
        """Returns this rank's share of a picture for every prompt. Calls `done` with the number in each batch. size:
        (width, height), or None for `self.size`.

        Picture i depends on prompt i and `seed` + i only; it starts from the noise from which a run of dit starts for
        that seed. Raises ValueError before the first batch if a prompt is not a class of the model, or if it samples
        one size only.
        """
        if steps < 1 or batch_size < 1 or not prompts:
            raise ValueError(f"steps={steps}, batch_size={batch_size}, {len(prompts)} prompts: each must be at least 1")
        by_class = self.condition_argument == "class_labels"
        conditions = self.classes(prompts, guidance_scale) if by_class else list(prompts)
        settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "pt", **self.options}
        if size is not None and not self.takes_size:
            width, height = self.size
            raise ValueError(f"size={list(size)}: {self.name} samples pictures of {width}x{height} only; omit size")
        settings |= {} if size is None else {"width": size[0], "height": size[1]}

        def batches() -> Iterator[SampleBatch]:
            for rows in rank_batches(len(prompts), batch_size):
                start = time.perf_counter()
                images, evaluations = self._batch([conditions[i] for i in rows], [seed + i for i in rows], settings)
                seconds = time.perf_counter() - start
                pixels, broken = to_uint8(images * 2 - 1)
                done(len(rows))
                yield SampleBatch(pixels, [prompts[i] for i in rows], rows, evaluations / len(rows), seconds, broken)

        return batches()

    def classes(self, prompts: Sequence[str], guidance_scale: float) -> list[int]:
        """Returns the class of each prompt, which is its number or one of its names."""
        count, names = self.denoiser.config.num_embeds_ada_norm, self.pipe.labels
        if guidance_scale > 1 and count != 1000:
            raise ValueError(
                f"guidance_scale={guidance_scale}: {self.name} guides away from class 1000, and this model has {count} "
                f"classes; use guidance_scale=1"
            )
        # DiTPipeline splits the names of a class, "tench, Tinca tinca", at the commas.
        found = [int(p) if p.isdecimal() else names.get(p, names.get(p.split(",")[0].strip(), -1)) for p in prompts]
        for prompt, label in zip(prompts, found, strict=True):
            if not 0 <= label < count:
                raise ValueError(
                    f"prompt {prompt!r} is not a class of {self.folder}: give a number below {count} or a name"
                )
        return found

    def _batch(
        self, conditions: Sequence[Any], seeds: Sequence[int], settings: Mapping[str, Any]
    ) -> tuple[Tensor, int]:
        """Returns (B, 3, H, W) float32 on the CPU, about in [0, 1], and the number of rows the denoiser evaluated."""
        if self.per_sample and len(seeds) > 1:
            parts = [self._batch([one], [seed], settings) for one, seed in zip(conditions, seeds, strict=True)]
            return torch.cat([images for images, _ in parts]), sum(count for _, count in parts)
        with (
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            counted_rows(self.denoiser) as rows,
        ):
            torch.manual_seed(generator(seeds[0], 1).initial_seed())
            before = self._global_rng_state()
            generators = [generator(seed, 0) for seed in seeds]
            try:
                images = self.pipe(
                    **{self.condition_argument: list(conditions)}, generator=generators, **settings
                ).images
            except (ValueError, TypeError, AttributeError, NotImplementedError, ImportError) as error:
                raise ValueError(f"{self.name} of {self.folder} fails: {first_line(error)}") from error
            used_global_generator = not torch.equal(before, self._global_rng_state())
        if not isinstance(images, Tensor) or images.shape[:2] != (len(conditions), 3):
            raise ValueError(f"{self.folder}: {self.name} did not give a picture of three channels for each prompt")
        if used_global_generator and len(seeds) > 1:  # a batch would share it
            self.per_sample = True
            return self._batch(conditions, seeds, settings)
        return images.float().cpu(), sum(rows)

    def _global_rng_state(self) -> Tensor:
        """Returns the state of torch's global generators."""
        states = [torch.get_rng_state()]
        return torch.cat([*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states)


def settings_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file besides the weights: the settings of all parts, and the tokenizers."""
    names = [INDEX, *(name for name, part in read_json(folder / INDEX).items() if isinstance(part, list))]
    files = [file for name in names for file in (folder / name, *(folder / name).glob("*"))]
    kept = [file for file in sorted(set(files)) if file.is_file() and file.suffix not in WEIGHTS]
    return {str(file.relative_to(folder)): sha256_of(file) for file in kept}


@contextmanager
def counted_rows(net: nn.Module) -> Iterator[list[int]]:
    """Yields a list that gets the batch size of each forward pass inside the `with` block."""
    rows: list[int] = []
    hook = net.register_forward_hook(lambda module, inputs, output: rows.append(len(output[0])))
    try:
        yield rows
    finally:
        hook.remove()


def load_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """Returns the diffusers pipeline of a folder. Raises ValueError if there is none or it cannot be loaded safely."""
    import diffusers

    try:
        index = read_json(folder / INDEX)
        name = index["_class_name"]
        parts = [part[0] for key, part in index.items() if not key.startswith("_") and isinstance(part, list)]
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ValueError(f"{folder} is not a diffusers pipeline: its {INDEX} is missing or broken") from None
    if code := next(folder.rglob("*.py"), None):
        raise ValueError(f"{folder} contains code, {code.relative_to(folder)}, which is not run here; remove it")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ValueError(f"{folder} is a {name}, which is not a pipeline of diffusers {diffusers.__version__}")
    for part in parts:
        if part not in (None, "diffusers", "transformers") and not hasattr(diffusers.pipelines, str(part)):
            raise ValueError(f"{folder} has a part of the library {part}; only diffusers and transformers are loaded")
    diffusers.utils.logging.disable_progress_bar()
    precision = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"
    low_memory = diffusers.utils.is_accelerate_available()  # diffusers needs accelerate for it
    settings = {precision: dtype, "low_cpu_mem_usage": low_memory, "use_safetensors": True, "local_files_only": True}
    try:
        with offline():
            return kind.from_pretrained(folder, **settings)
    except (*BROKEN, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} cannot be loaded ({first_line(error)}); its weights must be safetensors") from None
