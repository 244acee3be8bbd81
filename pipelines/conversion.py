"""OpenAI's checkpoints as pipelines that sample without further arguments."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from diffusers_cg.errors import InputError
from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.models.openai_files import OpenAICheckpoint, open_checkpoint
from diffusers_cg.models.presets import Preset
from diffusers_cg.pipelines import ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline


def convert_checkpoints(
    unet_path: str | Path,
    classifier_path: str | Path | None = None,
    torch_dtype: torch.dtype = torch.float32,
    beta_schedule: str | None = None,
    unet_facts: dict[str, Any] | None = None,
    classifier_facts: dict[str, Any] | None = None,
    low_res_size: int | None = None,
) -> tuple[ClassifierGuidedDDPMPipeline | ClassifierGuidedSuperResolutionPipeline, Preset | None]:
    """Makes one pipeline of a unet and, optionally, its classifier, with the paper's defaults in its config.

    Args:
        unet_path, classifier_path (`str` or `Path`): `.pt` or `.safetensors` files.
        torch_dtype (`torch.dtype`): Of the weights.
        beta_schedule (`str`, *optional*): Noise schedule by diffusers' name, in place of the preset's; linear where the
            unet has none.
        unet_facts, classifier_facts (`dict`, *optional*): What names and shapes do not tell: keyword arguments of
            `from_single_file`.
        low_res_size (`int`, *optional*): Side of an upsampler's low-resolution images; the released ones' is known.

    Returns:
        A [`ClassifierGuidedSuperResolutionPipeline`] of an upsampling unet; of any other one a
        [`ClassifierGuidedDDPMPipeline`], whose saved folder [`ClassifierGuidedDDIMPipeline`] loads, too. And the paper's
        network that the unet was recognised as; None if it is another.

    Raises:
        FileNotFoundError, InputError: if a file cannot be converted or the two do not fit together.
    """
    checkpoint = open_checkpoint(unet_path, "unet", **unet_facts or {})
    preset = checkpoint.preset
    low_res_size = resolve_low_res_size(checkpoint, low_res_size)
    unet = ADMUNet2DModel.from_checkpoint(checkpoint, torch_dtype)
    classifier = None
    if classifier_path is not None:
        classifier = NoisyClassifierModel.from_single_file(
            classifier_path, torch_dtype=torch_dtype, **classifier_facts or {}
        )

    defaults = {}
    if preset is not None:
        beta_schedule = beta_schedule or preset.beta_schedule
        defaults = {
            "ddpm_num_inference_steps": preset.ddpm_num_inference_steps,
            "ddpm_classifier_scale": preset.ddpm_classifier_scale,
            "ddim_classifier_scale": preset.ddim_classifier_scale,
        }
    scheduler = DDPMScheduler(
        beta_schedule=beta_schedule or "linear",
        variance_type="learned_range" if unet.predicts_variance else "fixed_large",
        timestep_spacing="linspace",
    )
    if low_res_size is None:
        return ClassifierGuidedDDPMPipeline(unet, scheduler, classifier, **defaults), preset
    return ClassifierGuidedSuperResolutionPipeline(unet, scheduler, classifier, low_res_size, **defaults), preset


def resolve_low_res_size(checkpoint: OpenAICheckpoint, low_res_size: int | None) -> int | None:
    """Side of the low-resolution images: the one given, else the preset's; None if the unet is no upsampler.

    Raises:
        InputError: if it is not known, or given for a network that has no use for it.
    """
    upsamples = checkpoint.arguments["low_res_channels"] > 0
    if low_res_size is None and checkpoint.preset is not None:
        low_res_size = checkpoint.preset.low_res_size
    if upsamples and low_res_size is None:
        raise InputError(
            "This unet is an upsampling one, and its shapes do not tell from what size: pass low_res_size=, the side of "
            "the low-resolution images that it was trained on."
        )
    if not upsamples and low_res_size is not None:
        raise InputError("This unet generates from noise alone: low_res_size= is for upsampling ones.")
    return low_res_size
