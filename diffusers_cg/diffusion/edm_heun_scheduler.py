"""The stochastic sampler of *Elucidating the Design Space of Diffusion-Based Generative Models*, as a scheduler."""

import math

import torch
from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from diffusers_cg.diffusion.generators import Generators


class EDMHeunScheduler(SchedulerMixin, ConfigMixin):
    r"""Algorithm 2 of *Elucidating the Design Space* (Karras et al., 2022): Heun's second-order steps in the noise level sigma,
    with noise added in between (churn), for networks that were trained on samples of kept variance.

    Samples are x = x_0 + sigma noise; the networks are fed x / sqrt(sigma^2 + 1) at the timestep whose noise level is sigma, by
    its logarithm. N steps take 2 N - 1 evaluations. The noise that precedes a step is added at the end of the one before, so
    that what is handed out is always the sample that the network is to see.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: The training process, as of `DDPMScheduler`.
        prediction_type (`str`): What the network predicts; the steps themselves are taken on the noise.
        clip_sample, clip_sample_range: Whether predicted clean images are clipped, and to what, as of `DDIMScheduler`.
        sigma_min, sigma_max (`float`, *optional*): Noise levels of the last and the first step; those of the training
            process otherwise.
        rho (`float`): Noise levels are evenly spaced in sigma^(1 / rho).
        s_churn, s_tmin, s_tmax, s_noise (`float`): Amount of noise added, between which noise levels, and its spread; 0 is a
            deterministic sampler. For ImageNet 64x64 the paper takes 40, 0.05, 50 and 1.003.
    """

    order = 2
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
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        rho: float = 7.0,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ):
        self.betas = DDPMScheduler(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas).betas
        self.alphas_cumprod = torch.cumprod(1 - self.betas.double(), dim=0)
        self.set_timesteps(num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial sample."""
        return self.sigmas[0].item()

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Sets the noise levels of `num_inference_steps` steps, and begins anew."""
        table = noise_levels(self.alphas_cumprod)
        low, high = self.config.sigma_min or table[0].item(), self.config.sigma_max or table[-1].item()
        ramp = torch.linspace(0, 1, num_inference_steps, dtype=torch.float64)
        inverse = 1 / self.config.rho
        sigmas = (high**inverse + ramp * (low**inverse - high**inverse)) ** self.config.rho
        churned = (sigmas >= self.config.s_tmin) & (sigmas <= self.config.s_tmax)
        gamma = min(self.config.s_churn / num_inference_steps, math.sqrt(2) - 1) * churned.double()
        raised = (sigmas * (1 + gamma)).clamp(max=max(high, table[-1].item()))
        self.num_inference_steps = num_inference_steps
        # of evaluations: a step begins at its raised level and looks again at the next one, but for the last
        self.sigmas = torch.stack([raised, torch.cat([sigmas[1:], sigmas.new_zeros(1)])], dim=1).flatten()
        self.timesteps = timesteps_at(self.sigmas[:-1], table).float().to(device)
        self._index = 0
        self._begun = None

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """The sample as of kept variance, for the networks: x / sqrt(sigma^2 + 1)."""
        return sample / math.sqrt(self.sigmas[self._index].item() ** 2 + 1)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """From one evaluation to the next: every second one corrects the step that the one before began.

        Args:
            model_output (`torch.Tensor`): The noise, dx / dsigma, (B, C, H, W).
            timestep: Not looked at; evaluations are taken in turn.
            sample (`torch.Tensor`): x, as the last step returned it.
            generator (`torch.Generator` or one per image, *optional*): Of the noise that is added.
        """
        if self._begun is None:
            here, there = self.sigmas[self._index : self._index + 2].tolist()
            self._begun = (sample, model_output, there - here)
            sample = sample + (there - here) * model_output
        else:
            start, slope, distance = self._begun
            self._begun = None
            sample = start + distance * (slope + model_output) / 2
            level, raised = self.sigmas[self._index : self._index + 2].tolist()
            if raised > level:
                noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
                sample = sample + math.sqrt(raised**2 - level**2) * self.config.s_noise * noise
        self._index += 1
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
