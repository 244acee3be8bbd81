"""Training losses and the variational bound, in bits per dimension (*Improved DDPM*, sections 3.1 and 3.3)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from diffusers_cg.diffusion.gaussian_diffusion import Gaussian, GaussianDiffusion, split_model_output
from diffusers_cg.errors import InputError


LossType = Literal["hybrid", "rescaled_hybrid", "kl", "rescaled_kl", "simple"]
"""What to minimize, see [`training_losses`]; the reference's MSE, RESCALED_MSE, KL, RESCALED_KL, and MSE again."""


@dataclass
class TrainingLosses:
    """Losses per image, (B,), float32.

    Args:
        loss (`torch.Tensor`): What to minimize.
        mse (`torch.Tensor`): L_simple, the mean squared error of what the network predicts (of the noise, as a rule).
        vb (`torch.Tensor`, *optional*): The variational bound's term at the image's timestep, in bits per dimension;
            None for L_simple.
    """

    loss: torch.Tensor
    mse: torch.Tensor
    vb: torch.Tensor | None


def normal_kl(p: Gaussian, q: Gaussian) -> torch.Tensor:
    """KL(p || q) of diagonal Gaussians elementwise, in nats."""
    return 0.5 * (
        q.log_variance
        - p.log_variance
        - 1.0
        + torch.exp(p.log_variance - q.log_variance)
        + (p.mean - q.mean) ** 2 * torch.exp(-q.log_variance)
    )


def discretized_gaussian_log_likelihood(images: torch.Tensor, p: Gaussian) -> torch.Tensor:
    """Log-likelihood, in nats, of 8-bit images in [-1, 1] elementwise: the mass of each value's bin (DDPM, eq. 13).

    The outermost bins reach to infinity.
    """
    inverse_std = torch.exp(-0.5 * p.log_variance)
    half_bin = 1.0 / 255.0
    cdf_above = _normal_cdf(inverse_std * (images - p.mean + half_bin))
    cdf_below = _normal_cdf(inverse_std * (images - p.mean - half_bin))
    tiny = 1e-12
    return torch.where(
        images < -0.999,
        cdf_above.clamp(min=tiny).log(),
        torch.where(
            images > 0.999,
            (1.0 - cdf_below).clamp(min=tiny).log(),
            (cdf_above - cdf_below).clamp(min=tiny).log(),
        ),
    )


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    # the tanh approximation that published bounds were computed with
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _bits_per_dimension(nats: torch.Tensor) -> torch.Tensor:
    return nats.flatten(1).mean(dim=1) / math.log(2.0)


def variational_bound_term(
    diffusion: GaussianDiffusion,
    model_output: torch.Tensor,
    clean_images: torch.Tensor,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    clip_range: float | None = None,
) -> torch.Tensor:
    """One term of the variational bound per image, (B,), in bits per dimension.

    KL(q(x_{t-1}|x_t,x_0) || p(x_{t-1}|x_t)), and the negative log-likelihood of the clean image at the smallest
    timestep of `diffusion`. Shapes are those of [`training_losses`].
    """
    posterior = diffusion.q_posterior(clean_images, sample, timestep)
    predicted = diffusion.p_mean_variance(model_output, sample, timestep, clip_range=clip_range)
    kl = _bits_per_dimension(normal_kl(posterior, predicted))
    decoder = -_bits_per_dimension(discretized_gaussian_log_likelihood(clean_images, predicted))
    is_last = torch.as_tensor(timestep, device=kl.device) == diffusion.timesteps[-1].item()
    return torch.where(is_last, decoder, kl)


def prior_term(diffusion: GaussianDiffusion, clean_images: torch.Tensor) -> torch.Tensor:
    """KL(q(x_T|x_0) || N(0, 1)) per image, (B,), in bits per dimension: what no model can change."""
    last = diffusion.q_mean_variance(clean_images, diffusion.timesteps[0])
    zero = torch.zeros_like(clean_images)
    return _bits_per_dimension(normal_kl(last, Gaussian(zero, zero + 1, zero)))


def resolve_loss_type(loss_type: LossType | None, learns_variance: bool) -> LossType:
    """The loss asked for; by default `"rescaled_hybrid"` for a learned variance and `"simple"` for a fixed one.

    Raises:
        ValueError: if there is no such loss, or it does not go with the variance.
    """
    if loss_type is None:
        return "rescaled_hybrid" if learns_variance else "simple"
    if loss_type not in get_args(LossType):
        raise InputError(f"The loss must be one of {', '.join(get_args(LossType))}, got {loss_type!r}.")
    if learns_variance and loss_type == "simple":
        raise InputError("The loss 'simple' does not train a learned variance: fix the variance or take 'hybrid'.")
    if not learns_variance and loss_type in ("hybrid", "rescaled_hybrid"):
        raise InputError(f"The loss {loss_type!r} trains a learned variance, and it is fixed here: take 'simple'.")
    return loss_type


def training_losses(
    diffusion: GaussianDiffusion,
    model_output: torch.Tensor,
    clean_images: torch.Tensor,
    noise: torch.Tensor,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    lambda_vlb: float = 0.001,
    loss_type: LossType | None = None,
) -> TrainingLosses:
    r"""The loss of every image, from what the network says of it at one drawn timestep (*Improved DDPM*).

    With L_t the bound's term at that timestep, in bits per dimension, and T timesteps, so that T L_t estimates L_vlb:

    | `loss_type` | loss |
    | --- | --- |
    | `"simple"` | L_simple, for a fixed variance |
    | `"hybrid"` | L_simple + L_t |
    | `"rescaled_hybrid"` | L_simple + lambda T L_t (eq. 16), at 1,000 timesteps the same |
    | `"kl"`, `"rescaled_kl"` | L_t, T L_t |

    L_simple is the mean squared error of what the network predicts by the process's `prediction_type`: of the noise, the clean
    image or v. In a hybrid loss the gradient of L_t reaches the variance alone.

    Args:
        diffusion (`GaussianDiffusion`): The process that made `sample`.
        model_output (`torch.Tensor`): (B, C, H, W), or (B, 2C, H, W) with a learned variance; any float dtype.
        clean_images (`torch.Tensor`): x_0 in [-1, 1], (B, C, H, W), float32.
        noise (`torch.Tensor`): The noise in `sample`, (B, C, H, W), float32.
        sample (`torch.Tensor`): x_t = `diffusion.q_sample(clean_images, noise, timestep)`.
        timestep (`torch.Tensor`): (B,) int64.
        lambda_vlb (`float`): Weight of L_vlb in `"rescaled_hybrid"`.
        loss_type (`str`, *optional*): By default `"rescaled_hybrid"`, or `"simple"` if the output has no variance.

    Raises:
        ValueError: if the loss does not go with the variance.
    """
    model_output = model_output.float()
    predicted, predicted_variance = split_model_output(model_output, sample)
    loss_type = resolve_loss_type(loss_type, predicted_variance is not None)
    mse = (diffusion.target(clean_images, noise, timestep) - predicted).square().flatten(1).mean(dim=1)
    if loss_type == "simple":
        return TrainingLosses(loss=mse, mse=mse, vb=None)
    if loss_type in ("hybrid", "rescaled_hybrid"):
        model_output = torch.cat([predicted.detach(), predicted_variance], dim=1)
    vb = variational_bound_term(diffusion, model_output, clean_images, sample, timestep)
    num_timesteps = len(diffusion.timesteps)
    if loss_type == "hybrid":
        loss = mse + vb
    elif loss_type == "rescaled_hybrid":
        loss = mse + lambda_vlb * num_timesteps * vb
    else:
        loss = vb if loss_type == "kl" else num_timesteps * vb
    return TrainingLosses(loss=loss, mse=mse, vb=vb)
