"""Networks: the denoiser and the noisy classifier."""

from diffusers_cg.models.adm_unet import ADMUNet2DModel
from diffusers_cg.models.noisy_classifier import NoisyClassifierModel, NoisyClassifierOutput


__all__ = ["ADMUNet2DModel", "NoisyClassifierModel", "NoisyClassifierOutput"]
