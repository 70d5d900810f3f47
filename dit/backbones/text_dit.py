"""A DiT for text: a diffusion transformer (Peebles and Xie 2023, arXiv:2212.09748) whose self-attention also reads the
text tokens, and whose adaLN-Zero modulation depends on time and pooled text."""

from __future__ import annotations

from torch import Tensor, nn

from dit.layers.attention import key_bias
from dit.layers.block import Block, Head, PlainBlock, init_weights
from dit.layers.embeddings import TimeEmbedding
from dit.layers.mlp import Mlp, MlpKind
from dit.layers.norm import Norm, layer_norm
from dit.layers.patches import Patches, Position
from dit.layers.stack import RunBlocks, all_blocks
from dit.types import Condition


class TextDiT(nn.Module):
    """DiT for text. forward(x, time, condition): x (B, C, H, W), time (B,) in [0, 1000], text tokens and pooled text ->
    (B, outputs C, H, W).

    channels: C of the latents. token_dim, pooled_dim: widths of the text encoder's outputs. outputs: the number of
    output channels per channel of x, 2 for a prediction with a learned range. text_depth: the number of blocks for the
    text tokens. H and W may be any multiples of `patch`; `base`, `position`, `registers` and `overlap` are those of
    `Patches`. Raises ValueError if the condition has no tokens or no pooled text.
    """

    reads_padding = False  # masked tokens may be removed

    def __init__(
        self,
        channels: int,
        token_dim: int,
        pooled_dim: int,
        outputs: int = 1,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        text_depth: int = 1,
        qk_norm: bool = True,
        position: Position = "sinusoid",
        registers: int = 0,
        base: int | None = None,
        overlap: int = 0,
        norm: Norm = layer_norm,
        mlp: MlpKind = Mlp,
    ) -> None:
        super().__init__()
        self.patches = Patches(channels, patch, width, position, registers, base, overlap=overlap)
        self.time, self.pooled = TimeEmbedding(width), Mlp(pooled_dim, width, width)
        self.text_in = nn.Linear(token_dim, width)
        # trained blocks that adapt the frozen encoder's tokens to this model
        self.text_blocks = nn.ModuleList(PlainBlock(width, heads, mlp_ratio) for _ in range(text_depth))
        self.text_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, context_dim=width, qk_norm=qk_norm, norm=norm, mlp=mlp) for _ in range(depth)
        )
        self.head, self.head_width = Head(width, self.patches.token_values(outputs), norm), width // heads
        init_weights(self, self.time, self.pooled)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, run: RunBlocks = all_blocks) -> Tensor:
        tokens, mask, pooled = condition.tokens, condition.mask, condition.pooled
        if tokens is None or pooled is None:
            raise ValueError("TextDiT needs text tokens and a pooled text: choose a text_encoder that gives both")
        image, rotary = self.patches(x), self.patches.rotary(x, self.head_width)  # (B, N, D)
        vector = self.time(time, condition) + self.pooled(pooled.to(image.dtype))  # (B, D)
        text = self.text_in(tokens.to(image.dtype))  # (B, L, D)
        text_bias, bias = key_bias(mask, text), key_bias(mask, image, before=image.shape[1])
        for text_block in self.text_blocks:
            text = text_block(text, text_bias)
        text = self.text_norm(text)
        (image,) = run(self.blocks, (image,), (vector, text, bias), rotary)
        return self.patches.picture(self.head(image, vector), like=x)
