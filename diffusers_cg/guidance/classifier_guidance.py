"""Classifier guidance: the gradient of log p(y | x_t) at x_t (section 4 of the paper)."""

from collections.abc import Callable

import torch

from diffusers_cg.models import NoisyClassifierModel


Guidance = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(sample x_t (B, C, H, W), timestep, class_labels (B,)) -> gradient of log p(y | x_t), (B, C, H, W) float32, unscaled."""


class ClassifierGuidance:
    """Guidance by a classifier that was trained on noisy images.

    Args:
        classifier (`NoisyClassifierModel`): Frozen here: put in evaluation mode, its parameters need no gradients.
    """

    def __init__(self, classifier: NoisyClassifierModel):
        self.classifier = classifier.eval().requires_grad_(False)

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor | int, class_labels: torch.Tensor) -> torch.Tensor:
        """Gradient of log p(y | x_t) with respect to x_t.

        Args:
            sample (`torch.Tensor`): x_t, (B, C, H, W), float32.
            timestep (`torch.Tensor` or `int`): One for all or one per image (B,).
            class_labels (`torch.Tensor`): y, (B,) int64.

        Returns:
            `torch.Tensor`: (B, C, H, W), float32. Images do not influence each other's gradients.
        """
        with torch.inference_mode(False), torch.enable_grad():
            # clones, since tensors made in inference mode cannot take part in a gradient
            sample, class_labels = sample.detach().float().clone().requires_grad_(True), class_labels.clone()
            timestep = timestep.clone() if isinstance(timestep, torch.Tensor) else timestep
            logits = self.classifier(sample.to(self.classifier.dtype), timestep).logits
            log_probs = logits.float().log_softmax(dim=-1)
            selected = log_probs.gather(1, class_labels[:, None]).sum()
            return torch.autograd.grad(selected, sample)[0]
