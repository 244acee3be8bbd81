"""Checkpoints of OpenAI's layout as pipelines that sample without further arguments."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from diffusers_cg.diffusion import training_scheduler
from diffusers_cg.errors import InputError
from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.models.openai_files import CheckpointWarning, OpenAICheckpoint, examine, open_checkpoint
from diffusers_cg.models.presets import CONTINUOUS_COSINE, COSINE, Preset
from diffusers_cg.pipelines import ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline


USUAL_PROCESS = {"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "epsilon"}
FIRST_TIME = 0.5  # of step 0: at time 0 itself there is no noise, which divides


def convert_checkpoints(
    unet_path: str | Path,
    classifier_path: str | Path | None = None,
    torch_dtype: torch.dtype = torch.float32,
    beta_schedule: str | None = None,
    unet_facts: dict[str, Any] | None = None,
    classifier_facts: dict[str, Any] | None = None,
    low_res_size: int | None = None,
    num_train_timesteps: int | None = None,
    rescale_timesteps: bool | None = None,
    prediction_type: str | None = None,
    read: bool = True,
) -> tuple[ClassifierGuidedDDPMPipeline | ClassifierGuidedSuperResolutionPipeline, Preset | None]:
    """Makes one pipeline of a unet and, optionally, its classifier, with all that is known of them in its config.

    Args:
        unet_path, classifier_path (`str` or `Path`): `.pt` or `.safetensors` files, or folders that others put on the Hub.
        torch_dtype (`torch.dtype`): Of the weights.
        beta_schedule (`str`, *optional*): Noise schedule by diffusers' name, or `"continuous_cosine"`; that of the layout,
            else linear.
        unet_facts, classifier_facts (`dict`, *optional*): What names and shapes do not tell: keyword arguments of
            `from_single_file`.
        low_res_size (`int`, *optional*): Side of an upsampler's low-resolution images; that of the layout.
        num_train_timesteps, rescale_timesteps, prediction_type (*optional*): T, whether the unet sees t x 1000 / T, and what
            it predicts; those of the layout, else 1000, no and `"epsilon"`.
        read (`bool`): Whether to read the weights. Without them the pipeline can only be saved, which converts tensor by
            tensor from file to file.

    Returns:
        A [`ClassifierGuidedSuperResolutionPipeline`] of an upsampling unet; of any other one a
        [`ClassifierGuidedDDPMPipeline`], whose saved folder [`ClassifierGuidedDDIMPipeline`] loads, too. And the paper's
        network that the unet is; None unless all files have the names and shapes of released ones.

    Raises:
        FileNotFoundError, InputError: if a file cannot be converted or the two do not fit together.
    """
    stated = {
        "num_train_timesteps": num_train_timesteps,
        "beta_schedule": beta_schedule,
        "rescale_timesteps": rescale_timesteps,
        "prediction_type": prediction_type,
    }
    checkpoint = open_checkpoint(unet_path, "unet", **stated | (unet_facts or {}))
    low_res_size = resolve_low_res_size(checkpoint, low_res_size)
    unet = ADMUNet2DModel.from_checkpoint(checkpoint, torch_dtype, read)
    preset, defaults = checkpoint.preset, {}
    if preset is not None:
        defaults = {
            "ddpm_num_inference_steps": preset.ddpm_num_inference_steps,
            "ddpm_classifier_scale": preset.ddpm_classifier_scale,
            "ddim_classifier_scale": preset.ddim_classifier_scale,
        }
    classifier = None
    if classifier_path is not None:
        facts = classifier_facts or {}
        if "sample_size" not in examine(classifier_path, "classifier", **facts).facts:
            facts = {**facts, "sample_size": unet.config.sample_size}  # the images that it is to guide
        classifier_checkpoint = open_checkpoint(classifier_path, "classifier", **facts)
        classifier = NoisyClassifierModel.from_checkpoint(classifier_checkpoint, torch_dtype, read)
        if classifier_checkpoint.preset is None:
            preset = None
    scheduler = scheduler_of(unet, checkpoint.process, str(unet_path))
    if low_res_size is None:
        return ClassifierGuidedDDPMPipeline(unet, scheduler, classifier, **defaults), preset
    return ClassifierGuidedSuperResolutionPipeline(unet, scheduler, classifier, low_res_size, **defaults), preset


def scheduler_of(unet: ADMUNet2DModel, process: dict[str, Any], name: str) -> DDPMScheduler:
    """The process that a unet was trained on; what is not known of it is as usual, with a warning."""
    process = {key: value for key, value in process.items() if key != "rescale_timesteps"}  # which the unet does
    unknown = [key for key in USUAL_PROCESS if key not in process]
    if unknown:
        warnings.warn(
            f"Nothing tells how {name} was trained: {', '.join(f'{key}={USUAL_PROCESS[key]!r}' for key in unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} assumed; pass what is otherwise.",
            CheckpointWarning,
            stacklevel=3,
        )
    process = USUAL_PROCESS | process
    if process["beta_schedule"] != CONTINUOUS_COSINE:
        return training_scheduler(
            **process, variance_type="learned_range" if unet.predicts_variance else "fixed_large"
        )
    scheduler = training_scheduler(**process | {"beta_schedule": COSINE}, variance_type="fixed_large")
    betas = continuous_cosine_betas(process["num_train_timesteps"])
    return DDPMScheduler.from_config(scheduler.config, trained_betas=betas)


def continuous_cosine_betas(num_train_timesteps: int) -> list[float]:
    """Betas with which abar of timestep i is cos^2(pi i / 2 T), as of networks trained at real times (v-diffusion)."""
    times = [FIRST_TIME, *range(1, num_train_timesteps)]
    alphas_cumprod = [1.0, *(math.cos(math.pi / 2 * time / num_train_timesteps) ** 2 for time in times)]
    return [1 - after / before for before, after in zip(alphas_cumprod, alphas_cumprod[1:])]


def resolve_low_res_size(checkpoint: OpenAICheckpoint, low_res_size: int | None) -> int | None:
    """Side of the low-resolution images: the one given, else the layout's; None if the unet is no upsampler.

    Raises:
        InputError: if it is not known, or given for a network that has no use for it.
    """
    upsamples = checkpoint.arguments["low_res_channels"] > 0
    if low_res_size is None and checkpoint.layout is not None:
        low_res_size = checkpoint.layout.low_res_size
    if upsamples and low_res_size is None:
        raise InputError(
            "This unet is an upsampling one, and its shapes do not tell from what size: pass low_res_size=, the side of "
            "the low-resolution images that it was trained on."
        )
    if not upsamples and low_res_size is not None:
        raise InputError("This unet generates from noise alone: low_res_size= is for upsampling ones.")
    return low_res_size
