"""ADM and classifier guidance (*Diffusion Models Beat GANs on Image Synthesis*) for the Hugging Face ecosystem."""

from pathlib import Path

from diffusers import ModelMixin, SchedulerMixin  # noqa: F401  (diffusers looks for these here when it loads a component)

from diffusers_cg.diffusion import EDMHeunScheduler, GaussianDiffusion
from diffusers_cg.guidance import ClassifierGuidance
from diffusers_cg.hub.registration import register_library
from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.pipelines import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedInpaintPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    Denoiser,
)


__all__ = [
    "DIGITS",
    "ADMUNet2DModel",
    "ClassifierGuidance",
    "ClassifierGuidedDDIMPipeline",
    "ClassifierGuidedDDPMPipeline",
    "ClassifierGuidedInpaintPipeline",
    "ClassifierGuidedSuperResolutionPipeline",
    "Denoiser",
    "EDMHeunScheduler",
    "GaussianDiffusion",
    "NoisyClassifierModel",
]
__version__ = "0.1.0"

DIGITS = Path(__file__).parent / "pretrained" / "digits"
"""A small pipeline that ships with the package: handwritten digits, 16x16, gray, 10 classes."""

register_library(
    ADMUNet2DModel,
    NoisyClassifierModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedInpaintPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
