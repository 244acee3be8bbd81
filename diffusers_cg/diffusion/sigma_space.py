"""Schedulers whose samples do not keep variance, x_0 + sigma noise: what the networks are to see of them."""

import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    SchedulerMixin,
)
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from diffusers_cg.diffusion.edm_heun_scheduler import EDMHeunScheduler, noise_levels, sigmas_at
from diffusers_cg.diffusion.gaussian_diffusion import GaussianDiffusion


IN_SIGMA = (
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    KDPM2DiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    EDMHeunScheduler,
)
"""What steps on x_0 + sigma noise: such a sample is sqrt(sigma^2 + 1) times one of kept variance."""


def sigmas_of(scheduler: SchedulerMixin, diffusion: GaussianDiffusion) -> torch.Tensor:
    """Noise level of each evaluation of the network, in order, (number of evaluations,), float64."""
    sigmas = torch.as_tensor(scheduler.sigmas).double().cpu()
    if len(sigmas) == len(scheduler.timesteps) + 1:
        return sigmas[:-1]
    # DPM2's keep the levels between elsewhere
    times = torch.as_tensor(scheduler.timesteps).double().cpu()
    return sigmas_at(times, noise_levels(diffusion.alphas_cumprod))


class OfKeptVariance:
    """A scheduler in sigma space that takes and gives samples of kept variance, x / sqrt(sigma^2 + 1).

    Args:
        scheduler (`SchedulerMixin`): One of [`IN_SIGMA`], set to its timesteps; it is changed.
        sigmas (`torch.Tensor`): As of [`sigmas_of`].
        begin_index (`int`): Which evaluation is the first.
    """

    def __init__(self, scheduler: SchedulerMixin, sigmas: torch.Tensor, begin_index: int = 0):
        self.scheduler = scheduler
        self.timesteps = scheduler.timesteps
        self.scales = [*(sigmas.square() + 1).sqrt().tolist(), 1.0]
        self.index = begin_index

    def step(self, noise: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **options) -> SchedulerOutput:
        """From one evaluation to the next, in order; as the scheduler's own."""
        sample = self.scales[self.index] * sample
        self.scheduler.scale_model_input(sample, timestep)  # as some want to be asked before each step
        prev_sample = self.scheduler.step(noise, timestep, sample, **options).prev_sample
        self.index += 1
        return SchedulerOutput(prev_sample=prev_sample / self.scales[self.index])
