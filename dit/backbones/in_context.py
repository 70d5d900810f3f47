"""In-context conditioning: time and condition are tokens of the sequence, as in DiT's in-context variant (Peebles and
Xie 2023, arXiv:2212.09748, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit.layers.attention import key_bias
from dit.layers.block import PlainBlock, init_weights
from dit.layers.embeddings import LabelEmbedding, TimeEmbedding
from dit.layers.mlp import Mlp, MlpKind
from dit.layers.norm import Norm
from dit.layers.patches import Patches, Position
from dit.layers.stack import RunBlocks, all_blocks
from dit.types import Condition


class InContextDiT(nn.Module):
    """A transformer with in-context conditioning. forward(x, time, condition): x (B, C, H, W), time (B,) in [0, 1000],
    and any of labels (B,) int64, text tokens and pooled text -> (B, outputs C, H, W).

    classes, token_dim, pooled_dim: sizes of the encoder's parts; None for a part that it does not have, which then has
    no token. Text tokens get no position embedding here, and only image tokens are rotated. outputs: the number of
    output channels per channel of x, 2 for a prediction with a learned range. `base`, `position`, `registers` and
    `overlap` are those of `Patches`. Raises ValueError if the condition lacks one of the parts.
    """

    reads_padding = False  # masked tokens may be removed

    def __init__(
        self,
        channels: int,
        classes: int | None = None,
        token_dim: int | None = None,
        pooled_dim: int | None = None,
        outputs: int = 1,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        position: Position = "sinusoid",
        registers: int = 0,
        base: int | None = None,
        overlap: int = 0,
        norm: Norm = nn.LayerNorm,
        mlp: MlpKind = Mlp,
    ) -> None:
        super().__init__()
        self.patches = Patches(channels, patch, width, position, registers, base, overlap=overlap)
        self.time = TimeEmbedding(width)
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.text = None if token_dim is None else nn.Linear(token_dim, width)
        self.pooled = None if pooled_dim is None else nn.Linear(pooled_dim, width)
        self.blocks = nn.ModuleList(PlainBlock(width, heads, mlp_ratio, qk_norm, norm, mlp) for _ in range(depth))
        self.norm, self.out = norm(width), nn.Linear(width, self.patches.token_values(outputs))
        self.head_width = width // heads
        init_weights(self, self.time, *(part for part in (self.label,) if part is not None))
        nn.init.zeros_(self.out.weight)

    def context(self, time: Tensor, condition: Condition) -> Tensor:
        """Returns the tokens of time and condition (B, L, D), with text tokens last."""
        tokens = [self.time(time, condition)[:, None]]
        parts = (condition.label, condition.pooled, condition.tokens)
        for layer, part in zip((self.label, self.pooled, self.text), parts, strict=True):
            if layer is None:
                continue
            if part is None:
                raise ValueError("InContextDiT needs every part of the condition that it was built for; one is absent")
            embedded = layer(part if layer is self.label else part.to(tokens[0].dtype))
            tokens.append(embedded if embedded.dim() == 3 else embedded[:, None])
        return torch.cat(tokens, dim=1)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, run: RunBlocks = all_blocks) -> Tensor:
        image = self.patches(x)  # (B, N, D)
        context = self.context(time, condition)  # (B, L, D)
        tokens = torch.cat([context, image], dim=1)
        mask = None if self.text is None else condition.mask
        before = context.shape[1] - (0 if mask is None else mask.shape[1])
        bias = key_bias(mask, image, before, after=image.shape[1])
        rotary = self.patches.rotary(x, self.head_width, before=context.shape[1])
        (tokens,) = run(self.blocks, (tokens,), (bias,), rotary, before=context.shape[1])
        return self.patches.picture(self.out(self.norm(tokens[:, context.shape[1] :])), like=x)
