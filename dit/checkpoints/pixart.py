"""Import and export of PixArt-alpha and PixArt-Sigma: diffusers' PixArtTransformer2DModel, and the original `.pth`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dit.backbones.pixart import PixArt, PixArtBlock
from dit.checkpoints.layout import Layout, Rule, linear
from dit.layers.mlp import Mlp

DIFFUSERS = Layout(
    [
        *linear("patches.project", "pos_embed.proj"),
        *linear("time.up", "adaln_single.emb.timestep_embedder.linear_1"),
        *linear("time.down", "adaln_single.emb.timestep_embedder.linear_2"),
        *linear("size.up", "adaln_single.emb.resolution_embedder.linear_1"),
        *linear("size.down", "adaln_single.emb.resolution_embedder.linear_2"),
        *linear("ratio.up", "adaln_single.emb.aspect_ratio_embedder.linear_1"),
        *linear("ratio.down", "adaln_single.emb.aspect_ratio_embedder.linear_2"),
        *linear("modulation.linear", "adaln_single.linear"),
        *linear("text.up", "caption_projection.linear_1"),
        *linear("text.down", "caption_projection.linear_2"),
        *linear("blocks.{}.attention.qkv", *(f"transformer_blocks.{{}}.attn1.to_{part}" for part in "qkv")),
        *linear("blocks.{}.attention.out", "transformer_blocks.{}.attn1.to_out.0"),
        *linear("blocks.{}.cross.q", "transformer_blocks.{}.attn2.to_q"),
        *linear("blocks.{}.cross.context_kv", *(f"transformer_blocks.{{}}.attn2.to_{part}" for part in "kv")),
        *linear("blocks.{}.cross.out", "transformer_blocks.{}.attn2.to_out.0"),
        *linear("blocks.{}.mlp.up", "transformer_blocks.{}.ff.net.0.proj"),
        *linear("blocks.{}.mlp.down", "transformer_blocks.{}.ff.net.2"),
        Rule("blocks.{}.table", ("transformer_blocks.{}.scale_shift_table",)),
        Rule("table", ("scale_shift_table",)),
        *linear("out", "proj_out"),
    ],
    # Older files have position embeddings, which are computed here, and a null text for training, unused in sampling.
    ignored=[r"pos_embed\.pos_embed", r"caption_projection\.y_embedding"],
)
ORIGINAL = Layout(
    [
        *linear("patches.project", "x_embedder.proj"),
        *linear("time.up", "t_embedder.mlp.0"),
        *linear("time.down", "t_embedder.mlp.2"),
        *linear("size.up", "csize_embedder.mlp.0"),
        *linear("size.down", "csize_embedder.mlp.2"),
        *linear("ratio.up", "ar_embedder.mlp.0"),
        *linear("ratio.down", "ar_embedder.mlp.2"),
        *linear("modulation.linear", "t_block.1"),
        *linear("text.up", "y_embedder.y_proj.fc1"),
        *linear("text.down", "y_embedder.y_proj.fc2"),
        *linear("blocks.{}.attention.qkv", "blocks.{}.attn.qkv"),
        *linear("blocks.{}.attention.out", "blocks.{}.attn.proj"),
        *linear("blocks.{}.cross.q", "blocks.{}.cross_attn.q_linear"),
        *linear("blocks.{}.cross.context_kv", "blocks.{}.cross_attn.kv_linear"),
        *linear("blocks.{}.cross.out", "blocks.{}.cross_attn.proj"),
        *linear("blocks.{}.mlp.up", "blocks.{}.mlp.fc1"),
        *linear("blocks.{}.mlp.down", "blocks.{}.mlp.fc2"),
        Rule("blocks.{}.table", ("blocks.{}.scale_shift_table",)),
        Rule("table", ("final_layer.scale_shift_table",)),
        *linear("out", "final_layer.linear"),
    ],
    ignored=["pos_embed", r"y_embedder\.y_embedding"],
)
HEAD, BASE = 72, 32  # of every published PixArt: the width of a head, and the base of those of 512 pixels or more
FIXED = {  # options of diffusers' class with the values of every published PixArt
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
}


def from_diffusers(config: Mapping[str, Any], state: Mapping[str, Tensor], pixels_per_cell: int = 8) -> PixArt:
    """Returns the network of a diffusers PixArtTransformer2DModel.

    pixels_per_cell: the factor of the autoencoder, which the config does not contain; used only by models with
    micro-conditions. Raises ValueError if the config is not of a PixArt, or if weights do not fit, with their names.
    """
    odd = [f"{name}={config[name]}" for name, value in FIXED.items() if config.get(name, value) != value]
    if config.get("caption_channels") is None:
        odd.append("caption_channels=None")
    if odd:
        raise ValueError(f"the config has {', '.join(odd)}, which no published PixArt has: it cannot be read")
    channels, patch, side = config["in_channels"], config["patch_size"], config["sample_size"]
    scale, micro = config.get("interpolation_scale"), config.get("use_additional_conditions")
    # The defaults of both depend on the size.
    scale = max(side // 64, 1) if scale is None else scale
    micro = side == 128 if micro is None else micro
    net = PixArt(
        channels,
        config["caption_channels"],
        outputs=(config["out_channels"] or channels) // channels,
        patch=patch,
        width=config["num_attention_heads"] * config["attention_head_dim"],
        depth=config["num_layers"],
        heads=config["num_attention_heads"],
        base=side // patch / scale,
        pixels_per_cell=pixels_per_cell if micro else None,
    )
    DIFFUSERS.load(net, state, config["num_layers"])
    return net


def from_original(state: Mapping[str, Tensor]) -> PixArt:
    """Returns the network of an original PixArt state dict. Its size follows from the tensor shapes, with heads of
    width 72, and `base` from its table of position embeddings, if it has one. Raises ValueError for another state dict.
    """
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    net = PixArt(
        channels,
        state["y_embedder.y_proj.fc1.weight"].shape[1],
        outputs=len(state["final_layer.linear.weight"]) // (patch * patch * channels),
        patch=patch,
        width=width,
        depth=depth,
        heads=width // HEAD,
        base=base_of(state["pos_embed"]) if "pos_embed" in state else BASE,
        pixels_per_cell=8 if "csize_embedder.mlp.0.weight" in state else None,
    )
    ORIGINAL.load(net, state, depth)
    return net


def base_of(table: Tensor) -> float:
    """Returns the number of positions that a table of position embeddings (1, side^2, D) spans on each axis: the
    position of the second column, from its sine and cosine of the first frequency, times the side."""
    second, cosines = table[0, 1].double(), table.shape[2] // 4
    return round(math.isqrt(table.shape[1]) * math.atan2(second[0], second[cosines]), 3)


def to_diffusers(net: PixArt, sample_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns config and state dict of a PixArtTransformer2DModel for latents of `sample_size` cells on a side.

    Raises ValueError for parts that diffusers' class does not have.
    """
    block, patches = net.blocks[0], net.patches
    assert isinstance(block, PixArtBlock)
    assert patches.base is not None
    heads, patch, width = block.attention.heads, patches.patch, patches.project.out_channels
    differs = {
        "qk_norm": not isinstance(block.attention.q_norm, nn.Identity),
        "norm": not isinstance(net.norm, nn.LayerNorm),
        "mlp": not isinstance(block.mlp, Mlp),
        "mlp_ratio": isinstance(block.mlp, Mlp) and block.mlp.up.out_features != 4 * width,
        "position": patches.position != "sinusoid",
        "registers": patches.registers is not None,
        "overlap": patches.overlap > 0,
    }
    odd = [name for name, other in differs.items() if other]
    if odd:
        raise ValueError(
            f"diffusers' PixArt has layer norms, a plain MLP of mlp_ratio=4, sinusoidal positions, no registers and no "
            f"QK norm: this model differs in its {', '.join(odd)} and cannot be exported to it"
        )
    if net.pixels_per_cell is not None and sample_size != 128:
        raise ValueError(
            f"sample_size={sample_size}: diffusers' pipeline passes the size of the picture only to models with "
            f"sample_size=128, and this model needs it"
        )
    config = {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": patches.channels,
        "out_channels": net.out.out_features // patch**2,
        "num_layers": len(net.blocks),
        "cross_attention_dim": width,
        "caption_channels": net.text.up.in_features,
        "sample_size": sample_size,
        "patch_size": patch,
        "interpolation_scale": sample_size // patch / patches.base,
        "use_additional_conditions": net.pixels_per_cell is not None,
        **FIXED,
    }
    return config, DIFFUSERS.export(net, len(net.blocks))
