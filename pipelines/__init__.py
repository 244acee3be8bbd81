"""What a user calls: models, scheduler and guidance assembled for inference."""

from diffusers_cg.pipelines.denoiser import Denoiser
from diffusers_cg.pipelines.pipeline_classifier_guided import ClassifierGuidedPipeline, GuidedImagePipelineOutput
from diffusers_cg.pipelines.pipeline_classifier_guided_ddim import ClassifierGuidedDDIMPipeline
from diffusers_cg.pipelines.pipeline_classifier_guided_ddpm import ClassifierGuidedDDPMPipeline
from diffusers_cg.pipelines.pipeline_classifier_guided_inpaint import ClassifierGuidedInpaintPipeline
from diffusers_cg.pipelines.pipeline_classifier_guided_super_resolution import ClassifierGuidedSuperResolutionPipeline


__all__ = [
    "ClassifierGuidedDDIMPipeline",
    "ClassifierGuidedDDPMPipeline",
    "ClassifierGuidedInpaintPipeline",
    "ClassifierGuidedPipeline",
    "ClassifierGuidedSuperResolutionPipeline",
    "Denoiser",
    "GuidedImagePipelineOutput",
]
