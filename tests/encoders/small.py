"""Small random autoencoders of every supported class, as folders in diffusers' layout."""

from pathlib import Path

import diffusers
import torch

KL = {
    "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
BARE = {"use_quant_conv": False, "use_post_quant_conv": False}
DC = {
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"), "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16),
    "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)), "attention_head_dim": 8,
}  # fmt: skip
TINY = {
    "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
}  # fmt: skip

SMALL = {  # name: class and config
    "kl_4": ("AutoencoderKL", KL | {"latent_channels": 4, "scaling_factor": 0.18215}),
    "kl_16": ("AutoencoderKL", KL | BARE | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "tiny": ("AutoencoderTiny", TINY | {"latent_channels": 4}),
    "dc": ("AutoencoderDC", DC | {"latent_channels": 8, "scaling_factor": 0.41407}),
}


def small(name: str, **changes):
    """Returns a network with fixed random weights."""
    kind, config = SMALL[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(diffusers, kind)(**config | changes).eval().requires_grad_(False)


def saved(root: Path, name: str, **changes) -> Path:
    """Saves the network and returns its folder."""
    folder = root / name
    small(name, **changes).save_pretrained(folder)
    return folder
