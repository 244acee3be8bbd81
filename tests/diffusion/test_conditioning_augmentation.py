"""Noise and blur on low-resolution images."""

import pytest
import tiny
import torch

from diffusers_cg.diffusion import augment_low_res, gaussian_blur


def test_level_0_changes_no_bit():
    image = tiny.images()
    assert torch.equal(augment_low_res(image, 0.0, 0.0, None), image)
    assert torch.equal(augment_low_res(image, 0.0, 0.0, torch.ones_like(image)), image)


def test_noise_is_added_to_the_blurred_image():
    image, noise = tiny.images(), tiny.images(seed=1)
    assert torch.equal(augment_low_res(image, 0.5, 1.0, noise), gaussian_blur(image, 1.0) + 0.5 * noise)


def test_noise_has_the_level_of_each_image():
    noise = tiny.images(3, size=64)
    added = augment_low_res(torch.zeros_like(noise), torch.tensor([0.0, 0.5, 2.0]), 0.0, noise)
    assert added.flatten(1).std(dim=1).tolist() == pytest.approx([0.0, 0.5, 2.0], rel=0.05)


def test_blur_is_a_gaussian_of_the_level_of_each_image():
    dots = torch.zeros(3, 1, 33, 33)
    dots[:, :, 16, 16] = 1
    blurred = gaussian_blur(dots, torch.tensor([0.0, 1.0, 2.5]))
    assert torch.equal(blurred[0], dots[0])
    position = torch.arange(33.0) - 16
    for image, level in zip(blurred[1:, 0], (1.0, 2.5)):
        assert image.sum() == pytest.approx(1, abs=1e-3)
        variance = (image.sum(dim=0) * position.square()).sum()
        assert variance == pytest.approx(level**2, rel=0.01)
        assert torch.allclose(image, image.T, atol=1e-7)
    assert torch.equal(gaussian_blur(dots, 2.5)[2], blurred[2])


def test_blur_keeps_a_constant_image_up_to_its_border():
    assert torch.allclose(gaussian_blur(torch.full((1, 3, 4, 6), 0.7), 1.5), torch.tensor(0.7))
