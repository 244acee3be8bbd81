"""The random numbers of a training, each image's own: they follow from the seed and the draw, its number in the training."""

from collections.abc import Iterator, Sequence

import torch

from diffusers_cg.diffusion import TimestepSampler, augment_low_res, seeded_generator


LOW_RES_STREAM = 1  # of a draw's random numbers, beside the one of its timestep and noise


def draw_generators(draws: Sequence[int] | torch.Tensor, seed: int, *stream: int) -> Iterator[torch.Generator]:
    """A generator per draw, from its own seed; another `stream` of it is independent."""
    for draw in draws.tolist() if isinstance(draws, torch.Tensor) else draws:
        yield seeded_generator(seed, draw, *stream)


def draw_timesteps_and_noise(
    draws: Sequence[int] | torch.Tensor, like: torch.Tensor, timestep_sampler: TimestepSampler, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Timesteps (B,) int64, their losses' weights (B,), and standard normal noise of the shape of `like`.

    Each image's are from its draw's own seed.
    """
    generators = list(draw_generators(draws, seed))
    timesteps, weights = timestep_sampler.sample(len(generators), generators)
    noise = torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators])
    return timesteps.to(like.device), weights.to(like.device), noise.to(like.device)


def draw_low_res_augmentation(
    draws: Sequence[int] | torch.Tensor, low_res: torch.Tensor, max_noise: float, max_blur: float, seed: int
) -> torch.Tensor:
    """Low-resolution images (B, C, h, w), made worse by [`augment_low_res`] at levels from each draw's own seed.

    Levels are uniform up to `max_noise` and `max_blur`, one of each per image; with both at 0 nothing changes.
    """
    if max_noise == max_blur == 0:
        return low_res
    levels, noise = [], []
    for generator in draw_generators(draws, seed, LOW_RES_STREAM):
        levels.append(torch.rand(2, generator=generator))
        noise.append(torch.randn(low_res.shape[1:], generator=generator))
    noise_level, blur_level = torch.stack(levels, dim=1).to(low_res.device)
    return augment_low_res(
        low_res, max_noise * noise_level, max_blur * blur_level, torch.stack(noise).to(low_res.device)
    )
