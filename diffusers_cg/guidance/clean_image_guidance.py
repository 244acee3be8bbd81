r"""Guidance by what a function says of the clean image that the network sees in the noisy one.

With f(x_0) a log-likelihood of the condition, up to a constant, the gradient of log p(y | x_t) is taken as that of
f(x_0(x_t)): with respect to x_t through the unet, or with respect to x_0 as if the unet were the identity, which costs no
backward pass through it.
"""

import copy
import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from diffusers_cg.errors import InputError
from diffusers_cg.guidance.classifier_guidance import check_labels, labels_of
from diffusers_cg.guidance.guidance import Guidance, check_per_image, per_image
from diffusers_cg.guidance.guided_step import GuidedStep


class CleanImageGuidance(Guidance):
    """s grad f(x_0(x_t)): base of guidances that look at the clean image; a subclass overrides [`log_likelihood`].

    Args:
        scale (`float` or one per image): s; 0 is off.
        through_unet (`bool`): Whether the gradient is taken at x_t, through the unet, or at x_0.
    """

    def __init__(self, scale: float | Sequence[float] | torch.Tensor = 1.0, through_unet: bool = True):
        self.scale = per_image(scale)
        self.through_unet = through_unet

    def check(self, shape: torch.Size, class_labels: torch.Tensor | None) -> None:
        check_per_image("`scale`", self.scale, shape)

    def log_likelihood(self, clean_images: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """f: log p(y | x_0) up to a constant, (B,), of images (B, C, H, W) that span about [-1, 1]."""
        raise NotImplementedError

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        if self.through_unet:
            step = step.differentiable()
            variable, clean_images = step.sample, step.pred_original_sample
        else:
            variable = clean_images = step.pred_original_sample.detach().requires_grad_(True)
        gradient = torch.autograd.grad(self.log_likelihood(clean_images, step).sum(), variable)[0]
        step.cost["backward"] += 1
        return self.scale.to(gradient) * gradient


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
        self.energy = energy
        required = [
            each for each in inspect.signature(energy).parameters.values() if each.default is inspect.Parameter.empty
        ]
        self.takes_timestep = len(required) > 1

    def log_likelihood(self, clean_images: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        energy = self.energy(clean_images, step.timestep) if self.takes_timestep else self.energy(clean_images)
        if not isinstance(energy, torch.Tensor) or energy.shape != clean_images.shape[:1]:
            got = tuple(energy.shape) if isinstance(energy, torch.Tensor) else energy
            raise InputError(f"An energy must be one number per image, shape {(len(clean_images),)}, got {got}.")
        return -energy


class CleanClassifierGuidance(CleanImageGuidance):
    r"""Guidance by a classifier that never saw noise (*Elucidating the Design Space of Classifier-Guided Diffusion
    Generation*, Ma et al., 2024): f = tau_1 z_y - log sum_j exp(tau_2 z_j) of its logits z for the clean image.

    Args:
        classify (callable): Images (B, C, H, W) in about [-1, 1] -> logits (B, number of classes); see [`image_classifier`].
        class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): y, by the classifier's own numbers, one or
            one per image (B,); those of the call otherwise.
        scale, through_unet: as in [`CleanImageGuidance`]. The paper goes without the unet's gradient, which is the default.
        joint_temperature, marginal_temperature (`float`): tau_1 and tau_2; the paper's best are 1 and 0.5.
        sine (`float`): gamma of the paper's schedule: the mean is shifted by Sigma_t + gamma sin(pi t / T) max Sigma in
            place of Sigma_t; the paper's best is 0.3. The maximum is over the steps so far, of each image.
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
        self.classify = classify
        self.class_labels = None if class_labels is None else torch.as_tensor(class_labels).to(torch.int64).reshape(-1)
        self.joint_temperature = joint_temperature
        self.marginal_temperature = marginal_temperature
        self.sine = sine

    def check(self, shape: torch.Size, class_labels: torch.Tensor | None) -> None:
        super().check(shape, class_labels)
        check_labels(self.class_labels, class_labels, shape, getattr(self.classify, "num_classes", None))

    def log_likelihood(self, clean_images: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        logits = self.classify(clean_images).float()
        step.cost["classifier"] += 1
        class_labels = labels_of(self.class_labels, step, len(logits))
        joint = self.joint_temperature * logits.gather(1, class_labels[:, None])[:, 0]
        return joint - (self.marginal_temperature * logits).logsumexp(dim=1)

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        gradient = super().__call__(step)
        if self.sine == 0:
            return gradient
        largest = step.variance.amax(dim=(1, 2, 3), keepdim=True)
        largest = step.memory[self] = torch.maximum(largest, step.memory.get(self, largest))
        added = self.sine * math.sin(math.pi * step.progress) * largest
        return gradient * (1 + added / step.variance.clamp(min=1e-20))  # Sigma_t times it is the shift of the mean


def image_classifier(
    model: nn.Module, processor, softplus_beta: float | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A `transformers` image classifier as a function of images (B, C, H, W) in [-1, 1] to logits, differentiable.

    Images are resized and normalised as its processor does; of one channel, it is repeated.

    Args:
        model (`PreTrainedModel`): As of `AutoModelForImageClassification`; not changed.
        processor (`BaseImageProcessor`): Its `size` (or `crop_size`), `image_mean` and `image_std` are gone by.
        softplus_beta (`float`, *optional*): Takes Softplus of this sharpness for every ReLU, in a copy of the model: a
            smoother gradient (Ma et al., 2024, take 3).
    """
    if softplus_beta is not None:
        model = with_softplus(model, softplus_beta)
    model = model.eval().requires_grad_(False)
    prepare = processor_of_tensors(processor, model.config.num_channels)

    def classify(images: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=prepare(images).to(model.dtype)).logits

    classify.num_classes = model.config.num_labels
    return classify


def processor_of_tensors(processor, channels: int = 3) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a `transformers` image processor does, as a differentiable function of images (B, C, H, W) in [-1, 1]."""
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else processor.size
    side = size.get("shortest_edge")
    height, width = (side, side) if side else (size["height"], size["width"])
    normalizes = getattr(processor, "do_normalize", True)
    mean = torch.tensor(processor.image_mean if normalizes else [0.0]).reshape(1, -1, 1, 1)
    std = torch.tensor(processor.image_std if normalizes else [1.0]).reshape(1, -1, 1, 1)

    def prepare(images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        if getattr(processor, "do_resize", True) and images.shape[2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bicubic", align_corners=False, antialias=True)
        return ((images + 1) / 2 - mean.to(images)) / std.to(images)

    return prepare


def with_softplus(model: nn.Module, beta: float) -> nn.Module:
    """A copy of the model whose every ReLU is a Softplus of this sharpness."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus(beta=beta))
    return model
