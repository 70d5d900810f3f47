"""The text encoders of a run as parts of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from dit.backbones.dit import DiT
from dit.backbones.flux import Flux
from dit.backbones.mmdit import MMDiT
from dit.backbones.pixart import PixArt
from dit.encoders.huggingface import ClipText, T5Text
from dit.encoders.joined import Joined
from dit.types import TextEncoder


def leaves(encoder: Any) -> list[Any]:
    """Returns the single encoders of a joined encoder."""
    return [leaf for part in encoder.parts for leaf in leaves(part)] if isinstance(encoder, Joined) else [encoder]


def reads_as_pixart(parts: list[Any]) -> bool:
    """Whether this is a T5 without padding, with the empty text as the null condition."""
    return [type(part) for part in parts] == [T5Text] and not (parts[0].keep_padding or parts[0].zero_null)


def reads_as_sd3(parts: list[Any]) -> bool:
    """Whether these are the encoders of `stable_diffusion_3`, with the empty text as the null condition."""
    if [type(part) for part in parts] != [ClipText, ClipText, T5Text]:
        return False
    clips = [
        part.kind == "CLIPTextModelWithProjection"
        and part.hidden_index == part.net.config.num_hidden_layers - 1
        and not part.normalize
        for part in parts[:2]
    ]
    return all(clips) and all(part.keep_padding and not part.zero_null for part in parts)


def reads_as_flux(parts: list[Any]) -> bool:
    """Whether these are the encoders of `flux`, with the empty text as the null condition."""
    kinds = [type(part) for part in parts] == [ClipText, T5Text] and parts[0].kind == "CLIPTextModel"
    return kinds and all(part.keep_padding and not part.zero_null for part in parts)


class Texts(NamedTuple):
    """The ends of the names of a pipeline's encoders, the number of tokens that it usually encodes, and whether a list
    of encoders reads texts as it does."""

    ends: Sequence[str]
    length: int
    reads: Callable[[list[Any]], bool]


TEXTS: dict[type[nn.Module], Texts] = {
    PixArt: Texts([""], 120, reads_as_pixart),
    MMDiT: Texts(["", "_2", "_3"], 256, reads_as_sd3),
    Flux: Texts(["", "_2"], 512, reads_as_flux),
}


def text_parts(backbone: nn.Module, encoder: TextEncoder) -> tuple[dict[str, Any], list[str]]:
    """Returns the networks and tokenizers of transformers by their names in the pipeline, and lines for the user."""
    if isinstance(backbone, DiT):
        classes = encoder.sizes.get("classes", 1000)
        odd = f"DiTPipeline has 1000 classes, and this model {classes}: call it only with guidance_scale=1"
        return {}, [] if classes == 1000 else [odd]
    ends, usual, reads = TEXTS[type(backbone)]
    parts = leaves(encoder)
    names = [f"{name}{end}" for end in ends for name in ("tokenizer", "text_encoder")]
    if not reads(parts):
        absent = ", ".join(f"{name}=None" for name in names)
        return {}, [
            f"its text encoder is not the pipeline's: call from_pretrained(FOLDER, {absent}) and give embeddings"
        ]
    found = [item for part in parts for item in (part.tokenizer, part.net)]
    length = parts[-1].length
    return dict(zip(names, found, strict=True)), [] if length == usual else [
        f"call it with max_sequence_length={length}"
    ]
