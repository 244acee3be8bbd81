"""The stochastic sampler of *Elucidating the Design Space of Diffusion-Based Generative Models*, as a scheduler."""

import math

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from diffusers_cg.diffusion.generators import Generators
from diffusers_cg.errors import InputError


class EDMHeunScheduler(SchedulerMixin, ConfigMixin):
    r"""Algorithm 2 of *Elucidating the Design Space* (Karras et al., 2022): Heun's second-order steps in the noise level sigma,
    with noise added in between (churn), for networks that were trained on samples of kept variance.

    Samples are x = x_0 + sigma noise; the networks are fed x / sqrt(sigma^2 + 1) at the timestep whose noise level is sigma, by
    its logarithm. N steps take 2 N - 1 evaluations, N of first order. The noise that precedes a step is added at the end of the
    one before, so that what is handed out is always the sample that the network is to see.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: The training process, as of `DDPMScheduler`.
        prediction_type (`str`): What the network predicts; the steps themselves are taken on the noise.
        clip_sample, clip_sample_range: Whether predicted clean images are clipped, and to what, as of `DDIMScheduler`.
        solver_order (`int`): 2 is Heun's, 1 Euler's.
        sigma_min, sigma_max (`float`): Noise levels of the last and the first step, as far as the training process has them.
        rho (`float`): Noise levels are evenly spaced in sigma^(1 / rho).
        s_churn, s_tmin, s_tmax, s_noise (`float`): Amount of noise added, between which noise levels, and its spread; 0 is a
            deterministic sampler. For ImageNet 64x64 the paper takes 40, 0.05, 50 and 1.003.
    """

    _compatibles = ["DDPMScheduler", "DDIMScheduler"]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        solver_order: int = 2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ):
        if solver_order not in (1, 2):
            raise InputError(f"`solver_order` must be 1 or 2, got {solver_order!r}.")
        self.betas = DDPMScheduler(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas).betas
        self.alphas_cumprod = torch.cumprod(1 - self.betas.double(), dim=0)
        first, last = noise_levels(self.alphas_cumprod)[[0, -1]].tolist()
        if not (rho > 0 and 0 <= sigma_min < sigma_max and sigma_min < last and sigma_max > first):
            raise InputError(
                f"`rho` must be above 0, and `sigma_min` below `sigma_max`, both among the noise levels of the training process "
                f"({first:.3g} to {last:.3g}), got {rho}, {sigma_min} and {sigma_max}."
            )
        if s_churn < 0 or s_noise < 0:
            raise InputError(f"`s_churn` and `s_noise` must be at least 0, got {s_churn} and {s_noise}.")
        self.set_timesteps(num_train_timesteps)

    @property
    def order(self) -> int:
        """Evaluations of the network in a step."""
        return self.config.solver_order

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial sample."""
        return math.sqrt(self.sigmas[0].item() ** 2 + 1)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Sets the noise levels of `num_inference_steps` steps, and begins anew."""
        config, trained = self.config, noise_levels(self.alphas_cumprod)
        least, most = max(config.sigma_min, trained[0].item()), min(config.sigma_max, trained[-1].item())
        ramp = torch.linspace(0, 1, num_inference_steps, dtype=torch.float64)
        sigmas = torch.lerp(
            *(torch.tensor(end, dtype=torch.float64) ** (1 / config.rho) for end in (most, least)), ramp
        )
        sigmas = sigmas**config.rho
        churned = (sigmas >= config.s_tmin) & (sigmas <= config.s_tmax)
        gamma = min(config.s_churn / num_inference_steps, math.sqrt(2) - 1) * churned
        raised = (sigmas * (1 + gamma)).clamp(max=trained[-1].item())
        reached = torch.cat([sigmas[1:], sigmas.new_zeros(1)])
        self.num_inference_steps = num_inference_steps
        self.steps = list(zip(raised.tolist(), reached.tolist()))  # from where each goes, and to where
        evaluated = torch.stack([raised, reached], dim=1).flatten()[:-1] if config.solver_order == 2 else raised
        self.sigmas = torch.cat([evaluated, sigmas.new_zeros(1)])
        self.timesteps = timesteps_at(evaluated, trained).float().to(device)
        self._index = 0  # of the next step
        self._begun = None  # sample and slope where it began, if it is to be corrected

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begins at another evaluation than the first: one of first order."""
        self._index = begin_index // self.order

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """The sample as of kept variance, for the networks: x / sqrt(sigma^2 + 1)."""
        raised, reached = self.steps[self._index]
        return sample / math.sqrt((raised if self._begun is None else reached) ** 2 + 1)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """From one evaluation to the next: of second order, every other one corrects the step that the one before began.

        Args:
            model_output (`torch.Tensor`): The noise, dx / dsigma, (B, C, H, W).
            timestep: Not looked at; evaluations are taken in turn.
            sample (`torch.Tensor`): x, as the last step returned it.
            generator (`torch.Generator` or one per image, *optional*): Of the noise that is added.
        """
        raised, reached = self.steps[self._index]
        if self._begun is not None:
            start, slope = self._begun
            sample = start + (reached - raised) * (slope + model_output) / 2
            self._begun = None
        else:
            start, sample = sample, sample + (reached - raised) * model_output
            if self.config.solver_order == 2 and reached > 0:
                self._begun = (start, model_output)
        if self._begun is None:
            self._index += 1
            next_raised = self.steps[self._index][0] if self._index < len(self.steps) else 0.0
            if next_raised > reached:
                noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
                sample = sample + math.sqrt(next_raised**2 - reached**2) * self.config.s_noise * noise
        return SchedulerOutput(prev_sample=sample) if return_dict else (sample,)


def noise_levels(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """sigma_t = sqrt((1 - abar_t) / abar_t), of the shape of abar."""
    return (1 / alphas_cumprod - 1).sqrt()


def timesteps_at(sigmas: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The fractional timesteps of noise levels by those of all timesteps, (T,), rising: linear in the logarithm."""
    levels, table = sigmas.log(), table.log()
    above = torch.searchsorted(table, levels).clamp(1, len(table) - 1)
    weight = (levels - table[above - 1]) / (table[above] - table[above - 1])
    return (above - 1 + weight).clamp(0, len(table) - 1)


def sigmas_at(timesteps: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The noise levels of fractional timesteps by those of all timesteps, (T,): the inverse of [`timesteps_at`]."""
    return torch.lerp(
        table.log()[timesteps.floor().long()], table.log()[timesteps.ceil().long()], timesteps.frac()
    ).exp()
