"""Networks that are exact: the data are a mixture of two Gaussians, so scores, posteriors and guided distributions are known."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from tiny import seeded

from diffusers_cg import ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline


SIDE, SPREAD = 2, 0.25
MEANS = torch.tensor([[-0.5, -0.2, 0.3, 0.4], [0.5, 0.3, -0.1, 0.4]]).reshape(2, 1, SIDE, SIDE)
"""Class y is N(MEANS[y], SPREAD^2 I), (1, 2, 2) pixels; both are as likely."""
PROCESS = DDPMScheduler(
    beta_start=0.0001,  # said, or some schedulers of its config take their own
    beta_end=0.02,
    clip_sample=False,
    timestep_spacing="linspace",
    variance_type="fixed_large",
)
ABARS = PROCESS.alphas_cumprod
LOG_SIGMAS = (1 / ABARS.double() - 1).sqrt().log()


@dataclass
class Output:
    """What unets and classifiers return."""

    sample: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def levels(timestep) -> tuple[torch.Tensor, torch.Tensor]:
    """abar and the variance of x_t given its class, (B or 1, 1, 1, 1), at whole or fractional timesteps."""
    t = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1, 1, 1, 1)
    log_sigma = torch.lerp(LOG_SIGMAS[t.floor().long()], LOG_SIGMAS[t.ceil().long()], t.frac())
    abar = 1 / (1 + (2 * log_sigma).exp())
    return abar.float(), (abar * SPREAD**2 + 1 - abar).float()


def log_likelihoods(sample, timestep) -> torch.Tensor:
    """log p(x_t | y) up to what they have in common, (B, 2): linear in x_t."""
    abar, variance = levels(timestep)
    pixels = (abar.sqrt() * sample / variance).flatten(1)
    means = MEANS.flatten(1)  # (2, 4)
    return pixels @ means.T - (abar / variance).reshape(-1, 1) * means.square().sum(dim=1) / 2


class ExactNetwork(ModelMixin, ConfigMixin):
    """Knows the mixture at every noise level."""

    @register_to_config
    def __init__(
        self,
        in_channels=1,
        out_channels=1,
        sample_size=SIDE,
        num_class_embeds=None,
        label_dropout=0.0,
        num_classes=2,
    ):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # so that the network has a dtype and a device
        self.down_blocks = torch.nn.ModuleList([torch.nn.Identity()])  # one level: images of any size


class ExactUNet(ExactNetwork):
    """eps(x_t) = -sqrt(1 - abar_t) grad log p(x_t), or of p(x_t | y) where it is told the class."""

    def forward(self, sample, timestep, class_labels=None):
        abar, variance = levels(timestep)
        weights = log_likelihoods(sample, timestep).softmax(dim=1)
        if class_labels is not None:
            weights = torch.nn.functional.one_hot(class_labels, 2).float()
        mean = (weights @ MEANS.flatten(1)).reshape(-1, 1, SIDE, SIDE)
        score = (abar.sqrt() * mean - sample) / variance
        return Output(sample=-(1 - abar).sqrt() * score)


class ExactClassifier(ExactNetwork):
    """log p(y | x_t)."""

    def forward(self, sample, timestep):
        return Output(logits=log_likelihoods(sample, timestep))


def draw_exactly(guidance, scheduler=PROCESS, num_inference_steps=50, number=1500, label=1, unet=None, **options):
    """(images (N, 1, 2, 2), evaluations): guided samples of the mixture, asked for one class."""
    kind = ClassifierGuidedDDPMPipeline if type(scheduler) is DDPMScheduler else ClassifierGuidedDDIMPipeline
    pipe = kind(unet or ExactUNet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    labels = torch.full((number,), label)
    options = {"generator": seeded(), "output_type": "latent", **options}
    drawn = pipe(labels, num_inference_steps=num_inference_steps, guidance=guidance, **options)
    return drawn.images, drawn.evaluations


def distance_to(images, means, spreads) -> float:
    """The largest distance, over pixels, of the distribution of images (N, 1, 2, 2) from N(means, spreads^2).

    Kolmogorov and Smirnov's: 1,500 images of the distribution itself stay below 0.05.
    """
    standard = ((images - means) / spreads).flatten(1).double().sort(dim=0).values
    ranks = torch.arange(1, len(images) + 1, dtype=torch.float64)[:, None] / len(images)
    return (ranks - torch.special.ndtr(standard)).abs().max().item()


def distance_to_class(images, label=1) -> float:
    """From p(x | y)."""
    return distance_to(images, MEANS[label], SPREAD)
