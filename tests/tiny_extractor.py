"""Extractors of features as a user could write them, small enough for a test."""

import numpy as np

from diffusers_cg.evaluation import Features


class Thumbnails:
    """Means of the 4x4 quarters of each side; `calls` counts the images that were seen."""

    name = "thumbnails"
    hash = "1"
    calls = 0

    def __call__(self, images):
        Thumbnails.calls += len(images)
        batch, height, width, channels = images.shape
        pixels = images.reshape(batch, 4, height // 4, 4, width // 4, channels).astype(np.float32)
        blocks = pixels.mean(axis=(2, 4, 5)).reshape(batch, 16)
        return Features(blocks[:, :6], spatial=blocks, logits=blocks[:, :5] / 50)


def mean_colors(images):
    return Features(images.mean(axis=(1, 2)))


def nan(images):
    return Features(np.full((len(images), 3), np.nan))


def transposed(images):
    return Features(images.mean(axis=(1, 2)).T)


def not_features(images):
    return images.mean(axis=(1, 2))


NUMBER = 3
