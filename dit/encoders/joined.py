"""Text encoders that concatenate the states of several others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from dit.encoders.huggingface import ClipText, T5Text
from dit.types import Condition, TextEncoder


class Joined:
    """Base class of joined text encoders. Each part encodes the whole prompt; pooled vectors are concatenated."""

    length: int
    sizes: dict[str, int]

    def __init__(self, parts: Sequence[TextEncoder]) -> None:
        lacking = [type(part).__name__ for part in parts if "token_dim" not in part.sizes]
        if not parts or lacking:
            raise ValueError(f"text_encoder.parts={lacking}: give at least one encoder, each with states of tokens")
        self.parts = list(parts)
        pooled = sum(part.sizes.get("pooled_dim", 0) for part in parts)
        self.sizes = {"pooled_dim": pooled} if pooled else {}

    def join(self, tokens: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        names = [type(self).__name__, *(part.fingerprint for part in self.parts)]
        return hashlib.sha256(repr(names).encode()).hexdigest()[:16]

    def to(self, device: torch.device | str) -> Joined:
        for part in self.parts:
            part.to(device)
        return self

    def fit(self, prompts: Sequence[str]) -> list[str]:
        """Returns each prompt truncated as by the part that keeps most of it. Each part prints its own warnings."""
        return [max(fitted, key=len) for fitted in zip(*(part.fit(prompts) for part in self.parts), strict=True)]

    def encode(self, prompts: Sequence[str]) -> Condition:
        """tokens: (B, length, token_dim), mask: (B, length), pooled: (B, pooled_dim) or None."""
        return self._joined([part.encode(prompts) for part in self.parts])

    def null(self) -> Condition:
        """Returns the joined null conditions of the parts."""
        return self._joined([part.null() for part in self.parts])

    def _joined(self, conditions: list[Condition]) -> Condition:
        tokens, mask = self.join(
            [c.tokens for c in conditions if c.tokens is not None], [c.mask for c in conditions if c.mask is not None]
        )
        pooled = [c.pooled for c in conditions if c.pooled is not None]
        return Condition(tokens=tokens, mask=mask, pooled=torch.cat(pooled, dim=1) if pooled else None)


class AlongFeatures(Joined):
    """Concatenates the states of each token along features, for encoders with the same tokenizer (SD3's two CLIPs)."""

    def __init__(self, parts: Sequence[TextEncoder]) -> None:
        super().__init__(parts)
        lengths = {part.length for part in parts}
        if len(lengths) > 1:
            raise ValueError(f"text_encoder.parts of {sorted(lengths)} tokens cannot be joined along the features")
        self.length = lengths.pop()
        self.sizes["token_dim"] = sum(part.sizes["token_dim"] for part in parts)

    def join(self, tokens: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.cat(tokens, dim=2), torch.stack(masks).any(0)


class AlongTokens(Joined):
    """Concatenates the states of the parts along tokens, padded with zeros to the widest part. Real tokens are moved
    before the padding."""

    def __init__(self, parts: Sequence[TextEncoder]) -> None:
        super().__init__(parts)
        self.length = sum(part.length for part in parts)
        self.sizes["token_dim"] = max(part.sizes["token_dim"] for part in parts)

    def join(self, tokens: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        width = self.sizes["token_dim"]
        wide = torch.cat([F.pad(t, (0, width - t.shape[2])) for t in tokens], dim=1)  # (B, length, width)
        mask = torch.cat(masks, dim=1)  # (B, length)
        order = (~mask).int().argsort(dim=1, stable=True)
        return wide.gather(1, order[..., None].expand_as(wide)), mask.gather(1, order)


class PooledBeside(Joined):
    """The tokens of the last part alone, with the pooled vectors of all parts."""

    def __init__(self, parts: Sequence[TextEncoder]) -> None:
        super().__init__(parts)
        self.length, self.sizes["token_dim"] = parts[-1].length, parts[-1].sizes["token_dim"]

    def join(self, tokens: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        return tokens[-1], masks[-1]


def stable_diffusion_3(name: str, length: int = 256, dtype: str = "float32", zero_null: bool = False) -> AlongTokens:
    """Returns the three encoders of Stable Diffusion 3 (arXiv:2403.03206), joined; padding is encoded as text.

    The second-to-last layers of CLIP-L and CLIP-G are joined along features; T5's `length` tokens come after them.

    name: a folder or a hub name in the layout of diffusers' pipeline, with text_encoder, text_encoder_2,
    text_encoder_3 and a tokenizer beside each.
    """
    clips = [
        ClipText(
            name,
            projection=True,
            layer=-2,
            normalize=False,
            subfolder=f"text_encoder{number}",
            tokenizer=f"tokenizer{number}",
            dtype=dtype,
            keep_padding=True,
            zero_null=zero_null,
        )
        for number in ("", "_2")
    ]
    t5 = T5Text(name, length, "text_encoder_3", "tokenizer_3", dtype, keep_padding=True, zero_null=zero_null)
    return AlongTokens([AlongFeatures(clips), t5])


def flux(name: str, length: int = 512, dtype: str = "float32", zero_null: bool = False) -> PooledBeside:
    """Returns the two encoders of FLUX.1, joined: `length` tokens of T5, whose padding is encoded as text, and the
    pooled vector of CLIP-L.

    name: a folder or a hub name in the layout of diffusers' pipeline, with text_encoder, text_encoder_2 and a tokenizer
    beside each.
    """
    clip = ClipText(
        name, subfolder="text_encoder", tokenizer="tokenizer", dtype=dtype, keep_padding=True, zero_null=zero_null
    )
    t5 = T5Text(name, length, "text_encoder_2", "tokenizer_2", dtype, keep_padding=True, zero_null=zero_null)
    return PooledBeside([clip, t5])
