"""Training-free guidance in its unified form."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from diffusers import DDIMScheduler

from diffusers_cg.diffusion import is_ancestral
from diffusers_cg.errors import InputError
from diffusers_cg.guidance.clean_image_guidance import CleanImageGuidance, check_values, gradient_of
from diffusers_cg.guidance.guidance import Guidance
from diffusers_cg.guidance.guided_step import GuidedCall, GuidedStep


Schedule = Literal["increase", "decrease", "constant"]


class TrainingFreeGuidance(Guidance):
    r"""*TFG: Unified Training-Free Guidance for Diffusion Models* (Ye et al., 2024), Algorithm 1. With
    f~(x_0) = log mean exp f(x_0 + sigma_t noise) over `num_samples` noises and alpha_t = abar_t / abar_{t-1}:

        Delta_t = rho_t grad_{x_t} f~(x_0(x_t))                              through the unet
        Delta_0 = `num_iterations` times: x_0 <- x_0 + mu_t grad_{x_0} f~     on the clean image
        x_{t-1} = step(x_t, x_0) + Delta_t / sqrt(alpha_t) + sqrt(abar_{t-1}) Delta_0

    and each step is taken `num_recurrences` times, with noise added back in between. Others are special cases, up to their
    weights by step:

    | method | parameters |
    | --- | --- |
    | DPS (Chung et al., 2023) | `rho` |
    | LGD (Song et al., 2023) | `rho`, `sigma`, `num_samples` |
    | FreeDoM (Yu et al., 2023) | `rho`, `num_recurrences` |
    | MPGD (He et al., 2024) | `mu`, `mu_schedule="constant"` |
    | Universal Guidance (Bansal et al., 2023) | `rho`, `mu`, `num_iterations`, `num_recurrences` |

    Args:
        target ([`CleanImageGuidance`] or callable): f: any guidance of clean images (what it judges by, not how far it goes),
            or a function of them, (B, C, H, W) -> (B,).
        rho, mu (`float`): Strength through the unet, and on the clean image; 0 is off and costs nothing.
        sigma (`float`): Spread of the noises that f is smoothed by; 0 is none.
        num_samples, num_iterations, num_recurrences (`int`).
        rho_schedule, mu_schedule (`str`): rho_t and mu_t: as alpha_t (`"increase"`), 1 - alpha_t (`"decrease"`), or
            `"constant"`; `rho` and `mu` on average over the steps.
        sigma_schedule (`str`): sigma_t: `sigma` times sqrt(1 - abar_t) (`"decrease"`), or `"constant"`.
    """

    def __init__(
        self,
        target: CleanImageGuidance | Callable[[torch.Tensor], torch.Tensor],
        rho: float = 0.0,
        mu: float = 0.0,
        sigma: float = 0.0,
        num_samples: int = 4,
        num_iterations: int = 1,
        num_recurrences: int = 1,
        rho_schedule: Schedule = "increase",
        mu_schedule: Schedule = "increase",
        sigma_schedule: Literal["decrease", "constant"] = "decrease",
    ):
        if min(rho, mu, sigma) < 0 or min(num_samples, num_iterations, num_recurrences) < 1:
            raise InputError("`rho`, `mu` and `sigma` must be at least 0, the numbers of times at least 1.")
        if not {rho_schedule, mu_schedule} <= set(get_args(Schedule)) or sigma_schedule not in (
            "decrease",
            "constant",
        ):
            raise InputError(
                "`rho_schedule` and `mu_schedule` must be 'increase', 'decrease' or 'constant', and `sigma_schedule` 'decrease' "
                f"or 'constant', got {rho_schedule!r}, {mu_schedule!r} and {sigma_schedule!r}."
            )
        if not callable(target) or (isinstance(target, Guidance) and not isinstance(target, CleanImageGuidance)):
            raise InputError(
                f"`target` must be a guidance of clean images or a function of them, got {target!r}: what weighs, confines or "
                "clamps goes around TrainingFreeGuidance itself."
            )
        self.target = target
        self.rho, self.mu, self.sigma = rho, mu, sigma
        self.num_samples = num_samples if sigma > 0 else 1
        self.num_iterations = num_iterations
        self.num_recurrences = num_recurrences
        self.rho_schedule, self.mu_schedule, self.sigma_schedule = rho_schedule, mu_schedule, sigma_schedule

    def check(self, call: GuidedCall) -> None:
        if not (is_ancestral(call.scheduler) or isinstance(call.scheduler, DDIMScheduler)):
            raise InputError(
                f"{type(call.scheduler).__name__} cannot take the steps of training-free guidance, which shifts samples and "
                "takes steps again, since it goes by what it saw before: use a DDIMScheduler or a DDPMScheduler."
            )
        if isinstance(self.target, Guidance):
            self.target.check(call)

    def recurrences(self, step: GuidedStep) -> int:
        return self.num_recurrences

    def shift(self, step: GuidedStep) -> torch.Tensor | float:
        noises, shift = self.draw_noises(step), 0.0
        if self.rho > 0:
            through = step.differentiable()
            value = self.smoothed(through.pred_original_sample, noises, through)
            delta_t = weight(self.rho, self.rho_schedule, step) * gradient_of(value, through.sample, step)
            shift = shift + delta_t / (step.alpha_prod_t / step.alpha_prod_t_prev).sqrt()
        if self.mu > 0:
            clean_images = step.pred_original_sample
            for _ in range(self.num_iterations):
                clean_images = step.variable(clean_images)
                gradient = gradient_of(self.smoothed(clean_images, noises, step), clean_images, step)
                clean_images = clean_images + weight(self.mu, self.mu_schedule, step) * gradient
            shift = shift + step.alpha_prod_t_prev.sqrt() * (clean_images - step.pred_original_sample)
        return shift

    def draw_noises(self, step: GuidedStep) -> torch.Tensor:
        """What f is smoothed by, (N, B, C, H, W)."""
        if self.sigma == 0:
            return torch.zeros_like(step.sample)[None]
        spread = self.sigma * ((1 - step.alpha_prod_t).sqrt() if self.sigma_schedule == "decrease" else 1.0)
        return torch.stack([spread * step.randn(step.sample.shape) for _ in range(self.num_samples)])

    def smoothed(self, clean_images: torch.Tensor, noises: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """f~, (B,), up to a constant."""
        noisy = (clean_images + noises).flatten(0, 1)  # (N B, C, H, W)
        if isinstance(self.target, CleanImageGuidance):
            values = self.target.log_likelihood(noisy, step)
        else:
            values = check_values(self.target(noisy), noisy)
        return values.reshape(len(noises), -1).logsumexp(dim=0)


def weight(strength: float, schedule: Schedule, step: GuidedStep) -> torch.Tensor:
    """rho_t or mu_t, 0-d: proportional to the schedule, `strength` on average over the steps."""
    abars = step.alphas_cumprod  # (number of steps,), in the order of sampling
    alphas = abars / torch.cat([abars[1:], abars.new_ones(1)])
    values = {"increase": alphas, "decrease": 1 - alphas, "constant": torch.ones_like(alphas)}[schedule]
    return strength * values[step.index] / values.mean()
