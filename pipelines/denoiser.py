"""The networks of a pipeline as a denoiser of images with any amount of noise, D(x, sigma)."""

from collections.abc import Sequence

import torch
from torch import nn

from diffusers_cg.diffusion import GaussianDiffusion, noise_levels, sigmas_at, timesteps_at
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import gradient_and_logits
from diffusers_cg.pipelines.pipeline_classifier_guided import ClassifierGuidedPipeline


class Denoiser(nn.Module):
    r"""D(x, sigma) = E[x_0 | x], the clean image in x = x_0 + sigma noise, as the unet sees it, with gradients where they are on.

    The unet is asked about x_t = x / sqrt(sigma^2 + 1) at the (fractional) timestep whose noise level is sigma, so D = x - sigma
    eps(x_t, t); a classifier adds sigma^2 s grad_x log p(y | x_t). Beyond the noise levels that the networks know, they see the
    nearest one; at sigma = 0 that leaves x as it is.

    With `image_range=(0, 1)` it is what `deepinv` takes as a denoiser, for its methods of restoration.

    Args:
        pipe ([`ClassifierGuidedPipeline`]): Whose networks and process; not one that upsamples.
        class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): Of all images, or one per image (B,), where a
            call names none.
        classifier_scale (`float`): s of the paper; 0 = off.
        image_range (`tuple[float, float]`): What clean images span; sigma is in its units, so that of [0, 1] is half as large.
        clip (`bool`): Whether clean images are clipped to it.

    Raises:
        InputError: if labels or the classifier are missing, or the range is none.
    """

    def __init__(
        self,
        pipe: ClassifierGuidedPipeline,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        classifier_scale: float = 0.0,
        image_range: tuple[float, float] = (-1.0, 1.0),
        clip: bool = False,
    ):
        super().__init__()
        if pipe.unet.config.get("low_res_channels"):
            raise InputError("This unet is an upsampling one, which no noise level and image alone tell what to draw.")
        if not image_range[0] < image_range[1]:
            raise InputError(f"`image_range` must be the lowest and the highest value, got {image_range!r}.")
        if classifier_scale and pipe.classifier is None:
            raise InputError("This pipeline has no classifier: pass `classifier_scale=0`, or load it with one.")
        self.pipe = pipe
        self.unet, self.classifier = pipe.unet, pipe.classifier
        self.diffusion = GaussianDiffusion.from_scheduler(pipe.convert_scheduler(pipe.scheduler, pipe.unet))
        self.class_labels = pipe.prepare_class_labels(class_labels, None)
        self.classifier_scale = classifier_scale
        self.image_range = image_range
        self.clip = clip

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor | float,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The clean images, (B, C, H, W).

        Args:
            x (`torch.Tensor`): x_0 + sigma noise, (B, C, H, W), floating point.
            sigma (`torch.Tensor` or `float`): Noise levels, one for all or one per image (B,).
            class_labels: As of the constructor, for this call.

        Raises:
            InputError: if a noise level is negative, or labels are missing or of another number.
        """
        labels = self.class_labels if class_labels is None else self.pipe.prepare_class_labels(class_labels, None)
        if labels is None and (self.pipe.needs_class or self.classifier_scale):
            raise InputError("`class_labels` are missing: the networks are to know one per image.")
        timestep = self.sigma_to_t(sigma).to(x.device)
        for name, values in (("class_labels", labels), ("sigma", timestep)):
            if values is not None and len(values) not in (1, len(x)):
                raise InputError(f"`{name}` must be one or one per image, got {len(values)} for a batch of {len(x)}.")
        timestep, labels = timestep.expand(len(x)), None if labels is None else labels.to(x.device).expand(len(x))

        low, high = self.image_range
        half = (high - low) / 2  # of the width, which is 1 for the networks
        sigma = torch.as_tensor(sigma, device=x.device).to(x.dtype).reshape(-1, 1, 1, 1) / half
        x = (x - low) / half - 1
        scale = (sigma.square() + 1).sqrt()  # x / scale keeps variance, as the networks know it

        original = x - sigma * self.pipe.predict(x / scale, timestep, labels, diffusion=self.diffusion).noise
        if self.classifier_scale:
            gradient, _ = gradient_and_logits(  # in x / scale
                self.classifier, x / scale, timestep, labels, create_graph=torch.is_grad_enabled() and x.requires_grad
            )
            original = original + sigma.square() * self.classifier_scale * gradient / scale
        if self.clip:
            original = original.clamp(-1, 1)
        return (original + 1) * half + low

    def score(self, x: torch.Tensor, sigma: torch.Tensor | float, class_labels=None) -> torch.Tensor:
        """grad log p(x) = (D(x, sigma) - x) / sigma^2, (B, C, H, W), for sigma above 0; arguments as of a call."""
        sigmas = torch.as_tensor(sigma, device=x.device).to(x.dtype).reshape(-1, 1, 1, 1)
        return (self(x, sigma, class_labels) - x) / sigmas.square()

    def sigma_to_t(self, sigma: torch.Tensor | float) -> torch.Tensor:
        """The timestep of each noise level, fractional, in [0, T - 1], float32: linear in the logarithm of sigma.

        Args:
            sigma (`torch.Tensor` or `float`): At least 0, in units of the image range; of any shape, which is made flat.
        """
        low, high = self.image_range
        sigmas = torch.as_tensor(sigma).cpu().double().reshape(-1) * 2 / (high - low)
        if not bool((sigmas >= 0).all()):
            raise InputError(f"`sigma` must be at least 0, got {sigma!r}.")
        return timesteps_at(sigmas, noise_levels(self.diffusion.alphas_cumprod)).float()

    def t_to_sigma(self, timestep: torch.Tensor | float) -> torch.Tensor:
        """The noise level of each timestep, float32, in units of the image range: the inverse of [`sigma_to_t`].

        Args:
            timestep (`torch.Tensor` or `float`): In [0, T - 1], whole or fractional; of any shape, which is made flat.
        """
        low, high = self.image_range
        timesteps = torch.as_tensor(timestep).cpu().double().reshape(-1)
        if not bool(((timesteps >= 0) & (timesteps <= self.diffusion.num_train_timesteps - 1)).all()):
            raise InputError(
                f"`timestep` must lie in [0, {self.diffusion.num_train_timesteps - 1}], got {timestep!r}."
            )
        return (sigmas_at(timesteps, noise_levels(self.diffusion.alphas_cumprod)) * (high - low) / 2).float()
