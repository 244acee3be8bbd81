"""What a guidance sees of a step of sampling."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor


if TYPE_CHECKING:
    from diffusers_cg.diffusion import Prediction

    Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Prediction]


@dataclass(eq=False)
class GuidedStep:
    """A step of sampling, from x_t to x_{t-1}, as a guidance sees it. Nothing is computed unless asked for, nor twice.

    Args:
        sample (`torch.Tensor`): x_t, (B, C, H, W), float32.
        timestep (`torch.Tensor`): t, 0-d.
        class_labels (`torch.Tensor`, *optional*): (B,) int64, as the call was given them.
        alphas_cumprod (`torch.Tensor`): abar of all steps of the call, in their order, (number of steps,), float32.
        predict (callable): The network, `(sample, timestep, class_labels) -> Prediction`: to be asked about other samples,
            times (fractional ones, too) and labels, with a graph where gradients are on.
        look (callable): What the sampler goes by, `sample -> Prediction`: `predict` as guidances change it.
        index (`int`): Which step.
        generator (`torch.Generator` or one per image, *optional*): Source of all randomness of the call.
        memory (`dict`): What guidances keep from step to step of one call, each under a key of its own.
        cost (`Counter`): What the call has computed so far: `"unet"`, `"classifier"` and `"backward"` passes.
    """

    sample: torch.Tensor
    timestep: torch.Tensor
    class_labels: torch.Tensor | None
    alphas_cumprod: torch.Tensor
    predict: "Predict"
    look: "Callable[[torch.Tensor], Prediction]"
    index: int = 0
    generator: torch.Generator | list[torch.Generator] | None = None
    memory: dict[Any, Any] = field(default_factory=dict)
    cost: Counter = field(default_factory=Counter)

    @property
    def num_steps(self) -> int:
        """Number of steps of the call."""
        return len(self.alphas_cumprod)

    @property
    def alpha_prod_t(self) -> torch.Tensor:
        """abar_t, (1, 1, 1, 1)."""
        return self.alphas_cumprod[self.index].reshape(1, 1, 1, 1)

    @property
    def alpha_prod_t_prev(self) -> torch.Tensor:
        """abar_{t-1}, (1, 1, 1, 1): of the sample that the step leads to, 1 for the clean image."""
        last = self.index + 1 == self.num_steps
        return torch.ones_like(self.alpha_prod_t) if last else self.alphas_cumprod[self.index + 1].reshape(1, 1, 1, 1)

    @cached_property
    def prediction(self) -> "Prediction":
        """What the network sees in the sample, each field (B, C, H, W) or broadcasting to it, float32, without a graph."""
        with torch.no_grad():
            return self.look(self.sample)

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
        """Sigma_t, (B, C, H, W) or broadcasting to it."""
        return self.prediction.variance

    @property
    def mean(self) -> torch.Tensor:
        """mu, the mean of p(x_{t-1} | x_t) as the network sees it, (B, C, H, W) (eq. 7 of DDPM)."""
        abar, abar_prev = self.alpha_prod_t, self.alpha_prod_t_prev
        of_original = abar_prev.sqrt() * (1 - abar / abar_prev) / (1 - abar)
        of_sample = (abar / abar_prev).sqrt() * (1 - abar_prev) / (1 - abar)
        return of_original * self.pred_original_sample + of_sample * self.sample

    @property
    def sigma(self) -> float:
        """The noise level sqrt((1 - abar_t) / abar_t): the standard deviation of noise on an image of unit scale."""
        abar = self.alpha_prod_t.item()
        return math.sqrt((1 - abar) / abar)

    def differentiable(self) -> "GuidedStep":
        """This step with a graph that leads from its prediction back to its sample, a leaf.

        Asked for before anything else, it costs that graph and no second pass through the network.
        """
        with torch.enable_grad():
            sample = self.sample.detach().clone().requires_grad_(True)
            prediction = self.look(sample)
        if "prediction" not in vars(self):
            self.prediction = type(prediction)(*(value.detach() for value in vars(prediction).values()))
        return self.seeing(sample, prediction)

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal noise of the call's generator, float32."""
        return randn_tensor(tuple(shape), generator=self.generator, device=self.sample.device, dtype=torch.float32)

    def noised_again(self, prev_sample: torch.Tensor) -> torch.Tensor:
        """x_t drawn from q(x_t | x_{t-1}), (B, C, H, W)."""
        alpha_t = self.alpha_prod_t / self.alpha_prod_t_prev
        return alpha_t.sqrt() * prev_sample + (1 - alpha_t).sqrt() * self.randn(prev_sample.shape)

    def seeing(self, sample: torch.Tensor, prediction: "Prediction") -> "GuidedStep":
        """This step at another sample, and with what is seen in it."""
        step = copy(self)
        step.sample, step.prediction = sample, prediction
        return step
