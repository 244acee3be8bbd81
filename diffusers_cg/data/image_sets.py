"""What every source of images becomes: a sequence of images that are read when they are asked for, or a stream of them.

A new kind is a subclass of [`EncodedImages`] with `__len__` and `__getitem__`, and a line in `sources.py`.
"""

import hashlib
import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from diffusers_cg.data.images import (
    DECODING_ERRORS,
    Content,
    describe_fault,
    load_image,
    open_image,
    read_bytes,
    resize_and_crop,
)
from diffusers_cg.errors import InputError


GRAY_MODES = {"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
LOSSY_FORMATS = {"JPEG", "MPO", "WEBP"}

Labels = Literal["ignored", "optional", "required"]
"""Whether a source must say of each image which class it is of. Images without classes, if they may be, are one class."""
ONLY_CLASS = "images"

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


class StoredImage(NamedTuple):
    """An image as its source keeps it, not yet decoded.

    Args:
        name (`str`): What to call it in a sentence.
        content (`Content`): A path, a URL, the bytes of a file, or pixels.
        label (`int`, *optional*): Its class, where labels are not ignored.
    """

    name: str
    content: Content
    label: int | None = None

    def load(self, channels: int, image_range: tuple[float, float] | None = None) -> Image.Image:
        """By [`load_image`]."""
        return load_image(self.content, channels, self.name, image_range)


@dataclass(eq=False, kw_only=True)
class ImageSet(Sequence[StoredImage]):
    """Images in order, one by one ([`StoredImage`]) or, where they are of one size, as arrays in [`batches`].

    Args:
        source (`str`): What they were opened from.
        labels (`np.ndarray`, *optional*): (N,) int64, the classes; None where they are ignored.
        class_names (list of `str`, *optional*): What the classes are called, in the order of their numbers.
        statistics (`dict`): Stated beside the images, as in [`FeatureStatistics`]; as a rule of Inception's features.
        resolution (`int`, *optional*): Side to which images in arrays are resized and cropped in the middle, as for
            training; without it they must be of one size.
    """

    source: str
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    statistics: Statistics = field(default_factory=dict)
    resolution: int | None = None

    def __post_init__(self):
        if self.resolution is not None and self.resolution < 1:
            raise InputError(f"`resolution` must be at least 1, got {self.resolution}.")

    def label(self, index: int) -> int | None:
        return None if self.labels is None else int(self.labels[index])

    @abstractmethod
    def select(self, indices: Sequence[int]) -> "ImageSet":
        """Some of the images, in the order of their indices."""

    def split(self, num_held_out: int, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """Two sets, drawn at random: the images that stay, and those held out."""
        permutation = np.random.default_rng(seed).permutation(len(self))
        return self.select(permutation[num_held_out:]), self.select(permutation[:num_held_out])

    # ----------------------------------------------------------------------------------------- where all are of one size

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C), C being 1 or 3.

        Raises:
            InputError: if images are of different sizes, or one is no image.
        """

    @property
    @abstractmethod
    def is_lossy(self) -> bool:
        """Whether files of the set are in a format that loses something."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """All images in order, (B, H, W, C) uint8; the last batch may be smaller.

        Raises:
            InputError: if a file is damaged.
        """

    @abstractmethod
    def content_hash(self) -> str:
        """SHA-256 of what the images are read from, in hexadecimal digits."""


@dataclass(eq=False, kw_only=True)
class EncodedImages(ImageSet):
    """Images that are encoded (PNG, JPEG, ...), in files or rows of a dataset. Arrays of them are of 3 channels, unless all
    images are gray.

    Args:
        progress_bar (`bool`): Show one when all files are looked at.
    """

    progress_bar: bool = False

    def select(self, indices: Sequence[int]) -> "SelectedImages":
        labels = None if self.labels is None else self.labels[np.asarray(indices)]
        return SelectedImages(
            images=self,
            indices=np.asarray(indices),
            source=self.source,
            labels=labels,
            class_names=self.class_names,
            resolution=self.resolution,
            progress_bar=self.progress_bar,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self._headers.shape

    @property
    def is_lossy(self) -> bool:
        return bool(self._headers.formats & LOSSY_FORMATS)

    def content_hash(self) -> str:
        return self._headers.digest

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        images = iter(self)
        while batch := list(itertools.islice(images, batch_size)):
            yield np.stack([self._pixels(image) for image in batch])

    def _pixels(self, stored: StoredImage) -> np.ndarray:
        _, height, width, channels = self.shape
        image = stored.load(channels)
        if self.resolution is not None:
            image = resize_and_crop(image, self.resolution, center_crop=True)
        if image.size != (width, height):  # the file says that it lies on its side
            raise self._mixed_sizes(self[0].name, (width, height), stored.name, image.size)
        return np.asarray(image).reshape(height, width, channels)

    @cached_property
    def _headers(self) -> "_Headers":
        """What the files' headers say of all images, and their hash; pixels are not decoded."""
        first, size, modes, formats, hashes = None, None, set(), set(), hashlib.sha256()
        bar = tqdm(self, desc=f"Files of {self.source}", unit="image", leave=False, disable=not self.progress_bar)
        for stored in bar:
            data = read_bytes(stored.content)
            own_size, mode, format = _header(stored.name, data)
            first, size = first or stored.name, size or own_size
            if self.resolution is None and own_size != size:
                raise self._mixed_sizes(first, size, stored.name, own_size)
            modes.add(mode)
            formats.add(format)
            hashes.update(hashlib.sha256(data).digest())
        width, height = size if self.resolution is None else (self.resolution, self.resolution)
        shape = (len(self), height, width, 1 if modes <= GRAY_MODES else 3)
        hashes.update(str(shape).encode())
        return _Headers(shape, formats, hashes.hexdigest())

    def _mixed_sizes(self, name: str, size: tuple[int, int], other: str, other_size: tuple[int, int]) -> InputError:
        return InputError(
            f"{self.source} holds images of different sizes: {name} is {size[0]}x{size[1]} and {other} is "
            f"{other_size[0]}x{other_size[1]}. Images must be of one size: pass --resolution to resize and crop them."
        )


class _Headers(NamedTuple):
    shape: tuple[int, int, int, int]
    formats: set[str]
    digest: str


def _header(name: str, data: bytes) -> tuple[tuple[int, int], str, str]:
    """Size, mode and format."""
    try:
        with open_image(data) as image:
            return image.size, image.mode, image.format
    except DECODING_ERRORS as error:
        raise InputError(f"{name} is {describe_fault(error)}: remove it, or name a set of images alone.") from error


@dataclass(eq=False, kw_only=True)
class SelectedImages(EncodedImages):
    """Some of the images of a set."""

    images: EncodedImages
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> StoredImage:
        return self.images[int(self.indices[index])]


@dataclass(eq=False, kw_only=True)
class ArrayImages(ImageSet):
    """Images in memory, (N, H, W, C) uint8."""

    is_lossy = False  # as far as one can know

    images: np.ndarray

    @property
    def stored_shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C) before they are resized."""
        return self.images.shape

    @property
    def shape(self) -> tuple[int, int, int, int]:
        count, height, width, channels = self.stored_shape
        return (count, self.resolution or height, self.resolution or width, channels)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> StoredImage:
        return StoredImage(f"image {index} of {self.source}", self.images[index], self.label(index))

    def select(self, indices: Sequence[int]) -> "ArrayImages":
        labels = None if self.labels is None else self.labels[indices]
        return ArrayImages(
            images=self.images[indices],
            source=self.source,
            labels=labels,
            class_names=self.class_names,
            resolution=self.resolution,
        )

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        for batch in self.stored_batches(batch_size):
            yield batch if self.shape == self.stored_shape else np.stack([self._resized(image) for image in batch])

    def stored_batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """[`batches`] before they are resized."""
        for start in range(0, len(self), batch_size):
            yield self.images[start : start + batch_size]

    def _resized(self, image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        return np.asarray(resize_and_crop(picture, self.resolution, center_crop=True)).reshape(self.shape[1:])

    def content_hash(self) -> str:
        digest = hashlib.sha256(str(self.shape).encode())
        for image in self.images:
            digest.update(np.ascontiguousarray(image))
        return digest.hexdigest()


def check_array(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The shape of an array of images.

    Raises:
        InputError: if it is not (N, H, W, C) uint8 with 1 or 3 channels.
    """
    if dtype != np.uint8:
        raise InputError(f"{name} is of dtype {dtype}: images must be uint8, in 0..255.")
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        hint = " Move the channels last." if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise InputError(f"{name} has the shape {shape}: images must be (N, H, W, C) with 1 or 3 channels.{hint}")
    return shape


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of the features of images that are not there.

    Args:
        source (`str`): What they were opened from.
        statistics (`dict`): `{"pool": (mu, sigma), "spatial": (mu_s, sigma_s)}`, float64; `spatial` may be missing.
        made_by (`dict`): What they were made by and of, as far as the file says; see [`write_statistics`].
    """

    source: str
    statistics: Statistics
    made_by: dict[str, Any] = field(default_factory=dict)


# -------------------------------------------------------------------------------------------------------------- classes


def name_classes(
    where: str,
    labels: np.ndarray | None,
    stated: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> list[str]:
    """Names of classes, one for each label from 0.

    Args:
        where (`str`): What holds the labels.
        labels (`np.ndarray`, *optional*): (N,), all of them; None of a stream.
        stated (sequence of `str`, *optional*): What the source calls the classes.
        class_names (sequence of `str`, *optional*): What the user does; by default as the source, or their numbers.
        num_classes (`int`, *optional*): How many there are; by default as many as names, or one more than the greatest
            label.

    Raises:
        InputError: if the three do not agree, there are less than two classes, a label is none of them, or, of unnamed
            classes, one has no images.
    """
    wanted = {len(names) for names in (stated, class_names) if names is not None} | {num_classes} - {None}
    if len(wanted) > 1:
        raise InputError(
            f"The number of classes is not clear: the dataset names {len(stated) if stated else 'none'}, --class_names "
            f"{len(class_names) if class_names else 'none'}, and --num_classes is {num_classes}."
        )
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise InputError(f"--class_names must differ from each other, got {' '.join(class_names)}.")
    if labels is not None:
        found = np.unique(labels)
        if found[0] < 0:
            raise InputError(
                f"{where} holds label {found[0]}, but every image needs a label of at least 0: is it another split that "
                "has labels?"
            )
        if not wanted and not np.array_equal(found, np.arange(len(found))):
            raise InputError(
                f"{where} holds {len(found)} different labels from {found[0]} to {found[-1]}, where 0 to "
                f"{len(found) - 1} are expected: pass --num_classes {found[-1] + 1} to train with classes that have no "
                "images."
            )
        wanted = wanted or {len(found)}
        if found[-1] >= min(wanted):
            raise InputError(f"{where} holds label {found[-1]}, but there are {min(wanted)} classes, from 0.")
    elif not wanted:
        raise InputError(
            f"{where} of the stream holds plain numbers: pass --num_classes, or --class_names with a name for each."
        )
    (count,) = wanted
    if count < 2:
        raise InputError(f"There is one class only in {where}: guidance needs at least two.")
    return list(class_names or stated or map(str, range(count)))
