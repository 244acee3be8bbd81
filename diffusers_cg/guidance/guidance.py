r"""What a guidance may change in a step of sampling, and how guidances compose.

A guidance has five parts, any of which may be left out:

| part | given back | what it does to the step |
| --- | --- | --- |
| `guidance(step)` | s grad log p(y\|x_t) | shifts the mean by Sigma times it (Algorithm 1), the noise by -sqrt(1 - abar_t) times it (Algorithm 2) |
| `guidance.mix(step)` | a noise | replaces the network's, as classifier-free guidance does |
| `guidance.replace(step)` | a clean image | replaces the one that the network sees, as a mask does |
| `guidance.shift(step)` | a distance | is added to x_{t-1} as it is, as training-free guidance does |
| `guidance.conclude(step, images)` | the final images | replace what the last step led to, as where some pixels must be kept to the bit |

First noises are mixed, then clean images replaced; what gives gradients and shifts sees the outcome. A plain function of a step
is a guidance of the first part alone.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from numbers import Real
from operator import add

import torch

from diffusers_cg.errors import InputError
from diffusers_cg.guidance.guided_step import GuidedCall, GuidedStep


class Guidance:
    """Base of guidances: a subclass overrides what it does, the rest leaves the step as it is.

    Guidances add (`a + b`): gradients and shifts add up, clean images are replaced one after the other. They weigh (`0.5 * a`:
    half as far), can be [`confined`] to a part of the steps, [`clamped`], and kept from stopping a call ([`finite`]).
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

    def shift(self, step: GuidedStep) -> torch.Tensor | float:
        """What is added to x_{t-1}, (B, C, H, W) float32."""
        return 0.0

    def conclude(self, step: GuidedStep, images: torch.Tensor) -> torch.Tensor:
        """The images to end with in place of `images`, to which `step`, the last one, led; (B, C, H, W) float32."""
        return images

    def recurrences(self, step: GuidedStep) -> int:
        """How often the step is taken, with its noise added back in between."""
        return 1

    def check(self, call: GuidedCall) -> None:
        """Raises `InputError` where this guidance cannot guide the call; nothing has been computed by then."""

    @property
    def name(self) -> str:
        """What errors call it."""
        return type(self).__name__

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

    def clamped(self, max_norm: float) -> "Guidance":
        """This guidance, no part of which goes farther than `max_norm` in an image (the Euclidean norm over its pixels)."""
        return Clamped(self, max_norm)

    def finite(self) -> "Guidance":
        """This guidance without what is not finite: such an image goes a step unguided, where the call would stop."""
        return Finite(self)

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
        is_tensor = isinstance(gradient, torch.Tensor)
        if not isinstance(gradient, Real) and not (is_tensor and gradient.shape == step.sample.shape):
            raise InputError(
                f"A guidance must return a gradient of the sample's shape {tuple(step.sample.shape)}, got "
                f"{tuple(gradient.shape) if is_tensor else gradient!r}."
            )
        return gradient

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


class GuidanceSum(Guidance):
    """Several guidances at once; of none, nothing changes.

    Args:
        guidances (sequence of `Guidance` or functions).
    """

    def __init__(self, guidances: "Sequence[Guidance | GuidanceFunction]"):
        self.guidances = [each if isinstance(each, Guidance) else GradientFunction(each) for each in guidances]

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        with torch.enable_grad():
            gradients = [checked(guidance(step), guidance, step) for guidance in self.guidances]
        return reduce(add, gradients) if gradients else 0.0

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

    def shift(self, step: GuidedStep) -> torch.Tensor | float:
        with torch.enable_grad():
            shifts = [checked(guidance.shift(step), guidance, step) for guidance in self.guidances]
        return reduce(add, shifts) if shifts else 0.0

    def conclude(self, step: GuidedStep, images: torch.Tensor) -> torch.Tensor:
        for guidance in self.guidances:
            images = guidance.conclude(step, images)
        return images

    def recurrences(self, step: GuidedStep) -> int:
        return max([1, *(guidance.recurrences(step) for guidance in self.guidances)])

    def check(self, call: GuidedCall) -> None:
        for guidance in self.guidances:
            guidance.check(call)

    @property
    def name(self) -> str:
        return " + ".join(guidance.name for guidance in self.guidances)


def checked(gradient: torch.Tensor | float, guidance: Guidance, step: GuidedStep) -> torch.Tensor | float:
    """The gradient in float32, without a graph but in a differentiable call.

    Raises:
        InputError: if it is not finite, or lacks the graph that a differentiable call needs.
    """
    if not isinstance(gradient, torch.Tensor):
        return gradient
    if not bool(gradient.isfinite().all()):
        raise InputError(
            f"The gradient of {guidance.name} is not finite at step {step.index + 1} of {step.num_steps}, timestep "
            f"{step.timestep.item():g}: try a lower scale, a wider dtype for the network that it comes from, or the guidance's "
            "finite(), which skips what is not."
        )
    if not step.keeps_graph:
        return gradient.detach().float()
    if not gradient.requires_grad:
        raise InputError(
            f"The gradient of {guidance.name} has no graph back to the sample, which a differentiable call needs: compute it "
            "from step.sample with torch.autograd.grad(..., create_graph=True) and without detach(), or add 0 * step.sample "
            "if it is constant."
        )
    return gradient.float()


# ---------------------------------------------------------------------------------------------- guidances of guidances


class Changed(Guidance, ABC):
    """A guidance whose five parts are all changed alike: a subclass overrides [`change`]."""

    def __init__(self, guidance: Guidance):
        self.guidance = guidance

    @abstractmethod
    def change(self, part: Callable, step: GuidedStep, unchanged: torch.Tensor | float) -> torch.Tensor | float:
        """What stands for `part(step)`; a guidance that does nothing would give `unchanged`."""

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        return self.change(self.guidance, step, 0.0)

    def mix(self, step: GuidedStep) -> torch.Tensor:
        return self.change(self.guidance.mix, step, step.noise)

    def replace(self, step: GuidedStep) -> torch.Tensor:
        return self.change(self.guidance.replace, step, step.pred_original_sample)

    def shift(self, step: GuidedStep) -> torch.Tensor | float:
        return self.change(self.guidance.shift, step, 0.0)

    def conclude(self, step: GuidedStep, images: torch.Tensor) -> torch.Tensor:
        return self.change(lambda step: self.guidance.conclude(step, images), step, images)

    def recurrences(self, step: GuidedStep) -> int:
        return self.guidance.recurrences(step)

    def check(self, call: GuidedCall) -> None:
        self.guidance.check(call)

    @property
    def name(self) -> str:
        return self.guidance.name


class Confined(Changed):
    """A guidance in a part of the steps; see [`Guidance.confined`]."""

    def __init__(self, guidance: Guidance, start: float, stop: float, sigmas: tuple[float, float], every: int):
        try:
            least, most = sigmas
            fits = 0 <= start < stop <= 1 and 0 <= least < most and every >= 1 and every == int(every)
        except (TypeError, ValueError):  # of another kind
            fits = False
        if not fits:
            raise InputError(
                "A guidance is confined to 0 <= start < stop <= 1 and to rising noise levels, each step or every k-th, got "
                f"start={start}, stop={stop}, sigmas={sigmas}, every={every}."
            )
        super().__init__(guidance)
        self.start, self.stop = start, stop
        self.sigmas = (least, most)
        self.every = every

    def is_active(self, step: GuidedStep) -> bool:
        return (
            self.start <= step.index / step.num_steps < self.stop
            and self.sigmas[0] < step.sigma <= self.sigmas[1]
            and step.index // step.order % self.every == 0
        )

    def change(self, part: Callable, step: GuidedStep, unchanged: torch.Tensor | float) -> torch.Tensor | float:
        return part(step) if self.is_active(step) else unchanged

    def recurrences(self, step: GuidedStep) -> int:
        return self.guidance.recurrences(step) if self.is_active(step) else 1


class Weighted(Changed):
    """A guidance that goes `weight` times as far.

    Args:
        guidance (`Guidance`).
        weight (`float` or one per image).
    """

    def __init__(self, guidance: Guidance, weight: float | Sequence[float] | torch.Tensor):
        super().__init__(guidance)
        self.weight = per_image("A guidance's weight", weight)

    def change(self, part: Callable, step: GuidedStep, unchanged: torch.Tensor | float) -> torch.Tensor | float:
        changed = part(step)
        if changed is unchanged or not isinstance(changed, torch.Tensor):
            return changed
        return unchanged + self.weight.to(changed) * (changed - unchanged)

    def check(self, call: GuidedCall) -> None:
        check_per_image("A guidance's weight", self.weight, call)
        super().check(call)


class Clamped(Changed):
    """A guidance that goes no farther than `max_norm` in an image; see [`Guidance.clamped`]."""

    def __init__(self, guidance: Guidance, max_norm: float):
        if not isinstance(max_norm, Real) or not max_norm > 0:
            raise InputError(f"`max_norm` must be above 0, got {max_norm!r}.")
        super().__init__(guidance)
        self.max_norm = max_norm

    def change(self, part: Callable, step: GuidedStep, unchanged: torch.Tensor | float) -> torch.Tensor | float:
        changed = part(step)
        if changed is unchanged or not isinstance(changed, torch.Tensor):
            return changed
        distance = changed - unchanged
        norm = distance.flatten(1).norm(dim=1).clamp(min=self.max_norm).reshape(-1, 1, 1, 1)
        return unchanged + distance * (self.max_norm / norm)


class Finite(Changed):
    """A guidance without the images in which it is not finite; see [`Guidance.finite`]."""

    def change(self, part: Callable, step: GuidedStep, unchanged: torch.Tensor | float) -> torch.Tensor | float:
        changed = part(step)
        if changed is unchanged or not isinstance(changed, torch.Tensor):
            return changed
        is_finite = changed.flatten(1).isfinite().all(dim=1).reshape(-1, 1, 1, 1)
        return torch.where(is_finite, changed, unchanged)


def per_image(name: str, numbers: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
    """One number for all images or one for each, float32, broadcasting over samples: (1 or B, 1, 1, 1).

    Raises:
        InputError: if they are no finite numbers.
    """
    try:
        values = torch.as_tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1, 1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be a number or one per image, got {numbers!r}.") from None
    if len(values) == 0 or not bool(values.isfinite().all()):
        raise InputError(f"{name} must be a finite number or one per image, got {numbers!r}.")
    return values


def check_per_image(name: str, numbers: torch.Tensor, call: GuidedCall) -> None:
    """Raises `InputError` unless the numbers are one or as many as the call's images."""
    if len(numbers) not in (1, call.shape[0]):
        raise InputError(
            f"{name} must be one number, or one for each of the {call.shape[0]} images, got {len(numbers)}."
        )
