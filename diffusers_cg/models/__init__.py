"""Networks: the denoiser and the noisy classifier."""

from diffusers_cg.models.adm_unet import ADMUNet2DModel
from diffusers_cg.models.fine_tuning import load_pretrained, with_replaced
from diffusers_cg.models.noisy_classifier import NoisyClassifierModel, NoisyClassifierOutput
from diffusers_cg.models.precision import DTYPES, warn_of_emulation


__all__ = [
    "DTYPES",
    "ADMUNet2DModel",
    "NoisyClassifierModel",
    "NoisyClassifierOutput",
    "load_pretrained",
    "warn_of_emulation",
    "with_replaced",
]
