"""The block and the head of a diffusion transformer with adaLN-Zero, and its initial weights."""

from __future__ import annotations

from torch import Tensor, nn

from dit.layers.attention import Attention
from dit.layers.mlp import Mlp, MlpKind
from dit.layers.modulation import Modulation, modulate
from dit.layers.norm import Norm, layer_norm


class Block(nn.Module):
    """Attention and MLP, each modulated and gated (adaLN-Zero); with `context_dim` attention also reads a context."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        context_dim: int | None = None,
        qk_norm: bool = False,
        norm: Norm = layer_norm,
        mlp: MlpKind = Mlp,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attention = Attention(dim, heads, context_dim, qk_norm=qk_norm)
        self.mlp = mlp(dim, int(dim * mlp_ratio))
        self.modulation = Modulation(dim, 6)

    def forward(
        self,
        x: Tensor,
        vector: Tensor,
        context: Tensor | None = None,
        bias: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> Tensor:
        """Returns (B, N, D). x: (B, N, D); vector: (B, D) or (B, N, D); context: (B, L, C); bias: the `key_bias` of
        N + L keys; rotary: (2, N, D / H)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(vector)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), context, bias, rotary)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class PlainBlock(nn.Module):
    """A pre-norm transformer block without modulation. A norm without weights is as expressive here, because a linear
    layer follows it."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        norm: Norm = nn.LayerNorm,
        mlp: MlpKind = Mlp,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attention = Attention(dim, heads, qk_norm=qk_norm)
        self.mlp = mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """Returns (B, N, D). x: (B, N, D); bias: the `key_bias` of N keys; rotary: (2, N, D / H)."""
        x = x + self.attention(self.norm1(x), bias=bias, rotary=rotary)
        return x + self.mlp(self.norm2(x))


class Head(nn.Module):
    """The final modulated norm and the linear layer to the values of a patch: (B, N, D) -> (B, N, out)."""

    def __init__(self, dim: int, out: int, norm: Norm = layer_norm) -> None:
        super().__init__()
        self.norm, self.modulation, self.linear = norm(dim), Modulation(dim, 2), nn.Linear(dim, out)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.linear(modulate(self.norm(x), *self.modulation(vector)))


def init_weights(net: nn.Module, *embedders: nn.Module) -> None:
    """Sets DiT's initial weights: Xavier uniform in linear layers, normal with std 0.02 in the embedders of time and
    condition, zero in modulations and heads, so that the initial output is 0."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for embedder in embedders:
        for module in embedder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
    for module in net.modules():
        if isinstance(module, Modulation):
            module.reset()
        elif isinstance(module, Head):
            nn.init.zeros_(module.linear.weight)
