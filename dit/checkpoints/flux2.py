"""Import and export of FLUX.2: diffusers' Flux2Transformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit.backbones.flux2 import LONGEST, DoubleBlock, Flux2, SingleBlock
from dit.checkpoints.flux import DOUBLE, GUIDANCE_SCALE, SINGLE, divided, numbered
from dit.checkpoints.layout import Layout, Rule

ENDS = {
    "image_in": "x_embedder",
    "text_in": "context_embedder",
    "time.up": "time_guidance_embed.timestep_embedder.linear_1",
    "time.down": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance.up": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance.down": "time_guidance_embed.guidance_embedder.linear_2",
    "text_modulation.linear": "double_stream_modulation_txt.linear",
    "image_modulation.linear": "double_stream_modulation_img.linear",
    "single_modulation.linear": "single_stream_modulation.linear",
    "head.linear": "proj_out",
}
DOUBLE_BLOCKS = {
    "image.attention.out": "attn.to_out.0",
    "image.attention.q_norm": "attn.norm_q",
    "image.attention.k_norm": "attn.norm_k",
    "image.mlp.up": "ff.linear_in",
    "image.mlp.down": "ff.linear_out",
    "text.attention.out": "attn.to_add_out",
    "text.attention.q_norm": "attn.norm_added_q",
    "text.attention.k_norm": "attn.norm_added_k",
    "text.mlp.up": "ff_context.linear_in",
    "text.mlp.down": "ff_context.linear_out",
}
FUSED = "to_qkv_mlp_proj"  # qkv and mlp in one layer there, which `divided` divides
SINGLE_BLOCKS = {
    "attention.qkv": f"attn.{FUSED}.qkv",
    "mlp": f"attn.{FUSED}.mlp",
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "out": "attn.to_out",
}
FIXED = {"patch_size": 1, "timestep_guidance_channels": 256, "rope_theta": LONGEST, "eps": 1e-6}


def weights(ours: str, theirs: str, names: Mapping[str, str]) -> list[Rule]:
    """Returns the rules of layers that have only a weight. ours, theirs: what stands before the names."""
    return [Rule(f"{ours}{own}.weight", (f"{theirs}{other}.weight",)) for own, other in names.items()]


def layout_of(depth: int, single_depth: int) -> Layout:
    """Returns the rules of a model with these numbers of blocks, each rule of one tensor."""
    double = weights("blocks.{}.", f"{DOUBLE}.", DOUBLE_BLOCKS)
    for stream, before, end in (("image", "to_", ""), ("text", "add_", "_proj")):
        names = tuple(f"{DOUBLE}.attn.{before}{part}{end}.weight" for part in "qkv")
        double.append(Rule(f"blocks.{{}}.{stream}.attention.qkv.weight", names))
    single = weights("single_blocks.{}.", f"{SINGLE}.", SINGLE_BLOCKS)
    head = Rule("head.modulation.linear.weight", ("norm_out.linear.weight",), swap=True)
    return Layout([*weights("", "", ENDS), head, *numbered(double, depth), *numbered(single, single_depth)])


def from_diffusers(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Flux2:
    """Returns the network of a diffusers Flux2Transformer2DModel. Its latents are packed by the autoencoder.

    Raises ValueError for a config that lacks a size or has parts that ours does not have.
    """
    if odd := [f"{name}={config[name]}" for name, value in FIXED.items() if config.get(name, value) != value]:
        raise ValueError(f"the config has {', '.join(odd)}, which no published FLUX.2 has: it cannot be read")
    try:
        channels, heads = config["in_channels"], config["num_attention_heads"]
        if config.get("out_channels") not in (None, channels):
            raise ValueError(f"the config has out_channels={config['out_channels']}: FLUX.2 has as many as inputs")
        width, depths = heads * config["attention_head_dim"], (config["num_layers"], config["num_single_layers"])
        net = Flux2(
            channels,
            config["joint_attention_dim"],
            width=width,
            depth=depths[0],
            single_depth=depths[1],
            heads=heads,
            mlp_ratio=config["mlp_ratio"],
            axes=config["axes_dims_rope"],
            guidance_scale=GUIDANCE_SCALE if config["guidance_embeds"] else None,
            reads_padding=True,
        )
    except KeyError as error:
        raise ValueError(f"the config is not of a FLUX.2 transformer: it has no {error}") from None
    layout_of(*depths).load(net, divided(state, width, FUSED), 1)
    return net


def to_diffusers(net: Flux2, sample_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns config and state dict of a Flux2Transformer2DModel, which fits every size of latents.

    Raises ValueError for parts that diffusers' class does not have.
    """
    double, single = net.blocks[0], net.single_blocks[0]
    assert isinstance(double, DoubleBlock)
    assert isinstance(single, SingleBlock)
    has = {"reads_padding=true": net.reads_padding, "patch=1": net.patch == 1}
    if not all(has.values()):
        lacking = ", ".join(name for name, there in has.items() if not there)
        raise ValueError(f"diffusers' FLUX.2 has {lacking}: this model differs and cannot be exported to it")
    heads, depths = double.image.attention.heads, (len(net.blocks), len(net.single_blocks))
    width = net.image_in.out_features
    config = {
        "_class_name": "Flux2Transformer2DModel",
        **FIXED,
        "in_channels": net.channels,
        "out_channels": None,
        "num_layers": depths[0],
        "num_single_layers": depths[1],
        "attention_head_dim": width // heads,
        "num_attention_heads": heads,
        "joint_attention_dim": net.text_in.in_features,
        "mlp_ratio": single.mlp.out_features / 2 / width,
        "guidance_embeds": net.guidance is not None,
        "axes_dims_rope": list(net.axes),
    }
    state = layout_of(*depths).export(net, 1)
    for i in range(depths[1]):
        layer = f"{SINGLE.format(i)}.attn.{FUSED}"
        state[f"{layer}.weight"] = torch.cat([state.pop(f"{layer}.{part}.weight") for part in ("qkv", "mlp")])
    return config, state
