"""Classifier guidance: the gradient of log p(y | x_t) by a classifier of noisy images (section 4 of the paper)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from diffusers_cg.diffusion import check_trained_process
from diffusers_cg.errors import InputError
from diffusers_cg.guidance.guidance import Guidance, check_per_image, per_image
from diffusers_cg.guidance.guided_step import GuidedCall, GuidedStep, twice_differentiable


MIN_ENTROPY = 1e-6  # nats; of a surer classifier float32 gives rounding errors in place of a gradient


class ClassifierGuidance(Guidance):
    """s grad log p(y | x_t), by a classifier that was trained on noisy images.

    Args:
        classifier (`NoisyClassifierModel`): `(sample, timestep) -> .logits`, (B, num_classes). Not changed.
        class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): y, one for all images or one per image (B,);
            those of the call otherwise.
        scale (`float` or one per image): s of the paper; 0 is off.
        entropy_driven (`bool`): Whether each image's scale grows as the classifier gets sure of it, s ln C / H(p(y | x_t))
            with H the entropy over its C classes, in nats, of at least 1e-6 (*Entropy-driven Sampling and Training Scheme for
            Conditional Diffusion Generation*, Zheng et al., 2022; their code has no such floor).
        at_mean (`bool`): Whether the gradient is that of log p(y | x_{t-1}) at the mean of x_{t-1}, as section 4.1 derives
            Algorithm 1, in place of log p(y | x_t) at x_t, as the paper's code does.
    """

    def __init__(
        self,
        classifier: nn.Module,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        scale: float | Sequence[float] | torch.Tensor = 1.0,
        entropy_driven: bool = False,
        at_mean: bool = False,
    ):
        if "num_classes" not in getattr(classifier, "config", ()):
            raise InputError(
                f"A classifier of noisy images is needed, as NoisyClassifierModel, got {type(classifier).__name__}: one that never "
                "saw noise guides by CleanClassifierGuidance."
            )
        self.classifier = classifier
        self.class_labels = label_tensor(class_labels)
        self.scale = per_image("`scale`", scale)
        self.entropy_driven = entropy_driven
        self.at_mean = at_mean

    def check(self, call: GuidedCall) -> None:
        check_per_image("`scale`", self.scale, call)
        check_trained_process(call.scheduler, classifier=self.classifier)
        check_reads(self.classifier, call.shape[1:])
        check_labels(self.class_labels, call, self.classifier.config.num_classes)

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        sample, timestep, scale = step.sample, step.timestep, self.scale.to(step.sample)
        if self.at_mean:
            sample, timestep = step.mean, step.timestep_prev
        gradient, logits = gradient_and_logits(
            self.classifier, sample, timestep, labels_for(self.class_labels, step, len(sample)), step.keeps_graph
        )
        step.cost.update(classifier=1, backward=1)
        if self.entropy_driven:
            log_probs = logits.log_softmax(dim=-1)
            entropy = (-log_probs.exp() * log_probs).sum(dim=-1).clamp(min=MIN_ENTROPY)
            scale = scale * (math.log(logits.shape[-1]) / entropy).reshape(-1, 1, 1, 1)
        return scale * gradient


def check_reads(classifier: nn.Module, shape: Sequence[int]) -> None:
    """Raises `InputError` where the classifier cannot read samples of `shape` (C, H, W)."""
    config, (channels, *sides) = classifier.config, shape
    own = [config.sample_size] * 2 if isinstance(config.sample_size, int) else list(config.sample_size)
    if channels != config.in_channels:
        raise InputError(f"The classifier reads {config.in_channels} channels, but the samples have {channels}.")
    if sides == own:
        return
    if config.pool == "attention":
        raise InputError(
            f"The classifier pools by attention and reads images of {own} alone, not of {sides}: pass `classifier_scale=0`, or "
            "use a classifier with another `pool`."
        )
    divisor = 2 ** (len(config.channel_multipliers) - 1)
    if any(side % divisor for side in sides):
        raise InputError(f"The classifier reads images whose sides are multiples of {divisor}, not of {sides}.")


# -------------------------------------------------------------------------------------------------- labels of guidances


def label_tensor(class_labels: int | Sequence[int] | torch.Tensor | None) -> torch.Tensor | None:
    """Labels of a guidance's own, (1 or B,) int64; None for those of the call.

    Raises:
        InputError: if they are no whole numbers.
    """
    if class_labels is None:
        return None
    try:
        labels = torch.as_tensor(class_labels).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"`class_labels` must be whole numbers, got {class_labels!r}.") from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or len(labels) == 0:
        raise InputError(f"`class_labels` must be whole numbers, got {class_labels!r}.")
    return labels.to(torch.int64)


def check_labels(class_labels: torch.Tensor | None, call: GuidedCall, num_classes: int | None) -> None:
    """Raises `InputError` unless there are labels, one or as many as images, each of a class that there is."""
    labels = call.class_labels if class_labels is None else class_labels
    if labels is None:
        raise InputError("`class_labels` are missing: the guidance leads to one per image.")
    if len(labels) not in (1, call.shape[0]):
        raise InputError(
            f"`class_labels` of a guidance must be one, or one for each of the {call.shape[0]} images, got {len(labels)}."
        )
    if num_classes is not None and not bool(((labels >= 0) & (labels < num_classes)).all()):
        raise InputError(f"`class_labels` of a guidance must lie in 0..{num_classes - 1}, got {labels.tolist()}.")


def labels_for(class_labels: torch.Tensor | None, step: GuidedStep, num_images: int) -> torch.Tensor:
    """A guidance's own labels or else the call's, (num_images,): over and over where there are more images than labels."""
    labels = (step.class_labels if class_labels is None else class_labels).to(step.sample.device)
    return labels.repeat(num_images // len(labels))


# ----------------------------------------------------------------------------------------------------------- gradients


def classifier_gradient(
    classifier: Callable, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor
) -> torch.Tensor:
    """grad log p(y | x_t) with respect to x_t alone, (B, C, H, W) float32; the classifier is left as it was.

    Args:
        classifier (`NoisyClassifierModel`): Asked in evaluation mode; its parameters get no gradients.
        sample (`torch.Tensor`): x_t, (B, C, H, W), float32. Images do not influence each other's gradients.
        timestep (`torch.Tensor`, `float` or `int`): One for all or one per image (B,).
        class_labels (`torch.Tensor`): y, (B,) int64.
    """
    return gradient_and_logits(classifier, sample, timestep, class_labels)[0]


def gradient_and_logits(
    classifier: Callable,
    sample: torch.Tensor,
    timestep: torch.Tensor | float | int,
    class_labels: torch.Tensor,
    create_graph: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`classifier_gradient`], and the logits that it is of, (B, number of classes) float32.

    Both have a graph that leads back to `sample` if `create_graph`.
    """
    with torch.inference_mode(False), torch.enable_grad(), evaluating(classifier), twice_differentiable(create_graph):
        # clones, since tensors made in inference mode cannot take part in a gradient
        sample, class_labels = sample.float().clone(), class_labels.clone()
        if not create_graph:
            sample = sample.detach().requires_grad_(True)
        timestep = timestep.clone() if isinstance(timestep, torch.Tensor) else timestep
        with keeping_weights(classifier):
            logits = classifier(sample.to(classifier.dtype), timestep).logits.float()
        log_probs = logits.log_softmax(dim=-1).gather(1, class_labels[:, None])
        # of a sure classifier, gradients are of the order of 1 - p(y | x_t), and may be below what float16 knows: they are taken
        # in units of it, to the next power of two, which costs no bit
        unit = (-log_probs.detach().expm1()).clamp(min=2.0**-24).log2().ceil().exp2()
        gradient = torch.autograd.grad((log_probs / unit).sum(), sample, create_graph=create_graph)[0]
        return gradient * unit.reshape(-1, 1, 1, 1), logits if create_graph else logits.detach()


def keeping_weights(model: nn.Module) -> saved_tensors_hooks:
    """A context in which a graph through `model` keeps the weights that the forward pass read, for the backward pass.

    diffusers' memory savers (group offload, layerwise casting) put weights away after every forward pass: the tensors stay, and
    other data, or none, comes into them. What is detached here shares their data of now, at no cost.

    Raises:
        InputError: if the graph would not hold the weights, but look for them once more in what the savers left.
    """
    looks_twice = torch.is_grad_enabled() and getattr(model, "is_gradient_checkpointing", False)
    if looks_twice and any(hasattr(module, "_diffusers_hook") for module in model.modules()):
        raise InputError(
            f"A gradient through {type(model).__name__} cannot be had with gradient checkpointing and group offload or "
            "layerwise casting at once: call its disable_gradient_checkpointing()."
        )
    return saved_tensors_hooks(
        lambda tensor: tensor.detach() if isinstance(tensor, nn.Parameter) else tensor, lambda tensor: tensor
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with parameters that want no gradient (they cost memory and round differently), and back again."""
    training = [module for module in model.modules() if module.training]
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for module in training:
        module.training = False
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in wanting:
            parameter.requires_grad_(True)
