"""Classifier guidance: the gradient of log p(y | x_t) at x_t (section 4 of the paper)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from diffusers_cg.errors import InputError
from diffusers_cg.guidance.guidance import Guidance, GuidedStep


class ClassifierGuidance(Guidance):
    """s grad log p(y | x_t), by a classifier that was trained on noisy images.

    Args:
        classifier (`NoisyClassifierModel`): `(sample, timestep) -> .logits`, (B, num_classes). Not changed.
        class_labels (`int`, sequence of `int` or `torch.Tensor`): y, one for all images or one per image (B,).
        scale (`float` or one per image): s of the paper; 0 is off.
    """

    def __init__(
        self,
        classifier: nn.Module,
        class_labels: int | Sequence[int] | torch.Tensor,
        scale: float | Sequence[float] | torch.Tensor = 1.0,
    ):
        if class_labels is None:
            raise InputError("`class_labels` are missing: a classifier guides to one per image.")
        self.classifier = classifier
        self.class_labels = torch.as_tensor(class_labels).to(torch.int64).reshape(-1)
        self.scale = torch.as_tensor(scale, dtype=torch.float32).reshape(-1, 1, 1, 1)

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        device = step.sample.device
        class_labels = self.class_labels.to(device).expand(len(step.sample))
        gradient = classifier_gradient(self.classifier, step.sample, step.timestep, class_labels)
        return self.scale.to(device) * gradient


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
    with torch.inference_mode(False), torch.enable_grad(), _evaluating(classifier):
        # clones, since tensors made in inference mode cannot take part in a gradient
        sample, class_labels = sample.detach().float().clone().requires_grad_(True), class_labels.clone()
        timestep = timestep.clone() if isinstance(timestep, torch.Tensor) else timestep
        with keeping_weights(classifier):
            logits = classifier(sample.to(classifier.dtype), timestep).logits
        log_probs = logits.float().log_softmax(dim=-1)
        selected = log_probs.gather(1, class_labels[:, None]).sum()
        return torch.autograd.grad(selected, sample)[0]


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
def _evaluating(model: nn.Module) -> Iterator[None]:
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
