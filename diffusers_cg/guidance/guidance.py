r"""What a guidance sees of a step of sampling, what it may change there, and how guidances compose.

A guidance has three parts, any of which may be left out:

| part | given back | what it does to the step |
| --- | --- | --- |
| `guidance(step)` | s grad log p(y\|x_t) | shifts the mean by Sigma times it (Algorithm 1), the noise by -sqrt(1 - abar_t) times it (Algorithm 2) |
| `guidance.mix(step)` | a noise | replaces the network's, as classifier-free guidance does |
| `guidance.replace(step)` | a clean image | replaces the one that the network sees, as a mask does |

First noises are mixed, then clean images replaced; what gives gradients sees the outcome. A plain function of a step is a
guidance of the first part alone.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import TYPE_CHECKING

import torch

from diffusers_cg.errors import InputError


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
        alpha_prod_t (`torch.Tensor`): abar_t, (1, 1, 1, 1), float32.
        predict (callable): The network, `(sample, timestep, class_labels) -> Prediction`: to be asked about other samples,
            times (fractional ones, too) and labels, with a graph where gradients are on.
        look (callable): What the sampler goes by, `sample -> Prediction`: `predict` as guidances change it.
        index, num_steps (`int`): Which step of how many.
    """

    sample: torch.Tensor
    timestep: torch.Tensor
    class_labels: torch.Tensor | None
    alpha_prod_t: torch.Tensor
    predict: "Predict"
    look: "Callable[[torch.Tensor], Prediction]"
    index: int = 0
    num_steps: int = 1

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

    def seeing(self, sample: torch.Tensor, prediction: "Prediction") -> "GuidedStep":
        """This step at another sample, and with what is seen in it."""
        step = copy(self)
        step.sample, step.prediction = sample, prediction
        return step


class Guidance:
    """Base of guidances: a subclass overrides what it does, the rest leaves the step as it is.

    Guidances add (`a + b`): gradients and shifts of the noise add up, clean images are replaced one after the other. They
    weigh (`0.5 * a`: half as far), and can be [`confined`] to a part of the steps.
    """

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        """The scaled gradient of log p(y | x_t), (B, C, H, W) float32."""
        return 0.0

    def mix(self, step: GuidedStep) -> torch.Tensor:
        """The noise to go by in place of `step.noise`, (B, C, H, W) float32."""
        return step.noise

    def replace(self, step: GuidedStep) -> torch.Tensor:
        """The clean image to go by in place of `step.pred_original_sample`, (B, C, H, W) float32."""
        return step.pred_original_sample

    def confined(
        self, start: float = 0.0, stop: float = 1.0, sigmas: tuple[float, float] = (0.0, math.inf), every: int = 1
    ) -> "Guidance":
        """This guidance in a part of the steps; in the others it computes nothing.

        Args:
            start, stop (`float`): Share of the steps before the first guided one, and up to the last, as in diffusers.
            sigmas (`tuple[float, float]`): Noise levels sqrt((1 - abar_t) / abar_t) above the first, up to the second
                (*Applying Guidance in a Limited Interval*, Kynkaanniemi et al., 2024).
            every (`int`): Only each k-th of those steps, counted from the first step of all.

        Raises:
            InputError: if no step can lie in there.
        """
        return Confined(self, start, stop, sigmas, every)

    def __add__(self, other: "Guidance | GuidanceFunction") -> "Guidance":
        return GuidanceSum([self, other])

    def __radd__(self, other: "Guidance | GuidanceFunction") -> "Guidance":
        return GuidanceSum([other, self])

    def __mul__(self, weight: float) -> "Guidance":
        return Weighted(self, weight)

    __rmul__ = __mul__


GuidanceFunction = Callable[[GuidedStep], torch.Tensor]
"""A step -> the scaled gradient of log p(y | x_t), (B, C, H, W): the shortest guidance that there is."""


class GradientFunction(Guidance):
    """A plain function of a step as a [`Guidance`].

    Args:
        function (`GuidanceFunction`): Called with gradients on.
    """

    def __init__(self, function: GuidanceFunction):
        if not callable(function):
            raise InputError(f"`guidance` must be a function of a step or a Guidance, got {function!r}.")
        self.function = function

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        gradient = self.function(step)
        if isinstance(gradient, torch.Tensor) and gradient.shape != step.sample.shape:
            raise InputError(
                f"A guidance must return a gradient of the sample's shape {tuple(step.sample.shape)}, got "
                f"{tuple(gradient.shape)}."
            )
        return gradient


class GuidanceSum(Guidance):
    """Several guidances at once; of none, nothing changes.

    Args:
        guidances (sequence of `Guidance` or functions).
    """

    def __init__(self, guidances: "Sequence[Guidance | GuidanceFunction]"):
        self.guidances = [each if isinstance(each, Guidance) else GradientFunction(each) for each in guidances]

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        with torch.enable_grad():
            gradients = [guidance(step) for guidance in self.guidances]
        gradients = [each.detach().float() if isinstance(each, torch.Tensor) else each for each in gradients]
        gradient = reduce(add, gradients) if gradients else 0.0
        if isinstance(gradient, torch.Tensor) and not bool(gradient.isfinite().all()):
            raise InputError(
                f"The gradient of the guidance is not finite at step {step.index + 1} of {step.num_steps}, timestep "
                f"{step.timestep.item():g}: try a lower scale, or a wider dtype for the network that it comes from."
            )
        return gradient

    def mix(self, step: GuidedStep) -> torch.Tensor:
        mixed = [guidance.mix(step) for guidance in self.guidances]
        shifts = [noise - step.noise for noise in mixed if noise is not step.noise]
        return reduce(add, shifts, step.noise) if shifts else step.noise

    def replace(self, step: GuidedStep) -> torch.Tensor:
        for guidance in self.guidances:
            replaced = guidance.replace(step)
            if replaced is not step.pred_original_sample:
                step = step.seeing(step.sample, dataclasses.replace(step.prediction, pred_original_sample=replaced))
        return step.pred_original_sample


class Weighted(Guidance):
    """A guidance that goes `weight` times as far.

    Args:
        guidance (`Guidance`).
        weight (`float`).
    """

    def __init__(self, guidance: Guidance, weight: float):
        self.guidance = guidance
        self.weight = weight

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        return self.weight * self.guidance(step)

    def mix(self, step: GuidedStep) -> torch.Tensor:
        mixed = self.guidance.mix(step)
        return mixed if mixed is step.noise else step.noise + self.weight * (mixed - step.noise)

    def replace(self, step: GuidedStep) -> torch.Tensor:
        replaced, seen = self.guidance.replace(step), step.pred_original_sample
        return replaced if replaced is seen else seen + self.weight * (replaced - seen)


class Confined(Guidance):
    """A guidance in a part of the steps; see [`Guidance.confined`]."""

    def __init__(self, guidance: Guidance, start: float, stop: float, sigmas: tuple[float, float], every: int):
        if not (0 <= start < stop <= 1 and 0 <= sigmas[0] < sigmas[1] and every >= 1):
            raise InputError(
                "A guidance is confined to 0 <= start < stop <= 1 and to rising noise levels, each step or every k-th, got "
                f"start={start}, stop={stop}, sigmas={sigmas}, every={every}."
            )
        self.guidance = guidance
        self.start, self.stop = start, stop
        self.sigmas = sigmas
        self.every = every

    def is_active(self, step: GuidedStep) -> bool:
        return (
            self.start <= step.index / step.num_steps < self.stop
            and self.sigmas[0] < step.sigma <= self.sigmas[1]
            and step.index % self.every == 0
        )

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        return self.guidance(step) if self.is_active(step) else 0.0

    def mix(self, step: GuidedStep) -> torch.Tensor:
        return self.guidance.mix(step) if self.is_active(step) else step.noise

    def replace(self, step: GuidedStep) -> torch.Tensor:
        return self.guidance.replace(step) if self.is_active(step) else step.pred_original_sample
