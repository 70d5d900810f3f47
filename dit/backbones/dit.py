"""DiT with text: a diffusion transformer (Peebles and Xie 2023, arXiv:2212.09748) whose self-attention also reads the
text tokens, and whose adaLN-Zero is driven by time and the pooled text."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from dit.layers.attention import Attention
from dit.layers.embeddings import TimeEmbedding, grid_sinusoid
from dit.layers.mlp import Mlp
from dit.layers.modulation import Modulation, modulate
from dit.types import Condition

norm = partial(nn.LayerNorm, eps=1e-6, elementwise_affine=False)


class Block(nn.Module):
    """Attention and MLP, each modulated before and gated after."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attention = Attention(dim, heads, context=True)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.modulation = Modulation(dim, 6)

    def forward(self, x: Tensor, vector: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(vector)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1), text, mask)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class TextBlock(nn.Module):
    """A plain pre-norm transformer block that adapts the frozen encoder's tokens to this model."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        text = text + self.attention(self.norm1(text), mask=mask)
        return text + self.mlp(self.norm2(text))


class DiT(nn.Module):
    """(x, time, condition): (B, C, H, W), (B,) in [0, 1000], tokens and pooled text -> (B, outputs C, H, W).

    channels: C of the latents. token_dim, pooled_dim: widths of the text encoder's outputs. H and W may be any
    multiples of `patch`: places are embedded by fixed sinusoids. outputs: channels given for each of x's, 2 for a
    prediction with a learned range.
    """

    def __init__(
        self,
        channels: int,
        token_dim: int,
        pooled_dim: int,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        text_depth: int = 1,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.channels, self.patch, self.out_channels = channels, patch, outputs * channels
        self.patch_in = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.time = TimeEmbedding(width)
        self.pooled = Mlp(pooled_dim, width, width)
        self.text_in = nn.Linear(token_dim, width)
        self.text_blocks = nn.ModuleList(TextBlock(width, heads, mlp_ratio) for _ in range(text_depth))
        self.text_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.out_norm = norm(width)
        self.out_modulation = Modulation(width, 2)
        self.out = nn.Linear(width, patch * patch * self.out_channels)
        self.initialize()

    def initialize(self) -> None:
        """The paper's start: Xavier everywhere, the modulations and the output zero, so that the model begins as 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_in.weight.view(self.patch_in.out_channels, -1))
        if self.patch_in.bias is not None:
            nn.init.zeros_(self.patch_in.bias)
        for mlp in (self.time.mlp, self.pooled):
            nn.init.normal_(mlp.up.weight, std=0.02)
            nn.init.normal_(mlp.down.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                module.reset()
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        tokens, mask, pooled = condition.tokens, condition.mask, condition.pooled
        if tokens is None or mask is None or pooled is None:
            raise ValueError("DiT needs text tokens, their mask and a pooled text; this text encoder gives fewer")
        b, c, h, w = x.shape
        if c != self.channels or h % self.patch or w % self.patch:
            raise ValueError(
                f"x of shape {tuple(x.shape)}: DiT takes {self.channels} channels and sides that are multiples of "
                f"patch={self.patch}"
            )
        rows, columns = h // self.patch, w // self.patch
        x = self.patch_in(x.to(self.patch_in.weight.dtype)).flatten(2).transpose(1, 2)  # (B, N, D)
        x = x + grid_sinusoid(rows, columns, x.shape[-1], x.device).to(x.dtype)
        vector = self.time(time) + self.pooled(pooled.to(x.dtype))  # (B, D)
        text = self.text_in(tokens.to(x.dtype))  # (B, L, D)
        for text_block in self.text_blocks:
            text = text_block(text, mask)
        text = self.text_norm(text)
        for block in self.blocks:
            x = block(x, vector, text, mask)
        x = self.out(modulate(self.out_norm(x), *self.out_modulation(vector)))  # (B, N, p p C')
        x = x.view(b, rows, columns, self.patch, self.patch, self.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, self.out_channels, h, w)
