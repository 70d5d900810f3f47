"""DDT: a decoupled diffusion transformer, with an encoder of low-frequency semantics and a decoder for the
high frequencies (Wang et al. 2025, arXiv:2504.05741)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from dit.layers.block import Block, Head, init_weights
from dit.layers.embeddings import LabelEmbedding, TimeEmbedding
from dit.layers.mlp import Mlp, MlpKind
from dit.layers.norm import Norm, layer_norm
from dit.layers.patches import Patches, Position
from dit.layers.stack import RunBlocks, all_blocks
from dit.types import Condition


class DDT(nn.Module):
    """DDT for class labels. forward(x, time, condition): x (B, C, H, W), time (B,) in [0, 1000], labels (B,) int64 ->
    (B, outputs C, H, W).

    The encoder's blocks are modulated by time and class, the decoder's by the encoder's output, token by token.
    encoder_depth, depth: the numbers of blocks of encoder and decoder. The other options are those of `DiT`. Raises
    ValueError if the condition has no label.
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
        self.seen, self.patches = make(), make()  # the patch embeddings of the encoder and of the decoder
        self.time, self.label = TimeEmbedding(width), LabelEmbedding(classes, width)
        self.encoder, self.decoder = blocks(encoder_depth), blocks(depth)
        self.head, self.head_width = Head(width, self.patches.token_values(outputs), norm), width // heads
        init_weights(self, self.time, self.label)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, run: RunBlocks = all_blocks) -> Tensor:
        if condition.label is None:
            raise ValueError("DDT needs a class label: choose text_encoder=classes, or a backbone that reads text")
        rotary = self.patches.rotary(x, self.head_width)
        time_vector = self.time(time, condition)  # (B, D)
        encoded, vector = self.seen(x), time_vector + self.label(condition.label)  # (B, N, D), (B, D)
        (encoded,) = run(self.encoder, (encoded,), (vector,), rotary)
        encoded = encoded + time_vector[:, None]
        (image,) = run(self.decoder, (self.patches(x),), (encoded,), rotary)  # (B, N, D)
        return self.patches.picture(self.head(image, encoded), like=x)
