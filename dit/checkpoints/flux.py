"""Import and export of FLUX.1: diffusers' FluxTransformer2DModel, and the original file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit.backbones.flux import DoubleBlock, Flux, SingleBlock
from dit.checkpoints.layout import Layout, Rule, linear
from dit.checkpoints.sd3 import attention

DOUBLE, SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
GUIDANCE_SCALE = 3.5  # of FLUX.1-dev in diffusers
ENDS = [
    *linear("image_in", "x_embedder"),
    *linear("text_in", "context_embedder"),
    *linear("time.up", "time_text_embed.timestep_embedder.linear_1"),
    *linear("time.down", "time_text_embed.timestep_embedder.linear_2"),
    *linear("guidance.up", "time_text_embed.guidance_embedder.linear_1"),
    *linear("guidance.down", "time_text_embed.guidance_embedder.linear_2"),
    *linear("pooled.0", "time_text_embed.text_embedder.linear_1"),
    *linear("pooled.2", "time_text_embed.text_embedder.linear_2"),
    *linear("head.modulation.linear", "norm_out.linear", swap=True),
    *linear("head.linear", "proj_out"),
]
DOUBLE_BLOCKS = [
    *attention("blocks.{}.image.attention", f"{DOUBLE}.attn"),
    *linear("blocks.{}.image.attention.out", f"{DOUBLE}.attn.to_out.0"),
    *linear("blocks.{}.image.modulation.linear", f"{DOUBLE}.norm1.linear"),
    *linear("blocks.{}.image.mlp.up", f"{DOUBLE}.ff.net.0.proj"),
    *linear("blocks.{}.image.mlp.down", f"{DOUBLE}.ff.net.2"),
    *attention("blocks.{}.text.attention", f"{DOUBLE}.attn", "add_", "_proj", "norm_added_"),
    *linear("blocks.{}.text.attention.out", f"{DOUBLE}.attn.to_add_out"),
    *linear("blocks.{}.text.modulation.linear", f"{DOUBLE}.norm1_context.linear"),
    *linear("blocks.{}.text.mlp.up", f"{DOUBLE}.ff_context.net.0.proj"),
    *linear("blocks.{}.text.mlp.down", f"{DOUBLE}.ff_context.net.2"),
]
SINGLE_BLOCKS = [
    *attention("single_blocks.{}.attention", f"{SINGLE}.attn"),
    *linear("single_blocks.{}.modulation.linear", f"{SINGLE}.norm.linear"),
    *linear("single_blocks.{}.mlp", f"{SINGLE}.proj_mlp"),
    *linear("single_blocks.{}.out", f"{SINGLE}.proj_out"),
]


def layout_of(depth: int, single_depth: int) -> Layout:
    """Returns the rules of a model with these numbers of blocks, each rule of one tensor."""

    def numbered(rules: list[Rule], count: int) -> list[Rule]:
        return [
            Rule(rule.ours.format(i), tuple(name.format(i) for name in rule.theirs), rule.swap)
            for rule in rules
            for i in range(count)
        ]

    return Layout([*ENDS, *numbered(DOUBLE_BLOCKS, depth), *numbered(SINGLE_BLOCKS, single_depth)])


def from_diffusers(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Flux:
    """Returns the network of a diffusers FluxTransformer2DModel, with latents packed in patches of 2 x 2.

    Raises ValueError for a config that lacks a size or has parts that ours does not have.
    """
    try:
        packed, heads, head = config["in_channels"], config["num_attention_heads"], config["attention_head_dim"]
        if config["patch_size"] != 1 or packed % 4 or config.get("out_channels") not in (None, packed):
            sizes = ", ".join(f"{name}={config.get(name)}" for name in ("patch_size", "in_channels", "out_channels"))
            raise ValueError(f"the config has {sizes}: FLUX.1 has patch_size=1, and as many outputs as inputs, 4 C")
        depths = config["num_layers"], config["num_single_layers"]
        net = Flux(
            packed // 4,
            config["joint_attention_dim"],
            config["pooled_projection_dim"],
            width=heads * head,
            depth=depths[0],
            single_depth=depths[1],
            heads=heads,
            axes=config["axes_dims_rope"],
            guidance_scale=GUIDANCE_SCALE if config["guidance_embeds"] else None,
            reads_padding=True,
        )
    except KeyError as error:
        raise ValueError(f"the config is not of a FLUX transformer: it has no {error}") from None
    layout_of(*depths).load(net, state, 1)
    return net


def to_diffusers(net: Flux, sample_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns config and state dict of a FluxTransformer2DModel, which fits every size of latents.

    Raises ValueError for parts that diffusers' class does not have.
    """
    double, single = net.blocks[0], net.single_blocks[0]
    assert isinstance(double, DoubleBlock)
    assert isinstance(single, SingleBlock)
    width, hidden = net.image_in.out_features, single.mlp.out_features
    has = {
        "reads_padding=true": net.reads_padding,
        "patch=2": net.patch == 2,
        "mlp_ratio=4": hidden == 4 * width,
    }
    if not all(has.values()):
        lacking = ", ".join(name for name, there in has.items() if not there)
        raise ValueError(f"diffusers' FLUX has {lacking}: this model differs and cannot be exported to it")
    heads, depths = double.image.attention.heads, (len(net.blocks), len(net.single_blocks))
    config = {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": net.image_in.in_features,
        "out_channels": None,
        "num_layers": depths[0],
        "num_single_layers": depths[1],
        "attention_head_dim": width // heads,
        "num_attention_heads": heads,
        "joint_attention_dim": net.text_in.in_features,
        "pooled_projection_dim": net.pooled[0].in_features,
        "guidance_embeds": net.guidance is not None,
        "axes_dims_rope": list(net.axes),
    }
    return config, layout_of(*depths).export(net, 1)
