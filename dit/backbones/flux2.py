"""FLUX.2: FLUX.1 with one modulation for all blocks of a kind, SwiGLU, no biases, no pooled text, and rotary embeddings
along four axes (Black Forest Labs 2025, https://github.com/black-forest-labs/flux2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit.layers.attention import Attention, attend, key_bias
from dit.layers.block import Head, init_weights
from dit.layers.constants import cached_tensor, compute_dtype
from dit.layers.embeddings import TimeEmbedding, axial_rotary, axis_widths, positions, rotate_neighbours
from dit.layers.mlp import SwiGLU
from dit.layers.modulation import Modulation, modulate
from dit.layers.norm import layer_norm
from dit.layers.patches import pack, unpack
from dit.layers.stack import RunBlocks, all_blocks
from dit.types import Condition

LONGEST = 2000.0  # the base of the rotary frequencies
Shared = tuple[Tensor, ...]  # a modulation of all blocks of a kind, each (B, 1, D)


@cached_tensor
def rotary_of(
    text: int, rows: int, columns: int, widths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns cosines and sines (2, text + rows * columns, head). A token of text is at its position on the last axis;
    an image is at index 0, its row and its column."""
    place = torch.arange(text, device=device)
    words = torch.stack([*[torch.zeros_like(place)] * 3, place], dim=-1)  # (text, 4)
    x, y = positions(rows, columns, 1.0, device)
    image = torch.stack([torch.zeros_like(y), y, x, torch.zeros_like(y)], dim=-1)  # (rows * columns, 4)
    return axial_rotary(torch.cat([words, image]), widths, LONGEST).to(dtype)


class Stream(nn.Module):
    """One of the two streams of a block. hidden: the inner width of the MLP."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(dim), layer_norm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = SwiGLU(dim, hidden * 3 // 2)  # which takes two thirds of that

    def enter(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k, v, each (B, H, N, D / H), of x (B, N, D)."""
        return self.attention.project(modulate(self.norm1(x), shared[0], shared[1]))

    def leave(self, x: Tensor, y: Tensor, shared: Shared) -> Tensor:
        """Returns the stream after the block, (B, N, D). x: its input; y: (B, N, D), the joint attention's output."""
        _, _, gate1, shift2, scale2, gate2 = shared
        x = x + gate1 * self.attention.out(y)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DoubleBlock(nn.Module):
    """Text and image as two streams with joint attention."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.text, self.image = Stream(dim, heads, hidden), Stream(dim, heads, hidden)

    def forward(
        self, text: Tensor, image: Tensor, shared: tuple[Shared, Shared], bias: Tensor | None, rotary: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns text and image, in the shapes of the inputs. text: (B, L, D); image: (B, N, D); shared: six parts for
        each of them; bias: the `key_bias` of L + N keys; rotary: (2, L + N, D / H)."""
        pairs = zip(self.text.enter(text, shared[0]), self.image.enter(image, shared[1]), strict=True)
        q, k, v = (torch.cat(pair, dim=2) for pair in pairs)  # each (B, H, L + N, D / H)
        y = attend(rotate_neighbours(q, rotary), rotate_neighbours(k, rotary), v, bias)  # (B, L + N, D)
        text_y, image_y = y.split([text.shape[1], image.shape[1]], dim=1)
        return self.text.leave(text, text_y, shared[0]), self.image.leave(image, image_y, shared[1])


class SingleBlock(nn.Module):
    """Attention and a gated MLP in parallel, with one output layer. hidden: the inner width of the MLP."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.attention = layer_norm(dim), Attention(dim, heads)
        del self.attention.out
        self.mlp, self.out = nn.Linear(dim, 2 * hidden), nn.Linear(dim + hidden, dim)

    def forward(self, x: Tensor, shared: Shared, bias: Tensor | None, rotary: Tensor) -> Tensor:
        """Returns (B, L + N, D). x: (B, L + N, D); shared: three parts; bias: the `key_bias` of L + N keys; rotary:
        (2, L + N, D / H)."""
        shift, scale, gate = shared
        y = modulate(self.norm(x), shift, scale)
        q, k, v = self.attention.project(y)  # each (B, H, L + N, D / H)
        attended = attend(rotate_neighbours(q, rotary), rotate_neighbours(k, rotary), v, bias)
        gates, values = self.mlp(y).chunk(2, dim=-1)
        return x + gate * self.out(torch.cat([attended, F.silu(gates) * values], dim=-1))


class Flux2(nn.Module):
    """FLUX.2. forward(x, time, condition): x (B, C, H, W), time (B,) in [0, 1000], text tokens (B, L, T) ->
    (B, C, H, W).

    channels: C of the latents; its autoencoder gives 128, packed from 2 x 2 cells. token_dim: T. pooled_dim: ignored;
    accepted for encoders that give a pooled text. depth, single_depth: the numbers of blocks of two streams and of one.
    mlp_ratio: the inner width of an MLP divided by the width. axes: the widths of a head for the four axes of the
    rotary embeddings, or None for a quarter each. guidance_scale and reads_padding are those of `Flux`. Raises
    ValueError if the condition has no tokens.
    """

    def __init__(
        self,
        channels: int,
        token_dim: int,
        pooled_dim: int | None = None,
        patch: int = 1,
        width: int = 6144,
        depth: int = 8,
        single_depth: int = 48,
        heads: int = 48,
        mlp_ratio: float = 3.0,
        axes: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        reads_padding: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.patch, self.guidance_scale = channels, patch, guidance_scale
        head, hidden = width // heads, int(width * mlp_ratio)
        self.reads_padding, self.axes = reads_padding, axis_widths(head, axes, (head // 4,) * 4)
        self.image_in, self.text_in = nn.Linear(channels * patch**2, width), nn.Linear(token_dim, width)
        self.time = TimeEmbedding(width)
        self.guidance = None if guidance_scale is None else TimeEmbedding(width)
        self.text_modulation, self.image_modulation = Modulation(width, 6), Modulation(width, 6)
        self.single_modulation = Modulation(width, 3)
        self.blocks = nn.ModuleList(DoubleBlock(width, heads, hidden) for _ in range(depth))
        self.single_blocks = nn.ModuleList(SingleBlock(width, heads, hidden) for _ in range(single_depth))
        self.head = Head(width, channels * patch**2)
        init_weights(self)  # embedders as other layers: without biases, every modulation is a product with their output
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.register_parameter("bias", None)

    def vector(self, time: Tensor, condition: Condition) -> Tensor:
        """Returns the input of the modulations, (B, D): the embeddings of time and guidance scale."""
        vector = self.time(time, condition)
        if self.guidance is None or self.guidance_scale is None:
            return vector
        scale = condition.extra.get("guidance_scale")
        scale = time.new_full((len(time),), self.guidance_scale, dtype=torch.float32) if scale is None else scale
        return vector + self.guidance(1000 * scale)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, run: RunBlocks = all_blocks) -> Tensor:
        if condition.tokens is None:
            raise ValueError("Flux2 needs text tokens: choose a text_encoder that gives them")
        dtype = self.image_in.weight.dtype  # of the residual stream, also under autocast
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        image = self.image_in(pack(x.to(dtype), self.channels, self.patch)).to(dtype)  # (B, N, D)
        text = self.text_in(condition.tokens.to(dtype)).to(dtype)  # (B, L, D)
        vector, length = self.vector(time, condition), text.shape[1]  # (B, D)
        rotary = rotary_of(length, rows, columns, self.axes, x.device, compute_dtype(self.image_in.weight))
        bias = key_bias(None if self.reads_padding else condition.mask, image, after=image.shape[1])
        shared = self.text_modulation(vector), self.image_modulation(vector)
        text, image = run(self.blocks, (text, image), (shared, bias), rotary, image=1)
        joint, single = torch.cat([text, image], dim=1), self.single_modulation(vector)  # (B, L + N, D)
        (joint,) = run(self.single_blocks, (joint,), (single, bias), rotary, before=length)
        return unpack(self.head(joint[:, length:], vector), rows, columns, self.patch)  # (B, C, H, W)
