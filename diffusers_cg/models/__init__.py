"""Networks: the denoiser and the noisy classifier."""

from diffusers_cg.models.adm_unet import ADMUNet2DModel
from diffusers_cg.models.fine_tuning import load_pretrained, with_replaced
from diffusers_cg.models.noisy_classifier import NoisyClassifierModel, NoisyClassifierOutput


__all__ = ["ADMUNet2DModel", "NoisyClassifierModel", "NoisyClassifierOutput", "load_pretrained", "with_replaced"]
