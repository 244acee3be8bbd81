"""Conditioning augmentation: low-resolution images made worse, so that an upsampler forgives a generator's faults.

*Cascaded Diffusion Models* (Ho et al., 2021) trains upsamplers so; *Diffusion Models Beat GANs* does without.
"""

import math
from numbers import Real

import torch

from diffusers_cg.errors import InputError


Level = float | torch.Tensor
"""One number for all images, or one per image (B,); 0 changes nothing."""


def augment_low_res(
    low_res: torch.Tensor, noise_level: Level, blur_level: Level, noise: torch.Tensor | None
) -> torch.Tensor:
    """Blurs low-resolution images, then adds noise to them.

    Args:
        low_res (`torch.Tensor`): (B, C, h, w) in [-1, 1], floating point.
        noise_level (`float` or `torch.Tensor`): Standard deviation of the noise, where images span [-1, 1].
        blur_level (`float` or `torch.Tensor`): Standard deviation of the blur in pixels of `low_res`.
        noise (`torch.Tensor`, *optional*): Standard normal, of the shape of `low_res`; None for no noise.

    Returns:
        `torch.Tensor`: (B, C, h, w); with noise, values may leave [-1, 1].
    """
    blurred = gaussian_blur(low_res, blur_level)
    return blurred if noise is None else blurred + _per_image(noise_level, low_res) * noise


def check_augmentation_level(name: str, level: float) -> None:
    """Raises `InputError` unless the level of an augmentation is a finite number of at least 0."""
    if isinstance(level, bool) or not isinstance(level, Real) or not (level >= 0 and math.isfinite(level)):
        raise InputError(f"`{name}` must be a finite number of at least 0 (off), got {level!r}.")


def gaussian_blur(images: torch.Tensor, level: Level) -> torch.Tensor:
    """Gaussian blur of images (B, C, h, w), floating point, each by itself.

    Args:
        images (`torch.Tensor`): At a border, the weights of the pixels that are there sum to one.
        level (`float` or `torch.Tensor`): Standard deviation of the filter in pixels.
    """
    rows, columns = (_blur_matrix(side, _per_image(level, images)) for side in images.shape[2:])
    return rows @ images @ columns.mT


def _blur_matrix(side: int, level: torch.Tensor) -> torch.Tensor:
    """Weights (B, 1, side, side) of every pixel (last) in every blurred pixel of a line; `level` is (B, 1, 1, 1)."""
    position = torch.arange(side, device=level.device, dtype=level.dtype)
    distance = position[:, None] - position[None, :]
    # at so small a level, every weight beside the pixel's own is zero to the last bit
    weights = torch.exp(-0.5 * (distance / level.clamp(min=1e-3)).square())
    return weights / weights.sum(dim=-1, keepdim=True)


def _per_image(level: Level, images: torch.Tensor) -> torch.Tensor:
    """`level` as (B, 1, 1, 1), or (1, 1, 1, 1) if it is one number."""
    return torch.as_tensor(level, dtype=images.dtype, device=images.device).reshape(-1, 1, 1, 1)
