"""OpenAI's checkpoints as pipeline folders that load without further arguments."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from diffusers_cg.data.files import atomic_directory
from diffusers_cg.errors import InputError
from diffusers_cg.hub.model_card import write_openai_model_card
from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.models.openai_checkpoint import (
    Recognised,
    ReleasedCheckpoint,
    find_released,
    read_state_dict,
    recognise,
)
from diffusers_cg.pipelines import ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def convert_checkpoints(
    unet_path: str | Path,
    classifier_path: str | Path | None,
    output_dir: str | Path,
    dtype: str = "fp32",
    max_shard_size: str = "10GB",
    beta_schedule: str | None = None,
    unet_facts: dict[str, Any] | None = None,
    classifier_facts: dict[str, Any] | None = None,
    low_res_size: int | None = None,
) -> ReleasedCheckpoint | None:
    """Converts a unet and, optionally, its classifier into one pipeline folder, with the paper's defaults saved in it.

    An upsampling unet becomes a [`ClassifierGuidedSuperResolutionPipeline`], any other one that
    [`ClassifierGuidedDDPMPipeline`] and [`ClassifierGuidedDDIMPipeline`] both load.

    Args:
        unet_path, classifier_path (`str` or `Path`): `.pt` or `.safetensors` files.
        output_dir (`str` or `Path`): The folder to write, whole or not at all; a pipeline that is there is replaced.
        dtype (`str`): `"fp32"`, `"fp16"` or `"bf16"`: precision of the stored weights.
        max_shard_size (`str`): Size at which diffusers splits files of weights.
        beta_schedule (`str`, *optional*): Noise schedule by diffusers' name, in place of the released file's; linear
            where the unet is none of the released ones.
        unet_facts, classifier_facts (`dict`, *optional*): What names and shapes do not tell: keyword arguments of
            `from_single_file`.
        low_res_size (`int`, *optional*): Side of an upsampler's low-resolution images; the released ones' is known.

    Returns:
        [`ReleasedCheckpoint`]: The released file that the unet was recognised as; None if it is another.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: if a file cannot be converted or the two do not fit together.
    """
    unet_path = Path(unet_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in read_state_dict(unet_path).items()}
    facts = {name: value for name, value in (unet_facts or {}).items() if value is not None}
    settling = ("sample_size", "layers_per_block", "low_res_channels")
    recognised = recognise(shapes, **{k: v for k, v in facts.items() if k in settling})
    released = find_released(recognised, unet_path.stem)
    low_res_size = resolve_low_res_size(recognised, released, low_res_size)
    unet = ADMUNet2DModel.from_single_file(unet_path, torch_dtype=DTYPES[dtype], **facts)
    classifier = None
    if classifier_path is not None:
        facts = {name: value for name, value in (classifier_facts or {}).items() if value is not None}
        classifier = NoisyClassifierModel.from_single_file(classifier_path, torch_dtype=DTYPES[dtype], **facts)

    defaults = {}
    if released is not None:
        beta_schedule = beta_schedule or released.beta_schedule
        defaults = {
            "ddpm_num_inference_steps": released.ddpm_num_inference_steps,
            "ddpm_classifier_scale": released.ddpm_classifier_scale,
            "ddim_classifier_scale": released.ddim_classifier_scale,
        }
    scheduler = DDPMScheduler(
        beta_schedule=beta_schedule or "linear",
        variance_type="learned_range" if unet.predicts_variance else "fixed_large",
        timestep_spacing="linspace",
    )
    if low_res_size is None:
        pipe = ClassifierGuidedDDPMPipeline(unet, scheduler, classifier, **defaults)
    else:
        pipe = ClassifierGuidedSuperResolutionPipeline(unet, scheduler, classifier, low_res_size, **defaults)
    with atomic_directory(output_dir, replaces="model_index.json") as directory:
        pipe.save_pretrained(directory, max_shard_size=max_shard_size)
        if released is not None:
            write_openai_model_card(
                directory,
                pipe,
                unet_path.name,
                None if classifier_path is None else Path(classifier_path).name,
                dtype=dtype,
                name=Path(output_dir).name,
            )
    return released


def resolve_low_res_size(
    recognised: Recognised, released: ReleasedCheckpoint | None, low_res_size: int | None
) -> int | None:
    """Side of the low-resolution images: the one given, else the released file's; None if the network is no upsampler.

    Raises:
        ValueError: if it is not known, or given for a network that has no use for it.
    """
    upsamples = recognised.arguments.get("low_res_channels", 0) > 0
    if low_res_size is None and released is not None:
        low_res_size = released.low_res_size
    if upsamples and low_res_size is None:
        raise InputError(
            "This unet is an upsampling one, and its shapes do not tell from what size: pass low_res_size=, the side of "
            "the low-resolution images that it was trained on."
        )
    if not upsamples and low_res_size is not None:
        raise InputError("This unet generates from noise alone: low_res_size= is for upsampling ones.")
    return low_res_size
