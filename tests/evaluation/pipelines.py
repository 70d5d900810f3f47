"""Small random pipelines of diffusers of several families, as folders."""

from pathlib import Path

import diffusers
import torch
import transformers

from ..encoders.folders import save_clip, save_flux, save_language_model, save_sd3, save_t5
from ..encoders.small import small

TRANSFORMER = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
UNET = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 8, "norm_num_groups": 4,
    "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def made(kind, **config):
    """A network with random values in all weights, also those that are zero at first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(diffusers, kind)(**config).eval()
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return net


def texts(folder, **kinds):
    """Text encoders and tokenizers by their names in a pipeline, from subfolders of these names."""
    parts = {}
    for end, kind in kinds.items():
        end = "" if end == "_1" else end
        parts[f"text_encoder{end}"] = getattr(transformers, kind).from_pretrained(folder / f"text_encoder{end}")
        parts[f"tokenizer{end}"] = transformers.AutoTokenizer.from_pretrained(folder / f"tokenizer{end}")
    return parts


def sd15(folder):
    save_clip(folder / "text_encoder", folder / "tokenizer")
    return diffusers.StableDiffusionPipeline(
        vae=small("kl_4"), unet=made("UNet2DConditionModel", cross_attention_dim=32, **UNET),
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, **texts(folder, _1="CLIPTextModel"),
    )  # fmt: skip


def sdxl(folder):
    save_clip(folder / "text_encoder", folder / "tokenizer", width=16, seed=1)
    save_clip(folder / "text_encoder_2", folder / "tokenizer_2", width=24, projection=20, seed=2, pad="!")
    unet = made(
        "UNet2DConditionModel", cross_attention_dim=40, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8, **UNET,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=small("kl_4"), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        **texts(folder, _1="CLIPTextModel", _2="CLIPTextModelWithProjection"),
    )  # fmt: skip


def sd3(folder):
    save_sd3(folder)
    net = made(
        "SD3Transformer2DModel", sample_size=8, joint_attention_dim=48, caption_projection_dim=16,
        pooled_projection_dim=36, pos_embed_max_size=8, in_channels=16, out_channels=16, **TRANSFORMER,
    )  # fmt: skip
    kinds = {"_1": "CLIPTextModelWithProjection", "_2": "CLIPTextModelWithProjection", "_3": "T5EncoderModel"}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(net, scheduler, small("kl_16"), **texts(folder, **kinds))


def flux(folder):
    save_flux(folder)
    net = made(
        "FluxTransformer2DModel", in_channels=64, num_single_layers=1, joint_attention_dim=48, axes_dims_rope=(4, 2, 2),
        pooled_projection_dim=16, guidance_embeds=True, **TRANSFORMER,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return diffusers.FluxPipeline(
        scheduler, small("kl_16"), transformer=net, **texts(folder, _1="CLIPTextModel", _2="T5EncoderModel")
    )


def pixart_sigma(folder):
    save_t5(folder / "text_encoder", folder / "tokenizer")
    net = made(
        "PixArtTransformer2DModel", cross_attention_dim=16, caption_channels=32, sample_size=8, in_channels=4,
        out_channels=8, interpolation_scale=0.5, use_additional_conditions=False, **TRANSFORMER,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        vae=small("kl_4"), transformer=net, scheduler=diffusers.DPMSolverMultistepScheduler(),
        **texts(folder, _1="T5EncoderModel"),
    )  # fmt: skip


def sana(folder):
    save_language_model(folder / "text_encoder", "Gemma2")
    transformers.AutoTokenizer.from_pretrained(folder / "text_encoder").save_pretrained(folder / "tokenizer")
    net = made(
        "SanaTransformer2DModel", in_channels=8, out_channels=8, num_cross_attention_heads=2, cross_attention_head_dim=8,
        cross_attention_dim=16, caption_channels=32, sample_size=16, **TRANSFORMER,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        vae=small("dc"), transformer=net, scheduler=scheduler, **texts(folder, _1="Gemma2Model")
    )


SMALL_TEXT = {"max_sequence_length": 12}
EXACT = {"clean_caption": False, "use_resolution_binning": False}
FAMILIES = {  # name: the maker of its pipeline, the options of its call
    "sd15": (sd15, {}),
    "sdxl": (sdxl, {}),
    "sd3": (sd3, SMALL_TEXT),
    "flux": (flux, {"height": 16, "width": 24, **SMALL_TEXT}),
    "pixart_sigma": (pixart_sigma, {"height": 16, "width": 16, **EXACT, **SMALL_TEXT}),
    "sana": (sana, {"height": 32, "width": 32, "complex_human_instruction": None, **EXACT, **SMALL_TEXT}),
}


def save_pipeline(root: Path, family: str) -> Path:
    FAMILIES[family][0](root / "parts").save_pretrained(root / family)
    return root / family


def save_lora(folder: Path, pipeline: Path, family: str) -> Path:
    """Saves a LoRA of all value layers of the denoiser in diffusers' own form."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = getattr(diffusers, PIPELINES[family]).from_pretrained(pipeline)
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    net = getattr(pipe, name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_v"]))
    layers = {key: 30 * value for key, value in get_peft_model_state_dict(net, adapter_name="default").items()}
    pipe.save_lora_weights(folder, **{f"{name}_lora_layers": layers})
    return folder


PIPELINES = {
    "sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline", "pixart_sigma": "PixArtSigmaPipeline", "sana": "SanaPipeline",
}  # fmt: skip
