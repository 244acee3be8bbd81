"""One guided step, by Algorithm 1 or 2 of *Diffusion Models Beat GANs on Image Synthesis*, as the pipelines run it."""

import inspect
import logging
from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from diffusers_cg.diffusion import GaussianDiffusion, scheduler_for_guided_noise, to_ddim_scheduler, to_ddpm_scheduler
from diffusers_cg.errors import InputError


Generators = torch.Generator | list[torch.Generator] | None
"""One for the batch, one per image, or PyTorch's own."""

MAX_AMPLIFICATION = 100  # of guidance by one step; the paper's settings stay below 3

logger = logging.getLogger(__name__)

Step = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor | float], torch.Tensor]
"""(sample x_t, t, model_output, scaled gradient or 0) -> prev_sample."""


def clip_range(scheduler: SchedulerMixin) -> float | None:
    """Bound on the predicted clean image, as the scheduler's `clip_sample` and `clip_sample_range` say."""
    return scheduler.config.get("clip_sample_range", 1.0) if scheduler.config.get("clip_sample", False) else None


# --------------------------------------------------------------------------------------------------- Algorithm 1, DDPM


def scheduler_for_ancestral_steps(scheduler: SchedulerMixin, unet: UNet2DModel) -> DDPMScheduler:
    """A `DDPMScheduler` of the same noise schedule; `scheduler` itself if it is one.

    Raises:
        ValueError: if the arithmetic does not cover the scheduler, or it expects a variance that the unet does not give.
    """
    GaussianDiffusion.from_scheduler(scheduler)
    learned_variance = unet.config.out_channels == 2 * unet.config.in_channels
    scheduler = to_ddpm_scheduler(scheduler, learned_variance)
    if scheduler.config.variance_type == "learned_range" and not learned_variance:
        raise InputError(
            f"The scheduler expects a learned variance, but the unet has {unet.config.out_channels} output channels "
            f"for {unet.config.in_channels} input channels: use variance_type='fixed_small' or 'fixed_large'."
        )
    return scheduler


def ancestral_step(scheduler: SchedulerMixin, timesteps: Sequence[int], generator: Generators) -> Step:
    """Algorithm 1 over the given timesteps: mean + variance x gradient, then noise, but none after the last step."""
    diffusion = GaussianDiffusion.from_scheduler(scheduler, timesteps)
    last = timesteps[-1]

    def step(sample, t, model_output, gradient):
        p = diffusion.p_mean_variance(model_output, sample, t, clip_range=clip_range(scheduler))
        mean = p.mean + p.variance * gradient
        if t == last:
            return mean
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        return mean + (0.5 * p.log_variance).exp() * noise

    return step


# --------------------------------------------------------------------------------------------------- Algorithm 2, DDIM


def scheduler_for_noise_steps(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A `DDIMScheduler` of the same noise schedule for a `DDPMScheduler`; any other as it is.

    Raises:
        ValueError: if the arithmetic does not cover the scheduler, or its samples do not keep variance.
    """
    scheduler = to_ddim_scheduler(scheduler)
    GaussianDiffusion.from_scheduler(scheduler)
    return scheduler


def check_eta(eta: float, scheduler: SchedulerMixin) -> None:
    """Raises `ValueError` unless `eta` lies in [0, 1], and is 0 where the scheduler knows no such thing."""
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"`eta` must lie in [0, 1], got {eta}.")
    if eta > 0 and not isinstance(scheduler, DDIMScheduler):
        raise InputError(f"`eta` needs a DDIMScheduler, but this pipeline's is a {type(scheduler).__name__}.")


def noise_step(scheduler: SchedulerMixin, timesteps: Sequence[int], generator: Generators, eta: float) -> Step:
    """Algorithm 2 over the given timesteps: the scheduler's own step on eps - sqrt(1 - abar_t) x gradient.

    The noise follows from the clipped image, and is not clipped again once it is guided.
    """
    diffusion = GaussianDiffusion.from_scheduler(scheduler, timesteps)
    stepper = scheduler_for_guided_noise(scheduler, diffusion)
    stepper_timesteps = dict(zip(timesteps, stepper.timesteps))
    accepted = inspect.signature(stepper.step).parameters
    extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}

    def step(sample, t, model_output, gradient):
        _, noise = diffusion.predict_original_and_noise(model_output, sample, t, clip_range(scheduler))
        noise = noise - diffusion.coefficient("sqrt_one_minus_abar", t, sample) * gradient
        return stepper.step(noise, stepper_timesteps[t], sample, **extra).prev_sample

    return step


def warn_of_amplification(scheduler: SchedulerMixin, timesteps: Sequence[int]) -> None:
    """Warns where Algorithm 2's first step takes so little signal to so much more that guidance drowns the image."""
    signal = GaussianDiffusion.from_scheduler(scheduler, timesteps).alphas_cumprod.sqrt()
    amplification = (signal[-2] / signal[-1]).item() if len(signal) > 1 else 1.0
    if amplification > MAX_AMPLIFICATION:
        logger.warning(
            f"The first step, from timestep {timesteps[0]}, multiplies what guidance adds by "
            f"{amplification:.0f}: guided images will be ruined. Give the scheduler timestep_spacing='leading'."
        )


def inversion_step(scheduler: SchedulerMixin, timesteps: Sequence[int]) -> Step:
    """DDIM backwards, from each of the given timesteps to the next greater one; guidance has no part in it."""
    diffusion = GaussianDiffusion.from_scheduler(scheduler, timesteps)

    def step(sample, t, model_output, gradient):
        pred_original_sample, noise = diffusion.predict_original_and_noise(
            model_output, sample, t, clip_range(scheduler)
        )
        return (
            diffusion.coefficient("sqrt_abar_next", t, sample) * pred_original_sample
            + diffusion.coefficient("sqrt_one_minus_abar_next", t, sample) * noise
        )

    return step
