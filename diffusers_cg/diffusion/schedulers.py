"""diffusers' schedulers as the samplers use them: which timesteps, and one step on guided noise."""

import copy
import inspect
from collections.abc import Sequence
from numbers import Integral

import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin

from diffusers_cg.diffusion.gaussian_diffusion import GaussianDiffusion, check_timesteps
from diffusers_cg.errors import InputError


def resolve_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int | None, timesteps: Sequence[int] | None
) -> list[int]:
    """The decreasing timesteps to sample with: those given, or `num_inference_steps` as the scheduler spaces them.

    Sets the scheduler's timesteps as a side effect.

    Raises:
        ValueError: if there are too few or too many steps, or the timesteps given are not whole numbers, out of range
            or not decreasing.
    """
    num_train_timesteps = scheduler.config.num_train_timesteps
    if timesteps is not None:
        timesteps = _whole_numbers(timesteps)
        check_timesteps(timesteps, num_train_timesteps)
        if isinstance(scheduler, DDIMScheduler):
            scheduler.timesteps = torch.tensor(timesteps)
        elif "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(timesteps=timesteps)
        else:
            raise InputError(
                f"{type(scheduler).__name__} takes no `timesteps` of its own: pass `num_inference_steps`."
            )
        return timesteps

    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, Integral):
        raise InputError(f"`num_inference_steps` must be a whole number, got {num_inference_steps!r}.")
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise InputError(
            f"`num_inference_steps` must be between 1 and {num_train_timesteps}, the steps that the model was trained "
            f"with, got {num_inference_steps}."
        )
    scheduler.set_timesteps(int(num_inference_steps))
    return [int(t) for t in scheduler.timesteps]


def _whole_numbers(timesteps: Sequence[int]) -> list[int]:
    try:
        whole = [int(t) for t in timesteps]
        if all(t == given for t, given in zip(whole, timesteps)):
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"`timesteps` must be whole numbers, in a list or the like, got {timesteps!r}.")


def to_ddpm_scheduler(scheduler: SchedulerMixin, learned_variance: bool) -> DDPMScheduler:
    """`scheduler` itself if it is a `DDPMScheduler`, else one of the same noise schedule, evenly spaced as the paper's.

    Args:
        scheduler (`SchedulerMixin`): Any scheduler of diffusers.
        learned_variance (`bool`): Variance type where `scheduler` states none: the learned range or the posterior's.
    """
    if isinstance(scheduler, DDPMScheduler):
        return scheduler
    stated = scheduler.config.get("variance_type")
    variance_type = stated or ("learned_range" if learned_variance else "fixed_small")
    return DDPMScheduler.from_config(scheduler.config, timestep_spacing="linspace", variance_type=variance_type)


def to_ddim_scheduler(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A `DDIMScheduler` in place of a `DDPMScheduler` ("leading" spacing, as the paper's); any other as it is.

    Raises:
        ValueError: if samples of the scheduler do not keep variance, so that a classifier cannot read them.
    """
    if isinstance(scheduler, DDPMScheduler):
        return DDIMScheduler.from_config(scheduler.config, timestep_spacing="leading")
    if getattr(scheduler, "init_noise_sigma", None) != 1:
        raise InputError(
            f"Samples of {type(scheduler).__name__} do not keep variance, as noisy classifiers and unets are trained "
            "for: use DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler or the like."
        )
    return scheduler


def scheduler_for_guided_noise(scheduler: SchedulerMixin, diffusion: GaussianDiffusion) -> SchedulerMixin:
    """A copy of `scheduler`, set to its timesteps, for stepping on guided noise, which must not be clipped once more.

    A stock `DDIMScheduler` assumes equal spacing. Its copy runs on the respaced process instead, so it is exact for any
    timesteps; its own timesteps count down from `len(diffusion.timesteps) - 1`.

    Args:
        scheduler (`SchedulerMixin`): As [`resolve_timesteps`] left it; not changed.
        diffusion (`GaussianDiffusion`): The process; for a `DDIMScheduler` over exactly the timesteps to sample with.
    """
    scheduler = copy.deepcopy(scheduler)
    as_given = {"clip_sample": False, "thresholding": False, "variance_type": None}
    scheduler.register_to_config(**{name: value for name, value in as_given.items() if name in scheduler.config})
    if isinstance(scheduler, DDIMScheduler):
        num_steps = len(diffusion.timesteps)
        scheduler.register_to_config(num_train_timesteps=num_steps, timestep_spacing="leading", steps_offset=0)
        scheduler.alphas_cumprod = diffusion.alphas_cumprod.float()
        scheduler.set_timesteps(num_steps)
    return scheduler
