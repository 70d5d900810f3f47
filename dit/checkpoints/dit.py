"""Import and export of DiT and SiT: the original `.pt` files, and diffusers' DiTTransformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit.backbones.dit import DiT
from dit.checkpoints.layout import Layout, Rule, linear
from dit.layers.block import Block
from dit.layers.mlp import Mlp

ORIGINAL = Layout(
    [
        *linear("patches.project", "x_embedder.proj"),
        *linear("time.up", "t_embedder.mlp.0"),
        *linear("time.down", "t_embedder.mlp.2"),
        Rule("label.table.weight", ("y_embedder.embedding_table.weight",)),
        *linear("blocks.{}.attention.qkv", "blocks.{}.attn.qkv"),
        *linear("blocks.{}.attention.out", "blocks.{}.attn.proj"),
        *linear("blocks.{}.mlp.up", "blocks.{}.mlp.fc1"),
        *linear("blocks.{}.mlp.down", "blocks.{}.mlp.fc2"),
        *linear("blocks.{}.modulation.linear", "blocks.{}.adaLN_modulation.1"),
        *linear("head.modulation.linear", "final_layer.adaLN_modulation.1"),
        *linear("head.linear", "final_layer.linear"),
    ],
    ignored=["pos_embed"],
)
DIFFUSERS = Layout(
    [
        *linear("patches.project", "pos_embed.proj"),
        *linear("time.up", "transformer_blocks.{}.norm1.emb.timestep_embedder.linear_1"),
        *linear("time.down", "transformer_blocks.{}.norm1.emb.timestep_embedder.linear_2"),
        Rule("label.table.weight", ("transformer_blocks.{}.norm1.emb.class_embedder.embedding_table.weight",)),
        *linear("blocks.{}.attention.qkv", *(f"transformer_blocks.{{}}.attn1.to_{part}" for part in "qkv")),
        *linear("blocks.{}.attention.out", "transformer_blocks.{}.attn1.to_out.0"),
        *linear("blocks.{}.mlp.up", "transformer_blocks.{}.ff.net.0.proj"),
        *linear("blocks.{}.mlp.down", "transformer_blocks.{}.ff.net.2"),
        *linear("blocks.{}.modulation.linear", "transformer_blocks.{}.norm1.linear"),
        *linear("head.modulation.linear", "proj_out_1"),
        *linear("head.linear", "proj_out_2"),
    ],
    ignored=["pos_embed.pos_embed"],
)
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by width, for the published models: their files do not contain it


def from_original(state: Mapping[str, Tensor], heads: int | None = None) -> DiT:
    """Returns the network of an original DiT or SiT state dict. Its size follows from the tensor shapes.

    Raises ValueError for another state dict, and for a width that needs `heads`.
    """
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        classes = len(state["y_embedder.embedding_table.weight"]) - 1
        out = len(state["final_layer.linear.weight"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"the file is not a DiT or SiT of the original code: it has no {error}") from None
    if heads is None and width not in HEADS:
        raise ValueError(f"no published DiT has width {width}: give its number of heads")
    depth = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=-1)
    outputs = out // (patch * patch * channels)
    net = DiT(channels, classes, outputs, patch, width, depth, heads or HEADS[width])
    ORIGINAL.load(net, state, depth)
    return net


def to_original(net: DiT, sample_size: int) -> dict[str, Tensor]:
    """Returns the state dict that the original code loads for latents of `sample_size` cells on a side, with its table
    of position embeddings. Raises ValueError for parts that it does not have."""
    check_plain(net, sample_size, 0.0, "the original DiT")
    places = table_of_places(sample_size // net.patches.patch, net.patches.project.out_channels)
    return {"pos_embed": places[None]} | ORIGINAL.export(net, len(net.blocks))


def table_of_places(side: int, width: int) -> Tensor:
    """Returns `grid_sinusoid` of a square, (side^2, width) float32, computed in float64 and rounded as in the original
    code."""
    frequency = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # (side, width / 4)
    along = torch.cat([angle.sin(), angle.cos()], dim=1).float()
    y, x = along[:, None].expand(side, side, -1), along[None].expand(side, side, -1)
    return torch.cat([x, y], dim=-1).flatten(0, 1)


def check_plain(net: DiT, sample_size: int, time_shift: float, whose: str) -> None:
    """Raises ValueError if the network has parts that the class `whose` does not have."""
    block = net.blocks[0]
    assert isinstance(block, Block)
    side = sample_size // net.patches.patch
    required = {
        "qk_norm=false": isinstance(block.attention.q_norm, nn.Identity),
        "norm=layer_norm": isinstance(block.norm2, nn.LayerNorm),
        "mlp=Mlp": isinstance(block.mlp, Mlp),
        "mlp_ratio=4": isinstance(block.mlp, Mlp)
        and block.mlp.down.in_features == 4 * net.patches.project.out_channels,
        "registers=0": net.patches.registers is None,
        "overlap=0": net.patches.overlap == 0,
        "position=sinusoid": net.patches.position == "sinusoid",
        "base=null": net.patches.base in (None, side),
        f"time_shift={time_shift:g}": net.time.shift == time_shift,
    }
    unmet = [option for option, met in required.items() if not met]
    if unmet:
        raise ValueError(f"{whose} has {', '.join(unmet)}: this model differs and cannot be exported to it")


def from_diffusers(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> DiT:
    """Returns the network of a diffusers DiTTransformer2DModel, whose time sinusoids differ from the original's."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    channels = config["in_channels"]
    net = DiT(
        channels,
        config["num_embeds_ada_norm"],
        (config.get("out_channels") or channels) // channels,
        config["patch_size"],
        width,
        config["num_layers"],
        config["num_attention_heads"],
        time_shift=1.0,
    )
    DIFFUSERS.load(net, state, config["num_layers"])
    for block in net.blocks:  # there, the second norm of each block has another eps
        assert isinstance(block, Block)
        block.norm2 = nn.LayerNorm(width, eps=config.get("norm_eps", 1e-5), elementwise_affine=False)
    return net


def to_diffusers(net: DiT, sample_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns config and state dict of a DiTTransformer2DModel for latents of `sample_size` cells on a side.

    Raises ValueError for parts that diffusers' class does not have.
    """
    check_plain(net, sample_size, 1.0, "diffusers' DiT")
    block, width = net.blocks[0], net.patches.project.out_channels
    assert isinstance(block, Block)
    assert isinstance(block.norm2, nn.LayerNorm)
    heads, patch, channels = block.attention.heads, net.patches.patch, net.patches.channels
    config = {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": net.head.linear.out_features // patch**2,
        "num_layers": len(net.blocks),
        "sample_size": sample_size,
        "patch_size": patch,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": len(net.label.table.weight) - 1,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": block.norm2.eps,
    }
    return config, DIFFUSERS.export(net, len(net.blocks))
