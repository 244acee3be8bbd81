"""What steers a sampler: gradients of log p(y | x_t), mixed noises, replaced clean images, shifted samples."""

from diffusers_cg.guidance.classifier_free_guidance import (
    AutoGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    PredictionGuidance,
)
from diffusers_cg.guidance.classifier_guidance import (
    ClassifierGuidance,
    classifier_gradient,
    evaluating,
    gradient_and_logits,
    keeping_weights,
)
from diffusers_cg.guidance.clean_image_guidance import (
    CleanClassifierGuidance,
    CleanImageGuidance,
    EnergyGuidance,
)
from diffusers_cg.guidance.guidance import Guidance, GuidanceFunction, GuidanceSum
from diffusers_cg.guidance.guided_step import GuidedCall, GuidedStep
from diffusers_cg.guidance.restoration_guidance import (
    DDNMGuidance,
    DiffPIRGuidance,
    DPSGuidance,
    PiGDMGuidance,
    RestorationGuidance,
)
from diffusers_cg.guidance.text_guidance import TextGuidance
from diffusers_cg.guidance.training_free_guidance import TrainingFreeGuidance
from diffusers_cg.guidance.transformers_models import image_classifier


__all__ = [
    "AutoGuidance",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "CleanClassifierGuidance",
    "CleanImageGuidance",
    "DDNMGuidance",
    "DPSGuidance",
    "DiffPIRGuidance",
    "EnergyGuidance",
    "Guidance",
    "GuidanceFunction",
    "GuidanceSum",
    "GuidedCall",
    "GuidedStep",
    "PerturbedAttentionGuidance",
    "PiGDMGuidance",
    "PredictionGuidance",
    "RestorationGuidance",
    "TextGuidance",
    "TrainingFreeGuidance",
    "classifier_gradient",
    "evaluating",
    "gradient_and_logits",
    "image_classifier",
    "keeping_weights",
]
