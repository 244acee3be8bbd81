"""What a guidance sees: of a call before it begins, and of each step of sampling."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_cg.diffusion import GaussianDiffusion, Generators, Prediction


if TYPE_CHECKING:
    from diffusers_cg.guidance.guidance import Guidance


def twice_differentiable(needed: bool) -> AbstractContextManager:
    """A context in which attention is computed so that its gradient has a gradient, if that is needed; fast kernels have none."""
    return sdpa_kernel(SDPBackend.MATH) if needed else nullcontext()


@dataclass(frozen=True, eq=False)
class GuidedCall:
    """A call of a pipeline, before anything is computed.

    Args:
        shape (`torch.Size`): Of the samples, (B, C, H, W).
        class_labels (`torch.Tensor`, *optional*): (B,) int64.
        unet (`nn.Module`), scheduler (`SchedulerMixin`): The pipeline's.
        eta (`float`): Noise of DDIM's steps, 0 to 1.
    """

    shape: torch.Size
    class_labels: torch.Tensor | None
    unet: nn.Module
    scheduler: SchedulerMixin
    eta: float = 0.0


@dataclass(eq=False)
class GuidedStep:
    """A step of sampling, from x_t to x_{t-1}, as a guidance sees it. Nothing is computed unless asked for, nor twice.

    Args:
        sample (`torch.Tensor`): x_t, (B, C, H, W), float32.
        index (`int`): Which step of the call. An evaluation of the unet is one, also where a scheduler takes two a step.
        timesteps (`torch.Tensor`): Those of the call in their order, (number of steps,), int64 or fractional.
        class_labels (`torch.Tensor`, *optional*): (B,) int64, as the call was given them.
        predict (callable): A network, `(sample, timestep, class_labels, unet=the pipeline's) -> Prediction`: to be asked about
            other samples, times (fractional ones, too), labels and unets, with a graph where gradients are on.
        diffusion (`GaussianDiffusion`): The process; over the timesteps of the call where they are whole.
        guidance (`Guidance`): All that guides the call.
        generator (`torch.Generator` or one per image, *optional*): Source of all randomness of the call.
        memory (`dict`): What guidances keep from step to step of one call, each under a key of its own.
        cost (`Counter`): What the call has computed so far: `"unet"`, `"classifier"` and `"backward"` passes.
        order (`int`): Evaluations that the scheduler takes for a step of its own: `index // order` is which of those it is.
        keeps_graph (`bool`): Whether all that follows from the sample, gradients of guidances too, has a graph that leads
            back to it, as in a differentiable call.
    """

    sample: torch.Tensor
    index: int
    timesteps: torch.Tensor
    class_labels: torch.Tensor | None
    predict: Callable[..., Prediction]
    diffusion: GaussianDiffusion
    guidance: "Guidance"
    generator: Generators = None
    memory: dict[Any, Any] = field(default_factory=dict)
    cost: Counter = field(default_factory=Counter)
    order: int = 1
    keeps_graph: bool = False

    # ------------------------------------------------------------------------------------------------ where it stands

    @property
    def timestep(self) -> torch.Tensor:
        """t, 0-d."""
        return self.timesteps[self.index]

    @property
    def timestep_prev(self) -> torch.Tensor:
        """t - 1, of the sample that the step leads to, 0-d; 0, of the least noise, for the clean image."""
        return torch.zeros_like(self.timestep) if self.is_last else self.timesteps[self.index + 1]

    @property
    def num_steps(self) -> int:
        """Number of steps of the call."""
        return len(self.timesteps)

    @property
    def is_last(self) -> bool:
        """Whether the step leads to the clean image."""
        return self.index + 1 == self.num_steps

    @cached_property
    def alphas_cumprod(self) -> torch.Tensor:
        """abar of all steps of the call, in their order, (number of steps,), float32."""
        return self.diffusion.coefficient("abar", self.timesteps, self.sample.new_empty(0))

    @property
    def alpha_prod_t(self) -> torch.Tensor:
        """abar_t, (1, 1, 1, 1)."""
        return self.alphas_cumprod[self.index].reshape(1, 1, 1, 1)

    @property
    def alpha_prod_t_prev(self) -> torch.Tensor:
        """abar_{t-1}, (1, 1, 1, 1): of the sample that the step leads to, 1 for the clean image."""
        if self.is_last:
            return torch.ones_like(self.alpha_prod_t)
        return self.alphas_cumprod[self.index + 1].reshape(1, 1, 1, 1)

    @property
    def sigma(self) -> float:
        """The noise level sqrt((1 - abar_t) / abar_t): the standard deviation of noise on an image of unit scale."""
        abar = self.alpha_prod_t.item()
        return math.sqrt((1 - abar) / abar)

    # ------------------------------------------------------------------------------------------- what the network sees

    @cached_property
    def prediction(self) -> Prediction:
        """What the network sees in the sample, each field (B, C, H, W) or broadcasting to it, float32.

        It has no graph, but in a differentiable call.
        """
        with torch.set_grad_enabled(self.keeps_graph):
            return self._look(self.sample)

    def _look(self, sample: torch.Tensor) -> Prediction:
        """What the network sees, with noises mixed and clean images replaced as the guidance of the call says."""
        seen = self.seeing(sample, self.predict(sample, self.timestep, self.class_labels))
        noise = self.guidance.mix(seen)
        if noise is not seen.noise:
            original = self.diffusion.predict_original(noise, sample, self.timestep, self.diffusion.clip_range)
            mixed = dataclasses.replace(seen.prediction, noise=noise, pred_original_sample=original)
            seen = self.seeing(sample, mixed)
        return dataclasses.replace(seen.prediction, pred_original_sample=self.guidance.replace(seen))

    @property
    def noise(self) -> torch.Tensor:
        """eps, the noise that the network sees in the sample, (B, C, H, W)."""
        return self.prediction.noise

    @property
    def pred_original_sample(self) -> torch.Tensor:
        """The clean image x_0 that the network sees in the sample, about [-1, 1], (B, C, H, W)."""
        return self.prediction.pred_original_sample

    @property
    def variance(self) -> torch.Tensor:
        """Sigma_t, (B, C, H, W) or broadcasting to it; at fractional timesteps that of the training process."""
        return self.prediction.variance

    @property
    def mean(self) -> torch.Tensor:
        """mu, the mean of p(x_{t-1} | x_t) as the network sees it, (B, C, H, W) (eq. 7 of DDPM)."""
        abar, abar_prev = self.alpha_prod_t, self.alpha_prod_t_prev
        of_original = abar_prev.sqrt() * (1 - abar / abar_prev) / (1 - abar)
        of_sample = (abar / abar_prev).sqrt() * (1 - abar_prev) / (1 - abar)
        return of_original * self.pred_original_sample + of_sample * self.sample

    def differentiable(self) -> "GuidedStep":
        """This step with a graph that leads from its prediction back to its sample, a [`variable`].

        Asked for before anything else, it costs that graph and no second pass through the network.
        """
        with torch.enable_grad(), twice_differentiable(self.keeps_graph):
            sample = self.variable(self.sample)
            prediction = self._look(sample)
        if "prediction" not in vars(self):
            fields = vars(prediction).values()
            self.prediction = type(prediction)(*(value if self.keeps_graph else value.detach() for value in fields))
        return self.seeing(sample, prediction)

    def variable(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of `tensor` to take gradients at: a leaf; in a differentiable call, still in the graph of the sample."""
        with torch.enable_grad():
            return tensor.clone() if self.keeps_graph else tensor.detach().clone().requires_grad_(True)

    def seeing(self, sample: torch.Tensor, prediction: Prediction) -> "GuidedStep":
        """This step at another sample, and with what is seen in it."""
        step = copy(self)
        step.sample, step.prediction = sample, prediction
        return step

    # ------------------------------------------------------------------------------------------------------- randomness

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal noise of the call's generator, float32."""
        return randn_tensor(tuple(shape), generator=self.generator, device=self.sample.device, dtype=torch.float32)

    def noised_again(self, prev_sample: torch.Tensor) -> torch.Tensor:
        """x_t drawn from q(x_t | x_{t-1}), (B, C, H, W)."""
        alpha_t = self.alpha_prod_t / self.alpha_prod_t_prev
        return alpha_t.sqrt() * prev_sample + (1 - alpha_t).sqrt() * self.randn(prev_sample.shape)
