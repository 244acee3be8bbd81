"""diffusers' schedulers under the paper's two algorithms: what they are turned into, and which timesteps they take."""

import inspect
import itertools
import logging
from collections.abc import Sequence
from copy import deepcopy
from numbers import Integral

import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin

from diffusers_cg.diffusion.gaussian_diffusion import GaussianDiffusion, VarianceType, check_timesteps
from diffusers_cg.errors import InputError


MAX_BETA = 0.999  # as the cosine schedule's
MAX_AMPLIFICATION = 100  # of guidance by one step; the paper's settings stay below 3

logger = logging.getLogger(__name__)


def training_scheduler(
    num_train_timesteps: int = 1000,
    beta_schedule: str = "linear",
    prediction_type: str = "epsilon",
    variance_type: VarianceType = "learned_range",
) -> DDPMScheduler:
    """The process that a network is trained on, with ancestral steps, evenly spaced.

    The ends of a linear schedule, 1e-4 and 0.02 for T = 1000, are scaled by 1000 / T as the reference's, so that images end
    as noise for any T; for the few T at which the last beta would reach 1 it is 0.999.

    Args:
        num_train_timesteps (`int`): T.
        beta_schedule (`str`): Noise schedule, by diffusers' name (`"squaredcos_cap_v2"` is the cosine one).
        prediction_type (`str`): What the network's output is: `"epsilon"`, `"sample"` or `"v_prediction"`.
        variance_type (`str`): As of [`GaussianDiffusion`].
    """
    scale = 1000 / num_train_timesteps
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=0.0001 * scale,
        beta_end=min(0.02 * scale, MAX_BETA),
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        variance_type=variance_type,
        timestep_spacing="linspace",
    )


# --------------------------------------------------------------------------------------------------- the two algorithms


def to_ddpm_scheduler(scheduler: SchedulerMixin, learned_variance: bool) -> DDPMScheduler:
    """For Algorithm 1: `scheduler` itself if it is a `DDPMScheduler`, else one of the same noise schedule, evenly spaced.

    Args:
        scheduler (`SchedulerMixin`): Any scheduler of diffusers.
        learned_variance (`bool`): Whether the unet gives a variance: the learned range is taken where `scheduler` states
            none, or the posterior's.

    Raises:
        InputError: if the arithmetic does not cover the scheduler, or it expects a variance that the unet does not give.
    """
    GaussianDiffusion.from_scheduler(scheduler)
    if not isinstance(scheduler, DDPMScheduler):
        variance_type = scheduler.config.get("variance_type") or (
            "learned_range" if learned_variance else "fixed_small"
        )
        scheduler = DDPMScheduler.from_config(
            scheduler.config, timestep_spacing="linspace", variance_type=variance_type
        )
    if scheduler.config.variance_type == "learned_range" and not learned_variance:
        raise InputError(
            "The scheduler expects a learned variance, but the unet has as many output channels as input channels: use "
            "variance_type='fixed_small' or 'fixed_large'."
        )
    return scheduler


def to_ddim_scheduler(scheduler: SchedulerMixin) -> SchedulerMixin:
    """For Algorithm 2: a `DDIMScheduler` in place of a `DDPMScheduler` ("leading" spacing, as the paper's), else itself.

    Raises:
        InputError: if samples of the scheduler do not keep variance, so that a classifier cannot read them, or the
            arithmetic does not cover it.
    """
    if isinstance(scheduler, DDPMScheduler):
        scheduler = DDIMScheduler.from_config(scheduler.config, timestep_spacing="leading")
    if getattr(scheduler, "init_noise_sigma", None) != 1:
        raise InputError(
            f"Samples of {type(scheduler).__name__} do not keep variance, as noisy classifiers and unets are trained "
            "for: use DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler or the like."
        )
    GaussianDiffusion.from_scheduler(scheduler)
    return scheduler


def scheduler_on_guided_noise(scheduler: SchedulerMixin, diffusion: GaussianDiffusion) -> SchedulerMixin:
    """A copy of `scheduler`, set to its timesteps, for stepping on guided noise, which must not be clipped once more.

    A stock `DDIMScheduler` assumes equal spacing. Its copy runs on the respaced process instead, so it is exact for any
    timesteps; its own timesteps count down from `len(diffusion.timesteps) - 1`.

    Args:
        scheduler (`SchedulerMixin`): As [`resolve_timesteps`] left it; not changed.
        diffusion (`GaussianDiffusion`): The process; for a `DDIMScheduler` over exactly the timesteps to sample with.
    """
    scheduler = deepcopy(scheduler)
    as_given = {"clip_sample": False, "thresholding": False, "variance_type": None}
    scheduler.register_to_config(**{name: value for name, value in as_given.items() if name in scheduler.config})
    if isinstance(scheduler, DDIMScheduler):
        num_steps = len(diffusion.timesteps)
        scheduler.register_to_config(num_train_timesteps=num_steps, timestep_spacing="leading", steps_offset=0)
        scheduler.alphas_cumprod = diffusion.alphas_cumprod.float()
        scheduler.set_timesteps(num_steps)
    return scheduler


# ---------------------------------------------------------------------------------------------------- what a call takes


def resolve_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int | None, timesteps: Sequence[int] | None
) -> list[int]:
    """The decreasing timesteps to sample with: those given, or `num_inference_steps` as the scheduler spaces them.

    Sets the scheduler's timesteps as a side effect.

    Raises:
        InputError: if there are too few or too many steps, or the timesteps given are not whole numbers, out of range
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
    spaced = _paper_timesteps(scheduler, int(num_inference_steps))
    if spaced is not None:
        scheduler.timesteps = torch.tensor(spaced)
    return [int(t) for t in scheduler.timesteps]


def _paper_timesteps(scheduler: SchedulerMixin, num_inference_steps: int) -> list[int] | None:
    """The timesteps of the reference's samplers, decreasing; None where the scheduler is to space them in a way of its own.

    For ancestral steps ("linspace") they lie evenly from the last timestep to 0. For DDIM ("leading") they are the multiples
    of a whole number, where some make exactly as many steps: diffusers' start at a timestep far too small for any other
    number, so those lie evenly from the last timestep, too.
    """
    spacing, last = scheduler.config.get("timestep_spacing"), scheduler.config.num_train_timesteps - 1
    if isinstance(scheduler, DDIMScheduler) and spacing == "leading" and scheduler.config.steps_offset == 0:
        for stride in range(1, last + 1):
            if last // stride + 1 == num_inference_steps:
                return list(range(0, last + 1, stride))[::-1]
        return torch.linspace(last, 0, num_inference_steps, dtype=torch.float64).round().int().tolist()
    if isinstance(scheduler, DDPMScheduler) and spacing == "linspace":
        stride = last / max(num_inference_steps - 1, 1)
        # added up and rounded as the reference does, half to even
        return [round(t) for t in itertools.accumulate([0.0, *[stride] * (num_inference_steps - 1)])][::-1]
    return None


def _whole_numbers(timesteps: Sequence[int]) -> list[int]:
    try:
        whole = [int(t) for t in timesteps]
        if all(t == given for t, given in zip(whole, timesteps)):
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"`timesteps` must be whole numbers, in a list or the like, got {timesteps!r}.")


def check_eta(eta: float, scheduler: SchedulerMixin) -> None:
    """Raises `InputError` unless `eta` lies in [0, 1], and is 0 where the scheduler knows no such thing."""
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"`eta` must lie in [0, 1], got {eta}.")
    if eta > 0 and not isinstance(scheduler, DDIMScheduler):
        raise InputError(f"`eta` needs a DDIMScheduler, but this pipeline's is a {type(scheduler).__name__}.")


def warn_of_amplification(diffusion: GaussianDiffusion) -> None:
    """Warns where Algorithm 2's first step takes so little signal to so much more that guidance drowns the image."""
    signal = diffusion.alphas_cumprod.sqrt()
    amplification = (signal[-2] / signal[-1]).item() if len(signal) > 1 else 1.0
    if amplification > MAX_AMPLIFICATION:
        logger.warning(
            f"The first step, from timestep {diffusion.timesteps[0]}, multiplies what guidance adds by "
            f"{amplification:.0f}: guided images will be ruined. Give the scheduler timestep_spacing='leading'."
        )
