"""Gradients of log p(y | x_t) that steer a sampler."""

from diffusers_cg.guidance.classifier_guidance import ClassifierGuidance, Guidance


__all__ = ["ClassifierGuidance", "Guidance"]
