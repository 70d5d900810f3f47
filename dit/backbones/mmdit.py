"""MM-DiT: image and text as two streams with separate weights and joint attention, as in Stable Diffusion 3 (Esser et
al. 2024, arXiv:2403.03206)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit.layers.attention import Attention, attend, key_bias
from dit.layers.block import Head, init_weights
from dit.layers.embeddings import TimeEmbedding
from dit.layers.mlp import Mlp, MlpKind
from dit.layers.modulation import Modulation, modulate
from dit.layers.norm import Norm, layer_norm
from dit.layers.patches import Patches, Position
from dit.layers.stack import RunBlocks, all_blocks
from dit.types import Condition

Projected = tuple[Tensor, Tensor, Tensor]


class Source(nn.Module):
    """The input layers of a stream before the joint attention: norm, modulation and projection. The text stream of the
    last block has only these. parts: the number of outputs of the modulation."""

    def __init__(self, dim: int, heads: int, qk_norm: bool, norm: Norm, parts: int = 2) -> None:
        super().__init__()
        self.norm1, self.modulation = norm(dim), Modulation(dim, parts)
        self.attention = Attention(dim, heads, qk_norm=qk_norm)

    def enter(self, x: Tensor, vector: Tensor, rotary: Tensor | None = None) -> tuple[Projected, tuple[Tensor, ...]]:
        """Returns q, k, v, each (B, H, N, D / H), and the other modulations, of x (B, N, D) and vector (B, D)."""
        shift, scale, *others = self.modulation(vector)
        return self.attention.project(modulate(self.norm1(x), shift, scale), rotary), tuple(others)


class Stream(Source):
    """One of the two streams of a block. dual: add self-attention over this stream, parallel to the joint attention."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, qk_norm: bool, norm: Norm, mlp: MlpKind, dual: bool = False
    ) -> None:
        super().__init__(dim, heads, qk_norm, norm, parts=9 if dual else 6)
        self.alone = Attention(dim, heads, qk_norm=qk_norm) if dual else None
        self.norm2, self.mlp = norm(dim), mlp(dim, int(dim * mlp_ratio))

    def leave(self, x: Tensor, y: Tensor, others: tuple[Tensor, ...], rotary: Tensor | None = None) -> Tensor:
        """Returns the stream after the block, (B, N, D). x: (B, N, D), its input; y: (B, N, D), the output of the joint
        attention; others: from `enter`."""
        gate1, shift2, scale2, gate2, *dual = others
        attended = gate1 * self.attention.out(y)
        if self.alone is not None:
            shift3, scale3, gate3 = dual
            attended = attended + gate3 * self.alone(modulate(self.norm1(x), shift3, scale3), rotary=rotary)
        x = x + attended
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class JointBlock(nn.Module):
    """Two streams with joint attention. The last block does not update the text stream."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, qk_norm: bool, norm: Norm, mlp: MlpKind, dual: bool, last: bool
    ) -> None:
        super().__init__()
        self.image = Stream(dim, heads, mlp_ratio, qk_norm, norm, mlp, dual)
        self.text = None if last else Stream(dim, heads, mlp_ratio, qk_norm, norm, mlp)
        self.last_text = Source(dim, heads, qk_norm, norm) if last else None
        if self.last_text is not None:
            del self.last_text.attention.out
            # the published weights include these queries; they are kept, although nothing uses them
            self.last_text.attention.q_norm.requires_grad_(False)

    def forward(
        self, image: Tensor, text: Tensor, vector: Tensor, bias: Tensor | None = None, rotary: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns image and text, in the shapes of the inputs. image: (B, N, D); text: (B, L, D); vector: (B, D); bias:
        the `key_bias` of N + L keys; rotary: (2, N, D / H), for the image."""
        source = self.last_text if self.text is None else self.text
        assert source is not None
        (q, k, v), image_others = self.image.enter(image, vector, rotary)  # (B, H, N, D / H)
        (text_q, text_k, text_v), text_others = source.enter(text, vector)  # (B, H, L, D / H)
        q = q if self.text is None else torch.cat([q, text_q], dim=2)  # (B, H, N + L, D / H)
        y = attend(q, torch.cat([k, text_k], dim=2), torch.cat([v, text_v], dim=2), bias)  # (B, N + L, D)
        if self.text is not None:
            text = self.text.leave(text, y[:, image.shape[1] :], text_others)  # (B, L, D)
        return self.image.leave(image, y[:, : image.shape[1]], image_others, rotary), text


class MMDiT(nn.Module):
    """MM-DiT. forward(x, time, condition): x (B, C, H, W), time (B,) in [0, 1000], text tokens (B, L, T), pooled text
    (B, P) -> (B, outputs C, H, W).

    channels: C of the latents. token_dim, pooled_dim: T and P. outputs: the number of output channels per channel of x,
    2 for a prediction with a learned range. dual: the number of leading blocks with additional self-attention of the
    image (13 in SD3.5-medium). qk_norm: true in SD3.5, false in SD3. reads_padding: attention also reads the text's
    padding, as in SD3; otherwise the condition's mask hides it. `base`, `position`, `largest`, `registers` and
    `overlap` are those of `Patches`; SD3 has position=cropped. Raises ValueError if the condition has no tokens or no
    pooled text.
    """

    def __init__(
        self,
        channels: int,
        token_dim: int,
        pooled_dim: int,
        outputs: int = 1,
        patch: int = 2,
        width: int = 1536,
        depth: int = 24,
        heads: int = 24,
        mlp_ratio: float = 4.0,
        dual: int = 0,
        qk_norm: bool = False,
        reads_padding: bool = False,
        position: Position = "sinusoid",
        registers: int = 0,
        base: float | None = None,
        overlap: int = 0,
        largest: int | None = None,
        norm: Norm = layer_norm,
        mlp: MlpKind = Mlp,
    ) -> None:
        super().__init__()
        if not 0 <= dual <= depth:
            raise ValueError(f"dual={dual}, the number of blocks with two attentions, must be in [0, depth={depth}]")
        self.reads_padding, self.head_width = reads_padding, width // heads
        self.patches = Patches(channels, patch, width, position, registers, base, largest=largest, overlap=overlap)
        self.time, self.text_in = TimeEmbedding(width), nn.Linear(token_dim, width)
        self.pooled = nn.Sequential(nn.Linear(pooled_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            JointBlock(width, heads, mlp_ratio, qk_norm, norm, mlp, dual=i < dual, last=i == depth - 1)
            for i in range(depth)
        )
        self.head = Head(width, self.patches.token_values(outputs), norm)
        init_weights(self, self.time, self.pooled)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, run: RunBlocks = all_blocks) -> Tensor:
        tokens, mask, pooled = condition.tokens, condition.mask, condition.pooled
        if tokens is None or pooled is None:
            raise ValueError("MMDiT needs text tokens and a pooled text: choose a text_encoder that gives both")
        image, rotary = self.patches(x), self.patches.rotary(x, self.head_width)  # (B, N, D)
        vector = self.time(time, condition) + self.pooled(pooled.to(image.dtype))  # (B, D)
        text = self.text_in(tokens.to(image.dtype))  # (B, L, D)
        bias = key_bias(None if self.reads_padding else mask, image, before=image.shape[1])
        image, text = run(self.blocks, (image, text), (vector, bias), rotary)
        return self.patches.picture(self.head(image, vector), like=x)
