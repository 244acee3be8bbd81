"""Diffusion arithmetic, in one place."""

from diffusers_cg.diffusion.bits_per_dimension import BitsPerDimension, bits_per_dimension
from diffusers_cg.diffusion.conditioning_augmentation import augment_low_res, check_augmentation_level, gaussian_blur
from diffusers_cg.diffusion.edm_heun_scheduler import EDMHeunScheduler, noise_levels, sigmas_at, timesteps_at
from diffusers_cg.diffusion.gaussian_diffusion import (
    Gaussian,
    GaussianDiffusion,
    Prediction,
    PredictionType,
    split_model_output,
)
from diffusers_cg.diffusion.generators import Generators, seeded_generator
from diffusers_cg.diffusion.losses import (
    LossType,
    TrainingLosses,
    prior_term,
    resolve_loss_type,
    training_losses,
    variational_bound_term,
)
from diffusers_cg.diffusion.schedulers import (
    TRAINED_WITH,
    check_eta,
    check_solver,
    check_trained_process,
    is_ancestral,
    resolve_begin_index,
    resolve_timesteps,
    scheduler_on_guided_noise,
    to_ddim_scheduler,
    to_ddim_steps,
    to_ddpm_scheduler,
    training_scheduler,
    warn_of_amplification,
)
from diffusers_cg.diffusion.timestep_samplers import LossSecondMomentSampler, TimestepSampler, UniformSampler


__all__ = [
    "TRAINED_WITH",
    "BitsPerDimension",
    "Gaussian",
    "EDMHeunScheduler",
    "GaussianDiffusion",
    "Generators",
    "LossSecondMomentSampler",
    "LossType",
    "Prediction",
    "PredictionType",
    "TimestepSampler",
    "TrainingLosses",
    "UniformSampler",
    "augment_low_res",
    "bits_per_dimension",
    "check_augmentation_level",
    "check_eta",
    "check_solver",
    "check_trained_process",
    "gaussian_blur",
    "is_ancestral",
    "noise_levels",
    "prior_term",
    "resolve_loss_type",
    "resolve_begin_index",
    "resolve_timesteps",
    "scheduler_on_guided_noise",
    "seeded_generator",
    "sigmas_at",
    "split_model_output",
    "timesteps_at",
    "to_ddim_scheduler",
    "to_ddim_steps",
    "to_ddpm_scheduler",
    "training_losses",
    "training_scheduler",
    "variational_bound_term",
    "warn_of_amplification",
]
