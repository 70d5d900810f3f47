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


def original_stream(ours: str, theirs: str) -> list[Rule]:
    """Returns the rules of one stream of a block in the original code. theirs: img or txt."""
    block = f"double_blocks.{{}}.{theirs}"
    return [
        *linear(f"{ours}.attention.qkv", f"{block}_attn.qkv"),
        Rule(f"{ours}.attention.q_norm.weight", (f"{block}_attn.norm.query_norm.scale",)),
        Rule(f"{ours}.attention.k_norm.weight", (f"{block}_attn.norm.key_norm.scale",)),
        *linear(f"{ours}.attention.out", f"{block}_attn.proj"),
        *linear(f"{ours}.modulation.linear", f"{block}_mod.lin"),
        *linear(f"{ours}.mlp.up", f"{block}_mlp.0"),
        *linear(f"{ours}.mlp.down", f"{block}_mlp.2"),
    ]


ORIGINAL_ENDS = [
    *linear("image_in", "img_in"),
    *linear("text_in", "txt_in"),
    *(rule for part in ("time", "guidance") for rule in linear(f"{part}.up", f"{part}_in.in_layer")),
    *(rule for part in ("time", "guidance") for rule in linear(f"{part}.down", f"{part}_in.out_layer")),
    *linear("pooled.0", "vector_in.in_layer"),
    *linear("pooled.2", "vector_in.out_layer"),
    *linear("head.modulation.linear", "final_layer.adaLN_modulation.1"),
    *linear("head.linear", "final_layer.linear"),
]
ORIGINAL_DOUBLE = [*original_stream("blocks.{}.image", "img"), *original_stream("blocks.{}.text", "txt")]
ORIGINAL_SINGLE = [  # qkv and mlp are one layer, linear1, which `divided` divides
    *linear("single_blocks.{}.attention.qkv", "single_blocks.{}.linear1.qkv"),
    *linear("single_blocks.{}.mlp", "single_blocks.{}.linear1.mlp"),
    Rule("single_blocks.{}.attention.q_norm.weight", ("single_blocks.{}.norm.query_norm.scale",)),
    Rule("single_blocks.{}.attention.k_norm.weight", ("single_blocks.{}.norm.key_norm.scale",)),
    *linear("single_blocks.{}.modulation.linear", "single_blocks.{}.modulation.lin"),
    *linear("single_blocks.{}.out", "single_blocks.{}.linear2"),
]


def numbered(rules: list[Rule], count: int) -> list[Rule]:
    """Returns the rules for each of `count` blocks."""
    return [
        Rule(rule.ours.format(i), tuple(name.format(i) for name in rule.theirs), rule.swap)
        for rule in rules
        for i in range(count)
    ]


def layout_of(depth: int, single_depth: int, original: bool = False) -> Layout:
    """Returns the rules of a model with these numbers of blocks, each rule of one tensor, for diffusers' names or for
    those of the original code."""
    if original:
        return Layout([*ORIGINAL_ENDS, *numbered(ORIGINAL_DOUBLE, depth), *numbered(ORIGINAL_SINGLE, single_depth)])
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


def from_original(state: Mapping[str, Tensor]) -> Flux:
    """Returns the network of an original FLUX.1 state dict. Its size follows from the tensor shapes. Raises ValueError
    for another state dict."""
    width, packed = state["img_in.weight"].shape
    head = len(state["double_blocks.0.img_attn.norm.query_norm.scale"])
    depths = [
        1 + max((int(key.split(".")[1]) for key in state if key.startswith(f"{kind}_blocks.")), default=-1)
        for kind in ("double", "single")
    ]
    net = Flux(
        packed // 4,
        state["txt_in.weight"].shape[1],
        state["vector_in.in_layer.weight"].shape[1],
        width=width,
        depth=depths[0],
        single_depth=depths[1],
        heads=width // head,
        guidance_scale=GUIDANCE_SCALE if "guidance_in.in_layer.weight" in state else None,
        reads_padding=True,
    )
    layout_of(depths[0], depths[1], original=True).load(net, divided(state, width), 1)
    return net


def divided(state: Mapping[str, Tensor], width: int, fused: str = "linear1") -> dict[str, Tensor]:
    """Returns the state dict with each layer `fused` as two, qkv (3 width rows) and mlp."""
    found = {}
    for name in state:
        layer, is_fused, part = name.partition(f".{fused}.")
        value = state[name]
        if not is_fused:
            found[name] = value
            continue
        qkv, mlp = value.tensor_split([3 * width])
        found |= {f"{layer}.{fused}.qkv.{part}": qkv.clone(), f"{layer}.{fused}.mlp.{part}": mlp.clone()}
    return found


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
