r"""What a guidance may change in a step of sampling, and how guidances compose.

A guidance has four parts, any of which may be left out:

| part | given back | what it does to the step |
| --- | --- | --- |
| `guidance(step)` | s grad log p(y\|x_t) | shifts the mean by Sigma times it (Algorithm 1), the noise by -sqrt(1 - abar_t) times it (Algorithm 2) |
| `guidance.mix(step)` | a noise | replaces the network's, as classifier-free guidance does |
| `guidance.replace(step)` | a clean image | replaces the one that the network sees, as a mask does |
| `guidance.correct(step, prev_sample)` | x_{t-1} | replaces the one that the step led to |

First noises are mixed, then clean images replaced; what gives gradients sees the outcome, and last x_{t-1} is corrected. A
plain function of a step is a guidance of the first part alone.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

import torch

from diffusers_cg.errors import InputError
from diffusers_cg.guidance.guided_step import GuidedStep


class Guidance:
    """Base of guidances: a subclass overrides what it does, the rest leaves the step as it is.

    Guidances add (`a + b`): gradients and shifts of the noise add up, clean images are replaced and samples corrected one
    after the other. They weigh (`0.5 * a`: half as far), can be [`confined`] to a part of the steps, and their gradients
    [`clamped`].
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

    def correct(self, step: GuidedStep, prev_sample: torch.Tensor) -> torch.Tensor:
        """The sample to go on with in place of `prev_sample`, x_{t-1}, (B, C, H, W) float32."""
        return prev_sample

    def recurrences(self, step: GuidedStep) -> int:
        """How often the step is taken, with its noise added back in between."""
        return 1

    def check(self, shape: torch.Size, class_labels: torch.Tensor | None) -> None:
        """Raises `InputError` where this guidance cannot guide a call, before anything is computed.

        Args:
            shape (`torch.Size`): Of the samples, (B, C, H, W).
            class_labels (`torch.Tensor`, *optional*): The call's, (B,) int64.
        """

    def clamped(self, max_norm: float) -> "Guidance":
        """This guidance with a gradient whose norm is at most `max_norm` in each image."""
        return Clamped(self, max_norm)

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

    def __mul__(self, weight: "float | Sequence[float] | torch.Tensor") -> "Guidance":
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

    def correct(self, step: GuidedStep, prev_sample: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            for guidance in self.guidances:
                prev_sample = guidance.correct(step, prev_sample)
        return prev_sample.detach()

    def check(self, shape: torch.Size, class_labels: torch.Tensor | None) -> None:
        for guidance in self.guidances:
            guidance.check(shape, class_labels)

    def recurrences(self, step: GuidedStep) -> int:
        return max([1, *(guidance.recurrences(step) for guidance in self.guidances)])


class Changed(Guidance):
    """Base of what changes another guidance: a subclass overrides what it changes."""

    def __init__(self, guidance: Guidance):
        self.guidance = guidance

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        return self.guidance(step)

    def mix(self, step: GuidedStep) -> torch.Tensor:
        return self.guidance.mix(step)

    def replace(self, step: GuidedStep) -> torch.Tensor:
        return self.guidance.replace(step)

    def correct(self, step: GuidedStep, prev_sample: torch.Tensor) -> torch.Tensor:
        return self.guidance.correct(step, prev_sample)

    def recurrences(self, step: GuidedStep) -> int:
        return self.guidance.recurrences(step)

    def check(self, shape: torch.Size, class_labels: torch.Tensor | None) -> None:
        self.guidance.check(shape, class_labels)


class Weighted(Changed):
    """A guidance that goes `weight` times as far.

    Args:
        guidance (`Guidance`).
        weight (`float` or one per image).
    """

    def __init__(self, guidance: Guidance, weight: float | Sequence[float] | torch.Tensor):
        super().__init__(guidance)
        self.weight = per_image(weight)

    def check(self, shape: torch.Size, class_labels: torch.Tensor | None) -> None:
        check_per_image("`weight`", self.weight, shape)
        super().check(shape, class_labels)

    def farther(self, there: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """`weight` times as far as from `here` to `there`."""
        return here if there is here else here + self.weight.to(here) * (there - here)

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        gradient = self.guidance(step)
        return self.weight.to(gradient) * gradient if isinstance(gradient, torch.Tensor) else gradient

    def mix(self, step: GuidedStep) -> torch.Tensor:
        return self.farther(self.guidance.mix(step), step.noise)

    def replace(self, step: GuidedStep) -> torch.Tensor:
        return self.farther(self.guidance.replace(step), step.pred_original_sample)

    def correct(self, step: GuidedStep, prev_sample: torch.Tensor) -> torch.Tensor:
        return self.farther(self.guidance.correct(step, prev_sample), prev_sample)


class Clamped(Changed):
    """A guidance whose gradient is shortened in each image to a norm of at most `max_norm`."""

    def __init__(self, guidance: Guidance, max_norm: float):
        if not max_norm > 0:
            raise InputError(f"`max_norm` must be above 0, got {max_norm!r}.")
        super().__init__(guidance)
        self.max_norm = max_norm

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        gradient = self.guidance(step)
        if not isinstance(gradient, torch.Tensor):
            return gradient
        norm = gradient.flatten(1).norm(dim=1).clamp(min=self.max_norm).reshape(-1, 1, 1, 1)
        return gradient * (self.max_norm / norm)


class Confined(Changed):
    """A guidance in a part of the steps; see [`Guidance.confined`]."""

    def __init__(self, guidance: Guidance, start: float, stop: float, sigmas: tuple[float, float], every: int):
        if not (0 <= start < stop <= 1 and 0 <= sigmas[0] < sigmas[1] and every >= 1):
            raise InputError(
                "A guidance is confined to 0 <= start < stop <= 1 and to rising noise levels, each step or every k-th, got "
                f"start={start}, stop={stop}, sigmas={sigmas}, every={every}."
            )
        super().__init__(guidance)
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

    def correct(self, step: GuidedStep, prev_sample: torch.Tensor) -> torch.Tensor:
        return self.guidance.correct(step, prev_sample) if self.is_active(step) else prev_sample

    def recurrences(self, step: GuidedStep) -> int:
        return self.guidance.recurrences(step) if self.is_active(step) else 1


def per_image(numbers: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
    """One number for all images or one for each, float32, broadcasting over samples: (1 or B, 1, 1, 1)."""
    return torch.as_tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1, 1)


def check_per_image(name: str, numbers: torch.Tensor, shape: torch.Size) -> None:
    """Raises `InputError` unless the numbers are finite, and one or as many as the samples of this shape, (B, C, H, W)."""
    if len(numbers) not in (1, shape[0]) or not bool(numbers.isfinite().all()):
        raise InputError(
            f"{name} must be a finite number, or one for each of the {shape[0]} images, got {numbers.flatten().tolist()}."
        )
