"""Sets to measure: what they have in common, and those of arrays."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from diffusers_cg.errors import InputError


Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of the features of images that are not there.

    Args:
        source (`str`): What they were opened from.
        statistics (`dict`): `{"pool": (mu, sigma), "spatial": (mu_s, sigma_s)}`, float64; `spatial` may be missing.
    """

    source: str
    statistics: Statistics


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, read in batches so that a set may be larger than the memory.

    Args:
        source (`str`): What it was opened from.
        shape (`tuple`): (N, H, W, C), C being 1 or 3.
        statistics (`dict`): Stated beside the images, as in [`FeatureStatistics`]; as a rule of Inception's features.
    """

    source: str
    shape: tuple[int, int, int, int]
    statistics: Statistics = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def is_lossy(self) -> bool:
        """Whether files of the set are in a format that loses something."""
        return False

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """All images in order, (B, H, W, C) uint8; the last batch may be smaller.

        Raises:
            ValueError: if a file is damaged.
        """
        raise NotImplementedError

    def content_hash(self) -> str:
        """SHA-256 of what the images are read from, in hexadecimal digits."""
        raise NotImplementedError


@dataclass(frozen=True)
class ArrayImages(ImageSet):
    """Images in memory, (N, H, W, C) uint8."""

    images: np.ndarray

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self), batch_size):
            yield self.images[start : start + batch_size]

    def content_hash(self) -> str:
        digest = hashlib.sha256(str(self.shape).encode())
        for image in self.images:
            digest.update(np.ascontiguousarray(image))
        return digest.hexdigest()


def open_array(images: np.ndarray) -> ArrayImages:
    """Images (N, H, W, C) in memory.

    Raises:
        ValueError: as [`check_array`].
    """
    return ArrayImages("array", check_array("The array", images.dtype, images.shape), images)


def check_array(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The shape of an array of images.

    Raises:
        ValueError: if it is not (N, H, W, C) uint8 with 1 or 3 channels.
    """
    if dtype != np.uint8:
        raise InputError(f"{name} is of dtype {dtype}: images must be uint8, in 0..255.")
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        hint = " Move the channels last." if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise InputError(f"{name} has the shape {shape}: images must be (N, H, W, C) with 1 or 3 channels.{hint}")
    return shape
