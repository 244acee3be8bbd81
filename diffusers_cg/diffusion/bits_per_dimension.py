"""The whole variational bound on the likelihood of images (*Improved DDPM*, section 3.3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor

from diffusers_cg.diffusion.gaussian_diffusion import GaussianDiffusion
from diffusers_cg.diffusion.losses import prior_term, variational_bound_term


@dataclass
class BitsPerDimension:
    """The bound per image and what it is made of, float32; columns are the process's timesteps, decreasing.

    Args:
        vb (`torch.Tensor`): Terms in bits per dimension, (B, T).
        mse (`torch.Tensor`): Mean squared error of the noise that the predicted clean image implies, (B, T).
        xstart_mse (`torch.Tensor`): Mean squared error of the predicted clean image, (B, T).
        prior (`torch.Tensor`): KL(q(x_T|x_0) || N(0, 1)) in bits per dimension, (B,).
    """

    vb: torch.Tensor
    mse: torch.Tensor
    xstart_mse: torch.Tensor
    prior: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Upper bound on the negative log-likelihood in bits per dimension, (B,)."""
        return self.vb.sum(dim=1) + self.prior


@torch.no_grad()
def bits_per_dimension(
    diffusion: GaussianDiffusion,
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    clean_images: torch.Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
    clip_range: float | None = 1.0,
) -> BitsPerDimension:
    """Estimates the bound with one draw of noise for every image and timestep.

    Args:
        diffusion (`GaussianDiffusion`): The process, over all timesteps or a subset of them.
        model (callable): What the network says of x_t (B, C, H, W) at timesteps (B,) int64: see
            [`GaussianDiffusion.predict`].
        clean_images (`torch.Tensor`): 8-bit images in [-1, 1], (B, C, H, W), float32.
        generator (`torch.Generator` or one per image, *optional*): Source of the noise, timestep after timestep.
        clip_range (`float`, *optional*): Bound on the absolute value of predicted clean images; None for no clipping.

    Raises:
        ValueError: if the variance is learned and the output has no second half.
    """
    terms, noise_errors, original_errors = [], [], []
    for t in diffusion.timesteps.to(clean_images.device):
        timestep = t.expand(len(clean_images))
        noise = randn_tensor(clean_images.shape, generator=generator, device=clean_images.device)
        sample = diffusion.q_sample(clean_images, noise, timestep)
        model_output = model(sample, timestep).float()
        original = diffusion.predict(model_output, sample, timestep, clip_range).pred_original_sample
        predicted_noise = diffusion.predict_noise(original, sample, timestep)
        terms.append(variational_bound_term(diffusion, model_output, clean_images, sample, timestep, clip_range))
        noise_errors.append((predicted_noise - noise).square().flatten(1).mean(dim=1))
        original_errors.append((original - clean_images).square().flatten(1).mean(dim=1))
    columns = (torch.stack(part, dim=1) for part in (terms, noise_errors, original_errors))
    return BitsPerDimension(*columns, prior=prior_term(diffusion, clean_images))
