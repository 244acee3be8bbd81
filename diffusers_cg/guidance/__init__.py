"""What steers a sampler: gradients of log p(y | x_t), mixed noises, replaced clean images."""

from diffusers_cg.guidance.classifier_guidance import ClassifierGuidance, classifier_gradient, keeping_weights
from diffusers_cg.guidance.guidance import Guidance, GuidanceFunction, GuidanceSum, GuidedStep


__all__ = [
    "ClassifierGuidance",
    "Guidance",
    "GuidanceFunction",
    "GuidanceSum",
    "GuidedStep",
    "classifier_gradient",
    "keeping_weights",
]
