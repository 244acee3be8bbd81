"""Networks: the denoiser and the noisy classifier."""

import torch

from diffusers_cg.models.adm_unet import ADMUNet2DModel
from diffusers_cg.models.fine_tuning import load_pretrained, with_replaced
from diffusers_cg.models.noisy_classifier import NoisyClassifierModel, NoisyClassifierOutput


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precisions of weights, by the names that commands give them."""

__all__ = [
    "DTYPES",
    "ADMUNet2DModel",
    "NoisyClassifierModel",
    "NoisyClassifierOutput",
    "load_pretrained",
    "with_replaced",
]
