"""Diffusion arithmetic, in one place."""

from diffusers_cg.diffusion.conditioning_augmentation import augment_low_res, gaussian_blur
from diffusers_cg.diffusion.gaussian_diffusion import Gaussian, GaussianDiffusion, ReverseStep, split_model_output
from diffusers_cg.diffusion.likelihood import BitsPerDimension, bits_per_dimension
from diffusers_cg.diffusion.losses import (
    LossType,
    TrainingLosses,
    prior_term,
    resolve_loss_type,
    training_losses,
    variational_bound_term,
)
from diffusers_cg.diffusion.schedulers import (
    resolve_timesteps,
    scheduler_for_guided_noise,
    to_ddim_scheduler,
    to_ddpm_scheduler,
)
from diffusers_cg.diffusion.timestep_samplers import LossSecondMomentSampler, TimestepSampler, UniformSampler


__all__ = [
    "BitsPerDimension",
    "Gaussian",
    "GaussianDiffusion",
    "LossSecondMomentSampler",
    "LossType",
    "ReverseStep",
    "TimestepSampler",
    "TrainingLosses",
    "UniformSampler",
    "augment_low_res",
    "bits_per_dimension",
    "gaussian_blur",
    "prior_term",
    "resolve_loss_type",
    "resolve_timesteps",
    "scheduler_for_guided_noise",
    "split_model_output",
    "to_ddim_scheduler",
    "to_ddpm_scheduler",
    "training_losses",
    "variational_bound_term",
]
