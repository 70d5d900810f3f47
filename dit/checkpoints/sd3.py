"""Import and export of Stable Diffusion 3 and 3.5: diffusers' SD3Transformer2DModel, and the original file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dit.backbones.mmdit import MMDiT
from dit.checkpoints.layout import Layout, Rule, linear
from dit.layers.mlp import Mlp

BLOCK = "transformer_blocks.{}"


def attention(ours: str, theirs: str, projection: str = "to_", end: str = "", norm: str = "norm_") -> list[Rule]:
    """Returns the rules of the queries, keys and values of an attention layer."""
    return [
        *linear(f"{ours}.qkv", *(f"{theirs}.{projection}{part}{end}" for part in "qkv")),
        *(Rule(f"{ours}.{part}_norm.weight", (f"{theirs}.{norm}{part}.weight",)) for part in "qk"),
    ]


DIFFUSERS = Layout(
    [
        *linear("patches.project", "pos_embed.proj"),
        Rule("patches.table", ("pos_embed.pos_embed",)),
        *linear("time.up", "time_text_embed.timestep_embedder.linear_1"),
        *linear("time.down", "time_text_embed.timestep_embedder.linear_2"),
        *linear("pooled.0", "time_text_embed.text_embedder.linear_1"),
        *linear("pooled.2", "time_text_embed.text_embedder.linear_2"),
        *linear("text_in", "context_embedder"),
        *attention("blocks.{}.image.attention", f"{BLOCK}.attn"),
        *linear("blocks.{}.image.attention.out", f"{BLOCK}.attn.to_out.0"),
        *attention("blocks.{}.image.alone", f"{BLOCK}.attn2"),
        *linear("blocks.{}.image.alone.out", f"{BLOCK}.attn2.to_out.0"),
        *linear("blocks.{}.image.modulation.linear", f"{BLOCK}.norm1.linear"),
        *linear("blocks.{}.image.mlp.up", f"{BLOCK}.ff.net.0.proj"),
        *linear("blocks.{}.image.mlp.down", f"{BLOCK}.ff.net.2"),
        *attention("blocks.{}.text.attention", f"{BLOCK}.attn", "add_", "_proj", "norm_added_"),
        *linear("blocks.{}.text.attention.out", f"{BLOCK}.attn.to_add_out"),
        *linear("blocks.{}.text.modulation.linear", f"{BLOCK}.norm1_context.linear"),
        *linear("blocks.{}.text.mlp.up", f"{BLOCK}.ff_context.net.0.proj"),
        *linear("blocks.{}.text.mlp.down", f"{BLOCK}.ff_context.net.2"),
        *attention("blocks.{}.last_text.attention", f"{BLOCK}.attn", "add_", "_proj", "norm_added_"),
        *linear("blocks.{}.last_text.modulation.linear", f"{BLOCK}.norm1_context.linear", swap=True),
        *linear("head.modulation.linear", "norm_out.linear", swap=True),
        *linear("head.linear", "proj_out"),
    ]
)


ORIGINAL_BLOCK = "joint_blocks.{}"


def original_stream(ours: str, theirs: str) -> list[Rule]:
    """Returns the rules of one stream of a block in the original code."""
    attentions = {f"{ours}.attention": f"{theirs}.attn", f"{ours}.alone": f"{theirs}.attn2"}
    rules = [rule for own, other in attentions.items() for rule in linear(f"{own}.qkv", f"{other}.qkv")]
    rules += [rule for own, other in attentions.items() for rule in linear(f"{own}.out", f"{other}.proj")]
    rules += [
        Rule(f"{own}.{part}_norm.weight", (f"{other}.ln_{part}.weight",))
        for own, other in attentions.items()
        for part in "qk"
    ]
    rules += linear(f"{ours}.modulation.linear", f"{theirs}.adaLN_modulation.1")
    return [*rules, *linear(f"{ours}.mlp.up", f"{theirs}.mlp.fc1"), *linear(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")]


ORIGINAL = Layout(
    [
        *linear("patches.project", "x_embedder.proj"),
        Rule("patches.table", ("pos_embed",)),
        *linear("time.up", "t_embedder.mlp.0"),
        *linear("time.down", "t_embedder.mlp.2"),
        *linear("pooled.0", "y_embedder.mlp.0"),
        *linear("pooled.2", "y_embedder.mlp.2"),
        *linear("text_in", "context_embedder"),
        *original_stream("blocks.{}.image", f"{ORIGINAL_BLOCK}.x_block"),
        *original_stream("blocks.{}.text", f"{ORIGINAL_BLOCK}.context_block"),
        *original_stream("blocks.{}.last_text", f"{ORIGINAL_BLOCK}.context_block"),
        *linear("head.modulation.linear", "final_layer.adaLN_modulation.1"),
        *linear("head.linear", "final_layer.linear"),
    ]
)
HEAD, BASE = 64, 64  # of every published one: the width of a head, and the side of the training images in patches


def from_diffusers(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> MMDiT:
    """Returns the network of a diffusers SD3Transformer2DModel, with its stored table of position embeddings.

    Raises ValueError for a config that lacks a size or has parts that ours does not have.
    """
    qk_norm, dual = config.get("qk_norm"), list(config.get("dual_attention_layers") or [])
    if qk_norm not in (None, "rms_norm"):
        raise ValueError(f"qk_norm={qk_norm!r}: use rms_norm or null")
    if dual != list(range(len(dual))):
        raise ValueError(f"dual_attention_layers={dual}: these must be the first blocks, 0, 1, ..., without gaps")
    try:
        channels, patch, heads = config["in_channels"], config["patch_size"], config["num_attention_heads"]
        net = MMDiT(
            channels,
            config["joint_attention_dim"],
            config["pooled_projection_dim"],
            (config["out_channels"] or channels) // channels,
            patch,
            heads * config["attention_head_dim"],
            config["num_layers"],
            heads,
            dual=len(dual),
            qk_norm=qk_norm is not None,
            reads_padding=True,
            position="cropped",
            base=config["sample_size"] // patch,
            largest=config["pos_embed_max_size"],
        )
    except KeyError as error:
        raise ValueError(f"the config is not of an SD3 transformer: it has no {error}") from None
    DIFFUSERS.load(net, state, config["num_layers"])
    return net


def from_original(state: Mapping[str, Tensor]) -> MMDiT:
    """Returns the network of an original Stable Diffusion 3 or 3.5 state dict, with its stored table of position
    embeddings. Its size follows from the tensor shapes, with heads of width 64. Raises ValueError for another state
    dict."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("joint_blocks."))
    net = MMDiT(
        channels,
        state["context_embedder.weight"].shape[1],
        state["y_embedder.mlp.0.weight"].shape[1],
        len(state["final_layer.linear.weight"]) // (patch * patch * channels),
        patch,
        width,
        depth,
        width // HEAD,
        dual=sum(key.endswith("x_block.attn2.qkv.weight") for key in state),
        qk_norm="joint_blocks.0.x_block.attn.ln_q.weight" in state,
        reads_padding=True,
        position="cropped",
        base=BASE,
        largest=math.isqrt(state["pos_embed"].shape[1]),
    )
    ORIGINAL.load(net, state, depth)
    return net


def to_diffusers(net: MMDiT, sample_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns config and state dict of an SD3Transformer2DModel for latents of `sample_size` cells on a side.

    Raises ValueError for parts that diffusers' class does not have.
    """
    patches, blocks = net.patches, list[Any](net.blocks)
    image, width = blocks[0].image, patches.project.out_channels
    has = {
        "position=cropped": patches.position == "cropped",
        "no registers": patches.registers is None,
        "no overlap": patches.overlap == 0,
        "reads_padding=true": net.reads_padding,
        "layer norms": isinstance(image.norm1, nn.LayerNorm),
        "a plain MLP of ratio 4": isinstance(image.mlp, Mlp) and image.mlp.up.out_features == 4 * width,
    }
    if not all(has.values()):
        lacking = ", ".join(name for name, there in has.items() if not there)
        raise ValueError(f"diffusers' SD3 has {lacking}: this model differs and cannot be exported to it")
    heads = image.attention.heads
    config = {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": sample_size,
        "patch_size": patches.patch,
        "in_channels": patches.channels,
        "num_layers": len(blocks),
        "attention_head_dim": width // heads,
        "num_attention_heads": heads,
        "joint_attention_dim": net.text_in.in_features,
        "caption_projection_dim": width,
        "pooled_projection_dim": net.pooled[0].in_features,
        "out_channels": net.head.linear.out_features // patches.patch**2,
        "pos_embed_max_size": patches.largest,
        "dual_attention_layers": [i for i, block in enumerate(blocks) if block.image.alone is not None],
        "qk_norm": None if isinstance(image.attention.q_norm, nn.Identity) else "rms_norm",
    }
    return config, DIFFUSERS.export(net, len(blocks))
