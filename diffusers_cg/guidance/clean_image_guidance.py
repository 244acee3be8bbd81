r"""Guidance by what a function says of the clean image that the network sees in the noisy one.

With f(x_0) a log-likelihood of the condition, up to a constant, the gradient of log p(y | x_t) is taken as that of
f(x_0(x_t)): with respect to x_t through the unet, or with respect to x_0 as if the unet were the identity, which costs no
backward pass through it.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import nn

from diffusers_cg.errors import InputError
from diffusers_cg.guidance.classifier_guidance import check_labels, label_tensor, labels_for
from diffusers_cg.guidance.guidance import Guidance, check_per_image, per_image
from diffusers_cg.guidance.guided_step import GuidedCall, GuidedStep


class CleanImageGuidance(Guidance, ABC):
    """s grad f(x_0(x_t)): base of guidances that look at the clean image; a subclass overrides [`log_likelihood`].

    Args:
        scale (`float` or one per image): s; 0 is off.
        through_unet (`bool`): Whether the gradient is taken at x_t, through the unet, or at x_0.
    """

    def __init__(self, scale: float | Sequence[float] | torch.Tensor = 1.0, through_unet: bool = True):
        self.scale = per_image("`scale`", scale)
        self.through_unet = through_unet

    def check(self, call: GuidedCall) -> None:
        check_per_image("`scale`", self.scale, call)

    @abstractmethod
    def log_likelihood(self, clean_images: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """f: log p(y | x_0) up to a constant, (B,), of images (B, C, H, W) that span about [-1, 1]."""

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        if self.through_unet:
            step = step.differentiable()
            variable, clean_images = step.sample, step.pred_original_sample
        else:
            variable = clean_images = step.variable(step.pred_original_sample)
        gradient = gradient_of(self.log_likelihood(clean_images, step), variable, step)
        return self.scale.to(gradient) * gradient


def gradient_of(values: torch.Tensor, variable: torch.Tensor, step: GuidedStep) -> torch.Tensor:
    """The gradient of one value per image, (B,), in what they were computed from, (B, C, H, W).

    Raises:
        InputError: if they do not follow from it.
    """
    if not values.requires_grad:
        raise InputError(
            "A guidance's judgement of the clean images has no gradient: compute it from them in PyTorch, with no detach(), "
            "no_grad() or NumPy in between."
        )
    step.cost["backward"] += 1
    return torch.autograd.grad(values.sum(), variable, create_graph=step.keeps_graph)[0]


def check_values(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """`values`, (B,), one per image.

    Raises:
        InputError: if they are anything else.
    """
    if not isinstance(values, torch.Tensor) or values.shape != images.shape[:1]:
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else values
        raise InputError(
            f"A guidance must judge each image by one number, a tensor of shape {(len(images),)}, got {got}."
        )
    return values


class EnergyGuidance(CleanImageGuidance):
    r"""-s grad E(x_0): samples are drawn from p(x) exp(-s E(x)), as far as x_0 is known.

    Args:
        energy (callable): E(x_0) or E(x_0, t): clean images (B, C, H, W) and the 0-d timestep -> energies (B,).
        scale, through_unet: as in [`CleanImageGuidance`].
    """

    def __init__(
        self,
        energy: Callable[..., torch.Tensor],
        scale: float | Sequence[float] | torch.Tensor = 1.0,
        through_unet: bool = True,
    ):
        super().__init__(scale, through_unet)
        if not callable(energy):
            raise InputError(f"`energy` must be a function of clean images, got {energy!r}.")
        self.energy = energy
        parameters = inspect.signature(energy.forward if isinstance(energy, nn.Module) else energy).parameters
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        required = [each for each in parameters.values() if each.kind in positional and each.default is each.empty]
        self.takes_timestep = len(required) > 1

    def log_likelihood(self, clean_images: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        energy = self.energy(clean_images, step.timestep) if self.takes_timestep else self.energy(clean_images)
        return -check_values(energy, clean_images)


class CleanClassifierGuidance(CleanImageGuidance):
    r"""Guidance by a classifier that never saw noise (*Elucidating the Design Space of Classifier-Guided Diffusion
    Generation*, Ma et al., 2024): f = tau_1 z_y - log sum_j exp(tau_2 z_j) of its logits z for the clean image.

    Args:
        classify (callable): Images (B, C, H, W) in about [-1, 1] -> logits (B, number of classes); see [`image_classifier`].
        class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): y, by the classifier's own numbers, one or
            one per image (B,); those of the call otherwise.
        scale, through_unet: as in [`CleanImageGuidance`]. The paper goes without the unet's gradient, which is the default.
        joint_temperature, marginal_temperature (`float`): tau_1 and tau_2; the paper's best are 1 and 0.5.
        sine (`float`): gamma of the paper's schedule: the mean is shifted by Sigma_t + gamma sin(pi i / N) max Sigma in
            place of Sigma_t, i the steps left of N; the paper's best is 0.3. The maximum is that of each image over the steps
            so far (the paper's code takes the first element of the first image for all).
    """

    def __init__(
        self,
        classify: Callable[[torch.Tensor], torch.Tensor],
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        scale: float | Sequence[float] | torch.Tensor = 1.0,
        through_unet: bool = False,
        joint_temperature: float = 1.0,
        marginal_temperature: float = 1.0,
        sine: float = 0.0,
    ):
        super().__init__(scale, through_unet)
        if not callable(classify):
            raise InputError(f"`classify` must be a function of images to logits, got {classify!r}.")
        self.classify = classify
        self.class_labels = label_tensor(class_labels)
        self.joint_temperature = joint_temperature
        self.marginal_temperature = marginal_temperature
        self.sine = sine

    def check(self, call: GuidedCall) -> None:
        super().check(call)
        check_labels(self.class_labels, call, getattr(self.classify, "num_classes", None))
        check_channels("classifier", self.classify, call)

    def log_likelihood(self, clean_images: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        logits = self.classify(clean_images)
        step.cost["classifier"] += 1
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(clean_images):
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise InputError(
                f"`classify` must give logits of shape ({len(clean_images)}, number of classes), got {got}: image_classifier "
                "makes such a function of a model of transformers."
            )
        logits, class_labels = logits.float(), labels_for(self.class_labels, step, len(logits))
        if not hasattr(self.classify, "num_classes") and int(class_labels.max()) >= logits.shape[1]:
            raise InputError(
                f"`class_labels` of a guidance must lie in 0..{logits.shape[1] - 1}, got {class_labels.tolist()}."
            )
        joint = self.joint_temperature * logits.gather(1, class_labels[:, None])[:, 0]
        return joint - (self.marginal_temperature * logits).logsumexp(dim=1)

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        gradient = super().__call__(step)
        if self.sine == 0:
            return gradient
        largest = step.variance.amax(dim=(1, 2, 3), keepdim=True)
        largest = step.memory[self] = torch.maximum(largest, step.memory.get(self, largest))
        added = self.sine * math.sin(math.pi * (step.num_steps - 1 - step.index) / step.num_steps) * largest
        return gradient * (1 + added / step.variance.clamp(min=1e-20))  # Sigma_t times it is the shift of the mean


def check_channels(name: str, look: Callable, call: GuidedCall) -> None:
    """Raises `InputError` where what looks at images states `num_channels`, and the call's are neither as many nor one."""
    channels = getattr(look, "num_channels", None)
    if channels is not None and call.shape[1] not in (1, channels):
        raise InputError(f"The {name} looks at images of {channels} channels, but the samples have {call.shape[1]}.")
