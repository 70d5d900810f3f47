"""DDT: a diffusion transformer in two parts, an encoder that finds out what the picture is and a decoder that removes
the noise (Wang et al. 2025, arXiv:2504.05741)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from dit.layers.block import Block, Head, init_weights
from dit.layers.embeddings import LabelEmbedding, TimeEmbedding
from dit.layers.mlp import Mlp, MlpKind
from dit.layers.norm import Norm, layer_norm
from dit.layers.patches import Patches, Position
from dit.types import Condition


class DDT(nn.Module):
    """(x, time, condition): (B, C, H, W), (B,) in [0, 1000], labels (B,) int64 -> (B, outputs C, H, W).

    The encoder's blocks are driven by time and class, the decoder's by the encoder's tokens, each token by its own.
    depth: blocks of the decoder. The other options are those of `DiT`.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        outputs: int = 1,
        patch: int = 2,
        width: int = 1152,
        encoder_depth: int = 22,
        depth: int = 6,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        position: Position = "sinusoid",
        registers: int = 0,
        base: int | None = None,
        overlap: int = 0,
        norm: Norm = layer_norm,
        mlp: MlpKind = Mlp,
    ) -> None:
        super().__init__()

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(width, heads, mlp_ratio, qk_norm=qk_norm, norm=norm, mlp=mlp) for _ in range(count)
            )

        make = partial(Patches, channels, patch, width, position, registers, base, overlap=overlap)
        self.seen, self.patches = make(), make()  # what the encoder looks at, and what the decoder does
        self.time, self.label = TimeEmbedding(width), LabelEmbedding(classes, width)
        self.encoder, self.decoder = blocks(encoder_depth), blocks(depth)
        self.head, self.head_width = Head(width, self.patches.token_values(outputs), norm), width // heads
        init_weights(self, self.time, self.label)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        if condition.label is None:
            raise ValueError("DDT needs a class label: choose text_encoder=classes, or a backbone that reads text")
        rotary = self.patches.rotary(x, self.head_width)
        when = self.time(time, condition)  # (B, D)
        meaning, vector = self.seen(x), when + self.label(condition.label)  # (B, N, D), (B, D)
        for block in self.encoder:
            meaning = block(meaning, vector, rotary=rotary)
        meaning = meaning + when[:, None]
        image = self.patches(x)  # (B, N, D)
        for block in self.decoder:
            image = block(image, meaning, rotary=rotary)
        return self.patches.picture(self.head(image, meaning), like=x)
