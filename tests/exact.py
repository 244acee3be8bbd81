"""Networks that are exact: the data are a mixture of two Gaussians, so scores, posteriors and guided distributions are known."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


SIDE, SPREAD = 2, 0.25
MEANS = torch.tensor([[-0.5, -0.2, 0.3, 0.4], [0.5, 0.3, -0.1, 0.4]]).reshape(2, 1, SIDE, SIDE)
"""Class y is N(MEANS[y], SPREAD^2 I), (1, 2, 2) pixels; both are as likely."""


@dataclass
class Output:
    """What unets and classifiers return."""

    sample: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class ExactNetwork(ModelMixin, ConfigMixin):
    """Knows the mixture at every noise level of a schedule given by its abar, (T,)."""

    @register_to_config
    def __init__(self, alphas_cumprod: list[float], in_channels=1, out_channels=1, sample_size=SIDE,
                 num_class_embeds=None, num_classes=2, channel_multipliers=(1,), pool="adaptive"):  # fmt: skip
        super().__init__()
        sigmas = (1 / torch.tensor(alphas_cumprod, dtype=torch.float64) - 1).sqrt()
        self.register_buffer("log_sigmas", sigmas.log())
        self.weight = torch.nn.Parameter(torch.zeros(1))  # so that the network has a dtype and a device
        self.down_blocks = torch.nn.ModuleList([torch.nn.Identity()])  # one level: images of any size

    def at(self, timestep, sample):
        """abar and the variance of x_t given its class, at whole or fractional timesteps, broadcasting over the sample."""
        t = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1, 1, 1, 1)
        log_sigma = torch.lerp(self.log_sigmas[t.floor().long()], self.log_sigmas[t.ceil().long()], t.frac())
        abar = 1 / (1 + (2 * log_sigma).exp())
        return abar.float(), (abar * SPREAD**2 + 1 - abar).float()

    def log_likelihoods(self, sample, timestep):
        """log p(x_t | y) up to a constant, (B, 2)."""
        abar, variance = self.at(timestep, sample)
        distances = [(sample - abar.sqrt() * mean).square() / (-2 * variance) for mean in MEANS]
        return torch.stack([each.sum(dim=(1, 2, 3)) for each in distances], dim=1)


class ExactUNet(ExactNetwork):
    """eps(x_t) = -sqrt(1 - abar_t) grad log p(x_t), or of p(x_t | y) where it is told the class."""

    def forward(self, sample, timestep, class_labels=None):
        abar, variance = self.at(timestep, sample)
        weights = self.log_likelihoods(sample, timestep).softmax(dim=1)
        if class_labels is not None:
            weights = torch.nn.functional.one_hot(class_labels, 2).float()
        mean = sum(weights[:, y, None, None, None] * MEANS[y] for y in (0, 1))
        score = (abar.sqrt() * mean - sample) / variance
        return Output(sample=-(1 - abar).sqrt() * score)


class ExactClassifier(ExactNetwork):
    """log p(y | x_t)."""

    def forward(self, sample, timestep):
        return Output(logits=self.log_likelihoods(sample, timestep))


def distance_to_class(images, label):
    """The largest distance, over pixels, of the distribution of images (N, 1, 2, 2) from p(x | y) (Kolmogorov-Smirnov)."""
    standard = ((images - MEANS[label]) / SPREAD).flatten(1).double().sort(dim=0).values
    normal = torch.special.ndtr(standard)
    ranks = torch.arange(1, len(images) + 1, dtype=torch.float64)[:, None] / len(images)
    return (ranks - normal).abs().max().item()
