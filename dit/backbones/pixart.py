"""PixArt: a diffusion transformer that reads text by cross-attention, with one modulation for all of its blocks
(adaLN-single): PixArt-alpha (Chen et al. 2023, arXiv:2310.00426) and PixArt-Sigma (Chen et al. 2024, arXiv:2403.04692).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit.layers.attention import Attention, key_bias
from dit.layers.block import init_weights
from dit.layers.embeddings import TimeEmbedding
from dit.layers.mlp import Mlp, MlpKind
from dit.layers.modulation import Modulation, modulate
from dit.layers.norm import Norm, layer_norm
from dit.layers.patches import Patches, Position
from dit.layers.stack import RunBlocks, all_blocks
from dit.types import Condition


def table(parts: int, dim: int) -> nn.Parameter:
    """Returns a block's learned offsets of the shared modulation, (parts, dim) (PixArt-alpha, section 2.3)."""
    return nn.Parameter(torch.randn(parts, dim) / dim**0.5)


class PixArtBlock(nn.Module):
    """Self-attention and MLP, modulated and gated, with unmodulated cross-attention over the text in between."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, qk_norm: bool, norm: Norm, mlp: MlpKind) -> None:
        super().__init__()
        self.norm1, self.norm2, self.table = norm(dim), norm(dim), table(6, dim)
        self.attention = Attention(dim, heads, qk_norm=qk_norm)
        self.cross = Attention(dim, heads, context_dim=dim, cross=True, qk_norm=qk_norm)
        self.mlp = mlp(dim, int(dim * mlp_ratio))

    def forward(
        self, x: Tensor, shared: Tensor, text: Tensor, bias: Tensor | None, rotary: Tensor | None = None
    ) -> Tensor:
        """Returns x (B, N, D). shared: (B, 6, D); text: (B, L, D) with its `key_bias`; rotary: (2, N, D / H)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.table + shared).chunk(6, dim=1)  # each (B, 1, D)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), rotary=rotary)
        x = x + self.cross(x, text, bias)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class PixArt(nn.Module):
    """PixArt. forward(x, time, condition): x (B, C, H, W), time (B,) in [0, 1000], text tokens (B, L, T) with a mask ->
    (B, outputs C, H, W).

    channels: C of the latents. token_dim: T. pooled_dim: ignored; accepted for encoders that give a pooled text.
    outputs: the number of output channels per channel of x, 2 for a prediction with a learned range. base: the number
    of positions that every image spans on each axis; in the published models the side of the training images in patches
    divided by the interpolation scale. pixels_per_cell: the side of a latent cell in pixels; if given, the height and
    width in pixels and their ratio are conditions (the micro-conditions of PixArt-alpha). `position`, `registers` and
    `overlap` are those of `Patches`; `qk_norm` is for both attentions. Raises ValueError if there are no text
    tokens.
    """

    reads_padding = False  # masked tokens may be removed

    def __init__(
        self,
        channels: int,
        token_dim: int,
        pooled_dim: int | None = None,
        outputs: int = 1,
        patch: int = 2,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        base: float = 32,
        pixels_per_cell: int | None = None,
        qk_norm: bool = False,
        position: Position = "sinusoid",
        registers: int = 0,
        overlap: int = 0,
        norm: Norm = layer_norm,
        mlp: MlpKind = Mlp,
    ) -> None:
        super().__init__()
        if pixels_per_cell is not None and width % 3:
            raise ValueError(f"width={width} must be a multiple of 3: height, width and ratio are embedded in thirds")
        self.pixels_per_cell, self.head_width = pixels_per_cell, width // heads
        self.patches = Patches(channels, patch, width, position, registers, base, fit=True, overlap=overlap)
        self.time, self.text = TimeEmbedding(width), Mlp(token_dim, width, width)
        self.size = None if pixels_per_cell is None else TimeEmbedding(width // 3)
        self.ratio = None if pixels_per_cell is None else TimeEmbedding(width // 3)
        self.modulation = Modulation(width, 6)
        self.blocks = nn.ModuleList(PixArtBlock(width, heads, mlp_ratio, qk_norm, norm, mlp) for _ in range(depth))
        self.norm, self.table = norm(width), table(2, width)
        self.out = nn.Linear(width, self.patches.token_values(outputs))
        self.reset()

    def reset(self) -> None:
        """Sets the paper's initial weights: 0 for cross-attention and output, but not for the modulation as in DiT."""
        sizes = [part for part in (self.size, self.ratio) if part is not None]
        init_weights(self, self.time, self.text, *sizes)
        nn.init.normal_(self.modulation.linear.weight, std=0.02)
        nn.init.zeros_(self.out.weight)
        for block in self.modules():
            if isinstance(block, PixArtBlock):
                nn.init.zeros_(block.cross.out.weight)

    def vector(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Returns the input of the modulation, (B, D): the time embedding plus any micro-conditions."""
        vector = self.time(time, condition)
        if self.size is None or self.ratio is None or self.pixels_per_cell is None:
            return vector
        height, width = (side * self.patches.patch * self.pixels_per_cell for side in self.patches.grid(x))
        # new_full runs on the device; torch.tensor would be a synchronous copy to it.
        sides = torch.cat([time.new_full((1,), side, dtype=torch.float32) for side in (height, width)])
        ratio = time.new_full((1,), height / width, dtype=torch.float32)
        return vector + torch.cat([self.size(sides), self.ratio(ratio)]).flatten()  # (2, D / 3) and (1, D / 3)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, run: RunBlocks = all_blocks) -> Tensor:
        if condition.tokens is None:
            raise ValueError("PixArt needs text tokens: choose a text_encoder that gives them")
        image, rotary = self.patches(x), self.patches.rotary(x, self.head_width)  # (B, N, D)
        text = self.text(condition.tokens.to(image.dtype))  # (B, L, D)
        vector = self.vector(x, time, condition)  # (B, D)
        shared = torch.cat(self.modulation(vector), dim=1)  # (B, 6, D)
        bias = key_bias(condition.mask, image)
        (image,) = run(self.blocks, (image,), (shared, text, bias), rotary)
        shift, scale = (self.table + vector[:, None]).chunk(2, dim=1)  # each (B, 1, D)
        return self.patches.picture(self.out(modulate(self.norm(image), shift, scale)), like=x)
