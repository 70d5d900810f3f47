"""DiT: the class-conditional diffusion transformer (Peebles and Xie 2023, arXiv:2212.09748). SiT (Ma et al. 2024,
arXiv:2401.08740) is the same network with velocity prediction."""

from __future__ import annotations

from torch import Tensor, nn

from dit.layers.block import Block, Head, init_weights
from dit.layers.embeddings import LabelEmbedding, TimeEmbedding
from dit.layers.mlp import Mlp, MlpKind
from dit.layers.norm import Norm, layer_norm
from dit.layers.patches import Patches, Position
from dit.layers.stack import RunBlocks, all_blocks
from dit.types import Condition


class DiT(nn.Module):
    """DiT for class labels. forward(x, time, condition): x (B, C, H, W), time (B,) in [0, 1000], labels (B,) int64 ->
    (B, outputs C, H, W).

    channels: C of the latents. classes: their number; label `classes` is the null condition. outputs: the number of
    output channels per channel of x, 2 for a prediction with a learned range. time_shift: that of `TimeEmbedding`.
    `base`, `position`, `registers` and `overlap` are those of `Patches`. Raises ValueError if the condition has no
    label.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        outputs: int = 1,
        patch: int = 2,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        time_shift: float = 0.0,
        qk_norm: bool = False,
        position: Position = "sinusoid",
        registers: int = 0,
        base: int | None = None,
        overlap: int = 0,
        norm: Norm = layer_norm,
        mlp: MlpKind = Mlp,
    ) -> None:
        super().__init__()
        self.patches = Patches(channels, patch, width, position, registers, base, overlap=overlap)
        self.time, self.label = TimeEmbedding(width, shift=time_shift), LabelEmbedding(classes, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qk_norm=qk_norm, norm=norm, mlp=mlp) for _ in range(depth)
        )
        self.head, self.head_width = Head(width, self.patches.token_values(outputs), norm), width // heads
        init_weights(self, self.time, self.label)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, run: RunBlocks = all_blocks) -> Tensor:
        if condition.label is None:
            raise ValueError("DiT needs a class label: choose text_encoder=classes, or a backbone that reads text")
        image, rotary = self.patches(x), self.patches.rotary(x, self.head_width)  # (B, N, D)
        vector = self.time(time, condition) + self.label(condition.label)  # (B, D)
        (image,) = run(self.blocks, (image,), (vector,), rotary)
        return self.patches.picture(self.head(image, vector), like=x)
