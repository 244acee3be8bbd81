"""diffusers' schedulers under the paper's two algorithms: what they are turned into, and which timesteps they take."""

import inspect
import itertools
import logging
import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin

from diffusers_cg.diffusion.edm_heun_scheduler import noise_levels, timesteps_at
from diffusers_cg.diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    VarianceType,
    check_timesteps,
)
from diffusers_cg.diffusion.sigma_space import IN_SIGMA, OfKeptVariance, sigmas_of
from diffusers_cg.errors import InputError


MAX_BETA = 0.999  # as the cosine schedule's
# log(sqrt(abar) / sqrt(1 - abar)) from which solvers start on the cosine schedule; all of the linear one lies above
MIN_LAMBDA = -5.1
MAX_AMPLIFICATION = 100  # of guidance by one step; the paper's settings stay below 3

SOLVERS = (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    DEISMultistepScheduler,
    UniPCMultistepScheduler,
    PNDMScheduler,
)
"""What steps on guided noise (Algorithm 2): schedulers whose samples keep variance, from noise predictions."""

FROM_NOISE_ALONE = (PNDMScheduler, LMSDiscreteScheduler)
"""What cannot start in the middle: how they step follows from the number of steps before, whether those were taken or not."""

HAVE_ENDS = ("linear", "scaled_linear", "sigmoid")  # schedules between a first and a last beta

TRAINED_WITH = (
    *("num_train_timesteps", "rescale_timesteps", "beta_schedule", "prediction_type"),
    *("scale_betas", "label_dropout"),
)
"""What a network's config states of how it was trained, None, False or 0 where it does not."""

logger = logging.getLogger(__name__)


def training_scheduler(
    num_train_timesteps: int = 1000,
    beta_schedule: str = "linear",
    prediction_type: str = "epsilon",
    variance_type: VarianceType = "learned_range",
    scale_betas: bool = True,
) -> DDPMScheduler:
    """The process that a network is trained on, with ancestral steps, evenly spaced.

    Args:
        num_train_timesteps (`int`): T.
        beta_schedule (`str`): Noise schedule, by diffusers' name (`"squaredcos_cap_v2"` is the cosine one).
        prediction_type (`str`): What the network's output is: `"epsilon"`, `"sample"` or `"v_prediction"`.
        variance_type (`str`): As of [`GaussianDiffusion`].
        scale_betas (`bool`): Whether the ends of a linear schedule are those of [`beta_ends`] or, as trainings of before
            had them, 1e-4 and 0.02 for any T.
    """
    beta_start, beta_end = beta_ends(num_train_timesteps if scale_betas else 1000)
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        variance_type=variance_type,
        timestep_spacing="linspace",
    )


def beta_ends(num_train_timesteps: int) -> tuple[float, float]:
    """First and last beta of a linear schedule: 1e-4 and 0.02 for T = 1000, scaled by 1000 / T as the reference's.

    So images end as noise for any T. For the few T (up to 20) at which the last would reach 1 it is 0.999.
    """
    scale = 1000 / num_train_timesteps
    return 0.0001 * scale, min(0.02 * scale, MAX_BETA)


# --------------------------------------------------------------------------------------------------- the two algorithms


def is_ancestral(scheduler: SchedulerMixin) -> bool:
    """Whether Algorithm 1 takes the scheduler's steps: a `DDPMScheduler`'s."""
    return isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)


def to_ddpm_scheduler(scheduler: SchedulerMixin, learned_variance: bool) -> DDPMScheduler:
    """For Algorithm 1: `scheduler` itself if it is a `DDPMScheduler`, else one of the same noise schedule, evenly spaced.

    Args:
        scheduler (`SchedulerMixin`): Any scheduler of diffusers that has betas.
        learned_variance (`bool`): Whether the unet gives a variance: the learned range is taken where `scheduler` states
            none, or the posterior's.

    Raises:
        InputError: if the scheduler has none, or it expects a variance that the unet does not give.
    """
    if not hasattr(scheduler, "betas"):
        raise InputError(f"A scheduler with betas is needed, got {type(scheduler).__name__}.")
    if not isinstance(scheduler, DDPMScheduler):
        variance_type = scheduler.config.get("variance_type") or (
            "learned_range" if learned_variance else "fixed_small"
        )
        scheduler = _converted(scheduler, DDPMScheduler, timestep_spacing="linspace", variance_type=variance_type)
    if scheduler.config.variance_type == "learned_range" and not learned_variance:
        raise InputError(
            "The scheduler expects a learned variance, but the unet has as many output channels as input channels: use "
            "variance_type='fixed_small' or 'fixed_large'."
        )
    return scheduler


def to_ddim_scheduler(scheduler: SchedulerMixin) -> SchedulerMixin:
    """For Algorithm 2: a `DDIMScheduler` in place of a `DDPMScheduler` ("leading" spacing, as the paper's), else itself.

    Raises:
        InputError: if the scheduler is none of [`SOLVERS`] or [`IN_SIGMA`] and no subclass of one.
    """
    if is_ancestral(scheduler):
        return _converted(scheduler, DDIMScheduler, timestep_spacing="leading")
    if isinstance(scheduler, DDIMParallelScheduler):
        return _converted(scheduler, DDIMScheduler)
    if not isinstance(scheduler, SOLVERS + IN_SIGMA):
        raise InputError(
            f"{type(scheduler).__name__} cannot step on guided noise (it draws noise of its own, or is for distilled networks or "
            f"other processes): use {', '.join(each.__name__ for each in SOLVERS + IN_SIGMA)}."
        )
    return scheduler


def to_ddim_steps(scheduler: SchedulerMixin) -> DDIMScheduler:
    """For what DDIM alone defines: a `DDIMScheduler` of the same noise schedule ("leading" spacing), or `scheduler` if it is one."""
    if isinstance(scheduler, DDIMScheduler):
        return scheduler
    return _converted(scheduler, DDIMScheduler, timestep_spacing="leading")


def check_solver(solver: SchedulerMixin, scheduler: SchedulerMixin) -> None:
    """Raises `InputError` unless `solver` can step on guided noise as it is, on the noise schedule of `scheduler`."""
    if to_ddim_scheduler(solver) is not solver:
        raise InputError(
            f"`solver` must be what steps on guided noise as it is, got a {type(solver).__name__}: leave it out, and DDIM draws."
        )
    betas = [torch.as_tensor(each.betas) for each in (solver, scheduler) if hasattr(each, "betas")]
    if len(betas) < 2 or not torch.equal(*betas):
        raise InputError(
            f"The solver, a {type(solver).__name__}, is of another noise schedule than the scheduler, a "
            f"{type(scheduler).__name__}: make it by from_config of the scheduler's config."
        )


def _converted(scheduler: SchedulerMixin, kind: type[SchedulerMixin], **options: str) -> SchedulerMixin:
    """A scheduler of that kind with the same noise schedule.

    Raises:
        InputError: if the schedule is not what the config says.
    """
    converted = kind.from_config(scheduler.config, **options)
    if not torch.equal(torch.as_tensor(scheduler.betas), converted.betas):
        raise InputError(
            f"The noise schedule of {type(scheduler).__name__} is one of its own, not what its config says: give the pipeline "
            f"a {kind.__name__} of the schedule that the unet was trained with."
        )
    return converted


def scheduler_on_guided_noise(
    scheduler: SchedulerMixin, diffusion: GaussianDiffusion, begin_index: int = 0
) -> SchedulerMixin | OfKeptVariance:
    """`scheduler`, made to step on guided noise, whatever the network predicts, which must not be clipped once more.

    A stock `DDIMScheduler` assumes equal spacing. It is made to run on the respaced process instead, so it is exact for any
    timesteps; its own timesteps count down from `len(diffusion.timesteps) - 1`.

    Args:
        scheduler (`SchedulerMixin`): A call's own, as [`resolve_timesteps`] left it; it is changed.
        diffusion (`GaussianDiffusion`): The process; for a `DDIMScheduler` over exactly the timesteps to sample with.
        begin_index (`int`): Which of them is the first one to be taken; see [`resolve_begin_index`].
    """
    on_noise = {"prediction_type": "epsilon", "clip_sample": False, "thresholding": False, "variance_type": None}
    scheduler.register_to_config(**{name: value for name, value in on_noise.items() if name in scheduler.config})
    if isinstance(scheduler, DDIMScheduler):
        num_steps = len(diffusion.timesteps)
        scheduler.register_to_config(num_train_timesteps=num_steps, timestep_spacing="leading", steps_offset=0)
        scheduler.alphas_cumprod = diffusion.alphas_cumprod  # float64: 1 - abar is small at the end
        scheduler.final_alpha_cumprod = torch.tensor(1.0)  # the last step leads to the clean image
        scheduler.set_timesteps(num_steps)
    if hasattr(scheduler, "set_begin_index"):
        # else it looks for its first timestep, which Karras's spacing may repeat
        scheduler.set_begin_index(begin_index)
    if isinstance(scheduler, IN_SIGMA):
        return OfKeptVariance(scheduler, sigmas_of(scheduler, diffusion), begin_index)
    return scheduler


def check_trained_process(scheduler: SchedulerMixin, **models: ConfigMixin) -> None:
    """Raises `InputError` where a network, by what it is called, states another process than the scheduler's."""
    for name, model in models.items():
        process = {word: model.config.get(word) for word in TRAINED_WITH}
        if process["scale_betas"] is not None and scheduler.config.get("beta_schedule") in HAVE_ENDS:
            ends = beta_ends(scheduler.config.num_train_timesteps if process["scale_betas"] else 1000)
            process |= zip(("beta_start", "beta_end"), ends)
        for word, stated in process.items():
            here = scheduler.config.get(word)
            if word.startswith("beta_") and scheduler.config.get("trained_betas") is not None:
                continue
            if stated is None or here is None:
                continue
            if not (math.isclose(stated, here) if isinstance(stated, float) else stated == here):
                raise InputError(
                    f"The {name} was trained with {word}={stated!r}, but the scheduler has {here!r}: make the scheduler of "
                    "diffusers_cg.diffusion.training_scheduler with what the network's config states, or by from_config of it."
                )


# ---------------------------------------------------------------------------------------------------- what a call takes


def resolve_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int | None, timesteps: Sequence[int] | None
) -> list[int] | list[float]:
    """The timesteps to sample with: those given, or `num_inference_steps` as the scheduler spaces them.

    They are whole but for schedulers in sigma space, and decrease; solvers that take several looks at a noise level, or more
    levels than there are timesteps (PNDM, Karras's spacing), repeat some. Sets the scheduler's timesteps as a side effect.

    Raises:
        InputError: if there are too few or too many steps, or the timesteps given are not whole numbers, out of range
            or not decreasing.
    """
    num_train_timesteps = scheduler.config.num_train_timesteps
    if timesteps is not None and isinstance(scheduler, IN_SIGMA):
        raise InputError(
            f"{type(scheduler).__name__} takes noise levels in place of `timesteps`: pass `num_inference_steps`."
        )
    if timesteps is not None:
        timesteps = _whole_numbers(timesteps)
        check_timesteps(timesteps, num_train_timesteps)
        if isinstance(scheduler, DDIMScheduler):
            scheduler.timesteps = torch.tensor(timesteps)
        elif "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
            _set_timesteps(scheduler, timesteps=timesteps)
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
    number = int(num_inference_steps)
    _keep_signal(scheduler)
    if isinstance(scheduler, IN_SIGMA):
        _space(scheduler, number)
        process = GaussianDiffusion.from_scheduler(scheduler)
        scheduler.timesteps = timesteps_at(sigmas_of(scheduler, process), noise_levels(process.alphas_cumprod)).float()
        return scheduler.timesteps.tolist()
    paper = _paper_timesteps(scheduler, number)
    if paper is not None:
        scheduler.set_timesteps(number)
        scheduler.timesteps = torch.tensor(paper)
        return paper
    _space(scheduler, number)
    return scheduler.timesteps.long().tolist()


def resolve_begin_index(scheduler: SchedulerMixin, strength: float) -> int:
    """Which of a scheduler's timesteps is the first where only a share of its steps is taken, the last of them.

    Args:
        scheduler (`SchedulerMixin`): Set to its timesteps; not changed. One of second order has two timesteps a step.
        strength (`float`): The share, above 0, up to 1; at least one step is taken.

    Raises:
        InputError: if the strength is another, or the scheduler cannot start in the middle.
    """
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 < strength <= 1:
        raise InputError(
            f"`strength` must be a number above 0 (at which nothing would change), up to 1 (all steps), got {strength!r}."
        )
    num_steps = math.ceil(len(scheduler.timesteps) / scheduler.order)
    begin_index = (num_steps - max(round(strength * num_steps), 1)) * scheduler.order
    if begin_index > 0 and isinstance(scheduler, FROM_NOISE_ALONE):
        others = [each.__name__ for each in SOLVERS + IN_SIGMA if each not in FROM_NOISE_ALONE]
        raise InputError(f"{type(scheduler).__name__} cannot start from an image: use {', '.join(others)}.")
    return begin_index


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


def _space(scheduler: SchedulerMixin, num_inference_steps: int) -> None:
    """Sets timesteps as the scheduler spaces them, or evenly from the last one, where those start or end wrongly.

    "leading" takes whole strides alone: 600 steps of 1,000 would start at timestep 600 or 599, which is not pure noise. An offset
    may lead beyond the last timestep, and "trailing", which adds up fractions, below 0. Of a single step, "linspace" is the last
    one, without noise.
    """
    num_train_timesteps, spacing = scheduler.config.num_train_timesteps, scheduler.config.get("timestep_spacing")
    _set_timesteps(scheduler, num_inference_steps)
    first, last = scheduler.timesteps.max().item(), scheduler.timesteps.min().item()
    far_below = num_train_timesteps - 1 - first > min(max(2 / num_inference_steps, 0.1), 0.4) * num_train_timesteps
    is_single = num_inference_steps == 1
    if first >= num_train_timesteps or last < 0 or (far_below and (spacing == "leading" or is_single)):
        scheduler.register_to_config(timestep_spacing="trailing" if is_single else "linspace", steps_offset=0)
        _set_timesteps(scheduler, num_inference_steps)


def _keep_signal(scheduler: SchedulerMixin) -> None:
    """Where the scheduler spaces noise levels, and not timesteps, they start from one that leaves some signal.

    The cosine schedule leaves none in its last timesteps, and Karras's spacing would spend half of its steps there; nor has
    the single-step solver a `timestep_spacing` that starts before them.
    """
    if isinstance(scheduler, DPMSolverSinglestepScheduler) and scheduler.config.lambda_min_clipped == -math.inf:
        scheduler.register_to_config(lambda_min_clipped=MIN_LAMBDA)
    spaces_levels = any(scheduler.config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta"))
    if spaces_levels and scheduler.config.get("sigma_max") is None:
        last = noise_levels(scheduler.alphas_cumprod)[-1].item()
        scheduler.register_to_config(sigma_max=min(last, math.exp(-MIN_LAMBDA)))


def _set_timesteps(scheduler: SchedulerMixin, *args, **kwargs) -> None:
    try:
        scheduler.set_timesteps(*args, **kwargs)
    except ValueError as error:  # PNDM takes no fewer than 4 steps, Karras's spacing no timesteps
        raise InputError(f"{type(scheduler).__name__} cannot space its steps so: {error}") from error
    if bool(torch.as_tensor(scheduler.timesteps).isnan().any()):  # KDPM2AncestralDiscreteScheduler's of two steps
        raise InputError(f"{type(scheduler).__name__} finds no timestep for one of so few steps: take more.")


def _whole_numbers(timesteps: Sequence[int]) -> list[int]:
    try:
        whole = [int(t) for t in timesteps]
        if all(t == given for t, given in zip(whole, timesteps)):
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"`timesteps` must be whole numbers, in a list or the like, got {timesteps!r}.")


def check_eta(eta: float, scheduler: SchedulerMixin) -> None:
    """Raises `InputError` unless `eta` is a number in [0, 1], and the scheduler's steps know such a thing."""
    is_number = isinstance(eta, Real) or (isinstance(eta, torch.Tensor) and eta.numel() == 1)
    if not is_number or not 0.0 <= eta <= 1.0:
        raise InputError(f"`eta` must lie in [0, 1], got {eta!r}.")
    if is_ancestral(scheduler):
        raise InputError(
            f"`eta` is of DDIM's steps, but those of a {type(scheduler).__name__} add all their noise: leave it out."
        )


def warn_of_amplification(diffusion: GaussianDiffusion) -> None:
    """Warns where Algorithm 2's first step takes so little signal to so much more that guidance drowns the image."""
    signal = diffusion.alphas_cumprod.sqrt()
    amplification = (signal[-2] / signal[-1]).item() if len(signal) > 1 else 1.0
    if amplification > MAX_AMPLIFICATION:
        logger.warning(
            f"The first step, from timestep {diffusion.timesteps[0]}, multiplies what guidance adds by "
            f"{amplification:.0f}: guided images will be ruined. Give the scheduler timestep_spacing='leading' and take a number "
            f"of steps that divides {diffusion.num_train_timesteps}, or `timesteps` that start at a smaller one."
        )
