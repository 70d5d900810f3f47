"""FLUX.1: MM-DiT's blocks of two streams, then blocks of one stream over text and image, with rotary embeddings along
three axes (Black Forest Labs 2024, https://github.com/black-forest-labs/flux)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.backbones.mmdit import Stream
from dit.layers.attention import Attention, attend, key_bias
from dit.layers.block import Head, init_weights
from dit.layers.constants import cached_tensor, compute_dtype
from dit.layers.embeddings import TimeEmbedding, axial_rotary, axis_widths, positions, rotate_neighbours
from dit.layers.mlp import Mlp
from dit.layers.modulation import Modulation, modulate
from dit.layers.norm import layer_norm
from dit.layers.patches import pack, unpack
from dit.layers.stack import RunBlocks, all_blocks
from dit.types import Condition

LONGEST = 10_000.0  # the base of the rotary frequencies


def shares(head: int) -> tuple[int, ...]:
    """Returns FLUX's widths of the axes of a head, 1/8, 7/16 and 7/16 of it: the index of an image, its rows, its
    columns."""
    image = 2 * int(head * 7 / 32)
    return head - 2 * image, image, image


@cached_tensor
def rotary_of(
    text: int, rows: int, columns: int, widths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns cosines and sines (2, text + rows * columns, head). Text is at position 0 of every axis, an image at
    index 0, its row and its column."""
    x, y = positions(rows, columns, 1.0, device)
    image = torch.stack([torch.zeros_like(y), y, x], dim=-1)  # (rows * columns, 3)
    return axial_rotary(torch.cat([image.new_zeros(text, 3), image]), widths, LONGEST).to(dtype)


class DoubleBlock(nn.Module):
    """Text and image as two streams with joint attention."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.text = Stream(dim, heads, mlp_ratio, True, layer_norm, Mlp)
        self.image = Stream(dim, heads, mlp_ratio, True, layer_norm, Mlp)

    def forward(
        self, text: Tensor, image: Tensor, vector: Tensor, bias: Tensor | None, rotary: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns text and image, in the shapes of the inputs. text: (B, L, D); image: (B, N, D); vector: (B, D);
        bias: the `key_bias` of L + N keys; rotary: (2, L + N, D / H)."""
        text_qkv, text_others = self.text.enter(text, vector)  # each (B, H, L, D / H)
        image_qkv, image_others = self.image.enter(image, vector)  # each (B, H, N, D / H)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(text_qkv, image_qkv, strict=True))
        y = attend(rotate_neighbours(q, rotary), rotate_neighbours(k, rotary), v, bias)  # (B, L + N, D)
        text_y, image_y = y.split([text.shape[1], image.shape[1]], dim=1)
        return self.text.leave(text, text_y, text_others), self.image.leave(image, image_y, image_others)


class SingleBlock(nn.Module):
    """Attention and MLP in parallel with one output layer (ViT-22B, Dehghani et al. 2023, arXiv:2302.05442)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm, self.modulation = layer_norm(dim), Modulation(dim, 3)
        self.attention, self.mlp = Attention(dim, heads), nn.Linear(dim, int(dim * mlp_ratio))
        del self.attention.out
        self.out = nn.Linear(dim + self.mlp.out_features, dim)

    def forward(self, x: Tensor, vector: Tensor, bias: Tensor | None, rotary: Tensor) -> Tensor:
        """Returns (B, L + N, D). x: (B, L + N, D); vector: (B, D); bias: the `key_bias` of L + N keys; rotary:
        (2, L + N, D / H)."""
        shift, scale, gate = self.modulation(vector)  # each (B, 1, D)
        y = modulate(self.norm(x), shift, scale)
        q, k, v = self.attention.project(y)  # each (B, H, L + N, D / H)
        attended = attend(rotate_neighbours(q, rotary), rotate_neighbours(k, rotary), v, bias)
        return x + gate * self.out(torch.cat([attended, F.gelu(self.mlp(y), approximate="tanh")], dim=-1))


class Flux(nn.Module):
    """FLUX.1. forward(x, time, condition): x (B, C, H, W), time (B,) in [0, 1000], text tokens (B, L, T), pooled text
    (B, P) -> (B, C, H, W).

    channels: C of the latents. token_dim, pooled_dim: T and P. depth, single_depth: the numbers of blocks of two
    streams and of one; None is twice `depth`. axes: the widths of a head for the three axes of the rotary embeddings,
    or None for FLUX's shares. guidance_scale: the scale that a guidance-distilled network (FLUX.1-dev) is conditioned
    on if the condition has no `guidance_scale` in `extra`; None: the network has no embedding of it (FLUX.1-schnell).
    reads_padding: attention also reads the text's padding, as in FLUX.1; otherwise the condition's mask hides it.
    Raises ValueError if the condition has no tokens or no pooled text.
    """

    def __init__(
        self,
        channels: int,
        token_dim: int,
        pooled_dim: int,
        patch: int = 2,
        width: int = 3072,
        depth: int = 19,
        single_depth: int | None = None,
        heads: int = 24,
        mlp_ratio: float = 4.0,
        axes: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        reads_padding: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.patch, self.guidance_scale = channels, patch, guidance_scale
        self.reads_padding, self.axes = reads_padding, axis_widths(width // heads, axes, shares(width // heads))
        self.image_in, self.text_in = nn.Linear(channels * patch**2, width), nn.Linear(token_dim, width)
        self.time = TimeEmbedding(width)
        self.guidance = None if guidance_scale is None else TimeEmbedding(width)
        self.pooled = nn.Sequential(nn.Linear(pooled_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DoubleBlock(width, heads, mlp_ratio) for _ in range(depth))
        single_depth = 2 * depth if single_depth is None else single_depth
        self.single_blocks = nn.ModuleList(SingleBlock(width, heads, mlp_ratio) for _ in range(single_depth))
        self.head = Head(width, channels * patch**2)
        embedders = (self.time, self.pooled) if self.guidance is None else (self.time, self.pooled, self.guidance)
        init_weights(self, *embedders)

    def vector(self, time: Tensor, condition: Condition) -> Tensor:
        """Returns the input of the modulations, (B, D): the embeddings of time, guidance scale and pooled text."""
        assert condition.pooled is not None
        vector = self.time(time, condition) + self.pooled(condition.pooled.to(self.text_in.weight.dtype))  # (B, D)
        if self.guidance is None or self.guidance_scale is None:
            return vector
        scale = condition.extra.get("guidance_scale")
        scale = time.new_full((len(time),), self.guidance_scale, dtype=torch.float32) if scale is None else scale
        return vector + self.guidance(1000 * scale)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, run: RunBlocks = all_blocks) -> Tensor:
        if condition.tokens is None or condition.pooled is None:
            raise ValueError("Flux needs text tokens and a pooled text: choose a text_encoder that gives both")
        dtype = self.image_in.weight.dtype  # of the residual stream, also under autocast
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        image = self.image_in(pack(x.to(dtype), self.channels, self.patch)).to(dtype)  # (B, N, D)
        text = self.text_in(condition.tokens.to(dtype)).to(dtype)  # (B, L, D)
        vector, length = self.vector(time, condition), text.shape[1]  # (B, D)
        rotary = rotary_of(length, rows, columns, self.axes, x.device, compute_dtype(self.image_in.weight))
        bias = key_bias(None if self.reads_padding else condition.mask, image, after=image.shape[1])
        text, image = run(self.blocks, (text, image), (vector, bias), rotary, image=1)
        joint = torch.cat([text, image], dim=1)  # (B, L + N, D)
        (joint,) = run(self.single_blocks, (joint,), (vector, bias), rotary, before=length)
        return unpack(self.head(joint[:, length:], vector), rows, columns, self.patch)  # (B, C, H, W)
