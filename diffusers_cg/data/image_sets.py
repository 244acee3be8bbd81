"""What every source of images becomes: a sequence of images that are read when they are asked for, or a stream of them.

A new kind is a subclass of [`EncodedImages`] with `__len__` and `__getitem__`, and a line in `sources.py`.
"""

import copy
import hashlib
import itertools
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from diffusers_cg.data.classes import ONLY_CLASS, labels_of_names, list_names
from diffusers_cg.data.images import (
    DECODING_ERRORS,
    Content,
    ImageRange,
    describe_fault,
    load_image,
    open_image,
    read_bytes,
    resize_and_crop,
    values_to_8_bits,
)
from diffusers_cg.errors import InputError


GRAY_MODES = {"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
LOSSY_FORMATS = {"JPEG", "MPO", "WEBP"}
SAMPLED_IMAGES = 64  # of a set, whose content stands for all in its fingerprint

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


class StoredImage(NamedTuple):
    """An image as its source keeps it, not yet decoded.

    Args:
        name (`str`): What to call it in a sentence.
        content (`Content`): A path, a URL, the bytes of a file, or pixels.
        label (`int`, *optional*): Its class, where labels are not ignored.
        image_range (`ImageRange`, *optional*): The values of black and white where it is kept in more than 8 bits.
    """

    name: str
    content: Content
    label: int | None = None
    image_range: ImageRange | None = None

    def load(self, channels: int) -> Image.Image:
        """By [`load_image`]."""
        return load_image(self.content, channels, self.name, self.image_range)

    def digest(self) -> bytes:
        """SHA-256 of what it is read from; of nothing where that is not there."""
        try:
            content = self.content if isinstance(self.content, np.ndarray) else read_bytes(self.content)
        except OSError:
            content = b""
        return hashlib.sha256(np.ascontiguousarray(content) if isinstance(content, np.ndarray) else content).digest()


@dataclass(eq=False, kw_only=True)
class ImageSet(Sequence[StoredImage]):
    """Images in order, one by one ([`StoredImage`]) or, where they are of one size, as arrays in [`batches`].

    Args:
        source (`str`): What they were opened from.
        labels (`np.ndarray`, *optional*): (N,) int64, the classes; None where they are ignored.
        class_names (list of `str`, *optional*): What the classes are called, in the order of their numbers.
        image_range (`ImageRange`, *optional*): The values of black and white of images that are kept in more than 8 bits.
        left_out (`dict`): What lies there and is not among the images: how much of it, by what it is.
        statistics (`dict`): Stated beside the images, as in [`FeatureStatistics`]; as a rule of Inception's features.
        resolution (`int`, *optional*): Side to which images in arrays are resized and cropped in the middle, as for
            training; without it they must be of one size.
    """

    source: str
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    image_range: ImageRange | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=dict)
    resolution: int | None = None

    def __post_init__(self):
        if self.resolution is not None and self.resolution < 1:
            raise InputError(f"`resolution` must be at least 1, got {self.resolution}.")

    def label(self, index: int) -> int | None:
        return None if self.labels is None else int(self.labels[index])

    def with_classes(self, known: Sequence[str]) -> "ImageSet":
        """The same images, their labels by known classes: see [`labels_of_names`].

        Raises:
            InputError: if images are of other classes.
        """
        numbers = labels_of_names(self.source, self.class_names, known)
        renamed = copy.copy(self)
        renamed.labels, renamed.class_names = numbers[self.labels], list(known)
        return renamed

    def summary(self) -> str:
        """A line on what there is, and what was left out."""
        return summary(f"{len(self):,} images", self.source, self.class_names, self.left_out)

    def fingerprint(self) -> str:
        """SHA-256, shortened, of the number of images, their labels, and the content of a few of them, evenly spread.

        It tells another set from this one, wherever the two lie, for the price of a few files.
        """
        labels = b"" if self.labels is None else np.ascontiguousarray(self.labels, dtype="<i8")
        digest = hashlib.sha256(labels)
        digest.update(str(len(self)).encode())
        for index in np.unique(np.linspace(0, len(self) - 1, SAMPLED_IMAGES).round().astype(int)):
            digest.update(self[int(index)].digest())
        return digest.hexdigest()[:16]

    @abstractmethod
    def select(self, indices: Sequence[int]) -> "ImageSet":
        """Some of the images, in the order of their indices."""

    def split(self, num_held_out: int, seed: int, stratified: bool = True) -> tuple["ImageSet", "ImageSet"]:
        """Two sets, drawn at random: the images that stay, and those held out.

        Args:
            num_held_out (`int`): How many.
            seed (`int`): Of the draw.
            stratified (`bool`): Hold out the same part of every class, as near as numbers allow, and never all of one.

        Raises:
            InputError: if a class could not keep an image.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))
        if stratified and self.labels is not None:
            order = _evenly_by_class(order, self.labels, rng)
            num_kept = len(np.unique(self.labels))
            if num_held_out > len(self) - num_kept:
                raise InputError(
                    f"{num_held_out} of the {len(self)} images of {self.source} cannot be held out: each of {num_kept} "
                    "classes needs at least one to train on."
                )
        return self.select(order[num_held_out:]), self.select(order[:num_held_out])

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

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """All images in order, (B, H, W, C) uint8; the last batch may be smaller. Warns of those that come out in one colour.

        Raises:
            InputError: if a file is damaged.
        """
        constant, first = [], 0
        for batch in self._batches(batch_size):
            is_constant = (batch == batch[:, :1, :1]).all(axis=(1, 2, 3))
            constant += (first + np.flatnonzero(is_constant)).tolist()
            first += len(batch)
            yield batch
        self.warn_of_constant(constant)

    @abstractmethod
    def _batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """[`batches`], without a look at them."""

    def warn_of_constant(self, indices: Sequence[int]) -> None:
        """Warns, once, of images that come out in one colour."""
        if len(indices):
            named = ", ".join(self.name(index) for index in indices[:3]) + (", ..." if len(indices) > 3 else "")
            warnings.warn(
                constant_images(f"{len(indices)} of {len(self)} images of {self.source}", named), stacklevel=2
            )

    def name(self, index: int) -> str:
        """What an image is called."""
        return self[index].name

    @abstractmethod
    def content_hash(self) -> str:
        """SHA-256 of what the images are read from, in hexadecimal digits."""


def summary(count: str, source: str, class_names: Sequence[str] | None, left_out: dict[str, int]) -> str:
    """A line on what a source holds, and what of it was left out."""
    classes = ""
    if class_names is not None and class_names != [ONLY_CLASS]:
        classes = f" of {len(class_names)} classes ({list_names(class_names)})"
    return f"{source}: {count}{classes}{describe_left_out(left_out)}."


def describe_left_out(left_out: dict[str, int]) -> str:
    """The end of a sentence on what a source holds."""
    counts = [f"{number:,} {what}" for what, number in left_out.items() if number]
    return f"; left out: {', '.join(counts)}" if counts else ""


def _evenly_by_class(order: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of images in another, in which any beginning holds about the same part of every class; one image of each is
    at the end.
    """
    counts = np.bincount(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # of an image in its class
    own = labels[by_class]
    parts = (places + rng.random(len(counts))[own]) / counts[own]
    parts[places == counts[own] - 1] += 1
    return by_class[np.argsort(parts, kind="stable")]


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
            image_range=self.image_range,
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

    def _batches(self, batch_size: int) -> Iterator[np.ndarray]:
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
            if not isinstance(stored.content, np.ndarray):
                stored = stored._replace(content=read_bytes(stored.content))  # once
            own_size, mode, format = _header(stored)
            first, size = first or stored.name, size or own_size
            if self.resolution is None and own_size != size:
                raise self._mixed_sizes(first, size, stored.name, own_size)
            modes.add(mode)
            formats.add(format)
            hashes.update(stored.digest())
        width, height = size if self.resolution is None else (self.resolution, self.resolution)
        shape = (len(self), height, width, 1 if modes <= GRAY_MODES else 3)
        hashes.update(str(shape).encode())
        if self.image_range is not None:
            hashes.update(str(self.image_range).encode())
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


def _header(stored: StoredImage) -> tuple[tuple[int, int], str, str | None]:
    """Size, mode and format; an array is of none."""
    if isinstance(stored.content, np.ndarray):
        return stored.load(channels=3).size, "L" if stored.content.shape[2:] in ((), (1,)) else "RGB", None
    try:
        with open_image(stored.content) as image:
            return image.size, image.mode, image.format
    except DECODING_ERRORS as error:
        raise InputError(
            f"{stored.name} is {describe_fault(error)}: remove it, or name a set of images alone."
        ) from error


@dataclass(eq=False, kw_only=True)
class SelectedImages(EncodedImages):
    """Some of the images of a set."""

    images: EncodedImages
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> StoredImage:
        return self.images[int(self.indices[index])]._replace(label=self.label(index))


@dataclass(eq=False, kw_only=True)
class ArrayImages(ImageSet):
    """Images in memory, (N, H, W, C) uint8, or of another type with a range of values."""

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
        return StoredImage(self.name(index), self.images[index], self.label(index), self.image_range)

    def name(self, index: int) -> str:
        return f"image {index} of {self.source}"

    def select(self, indices: Sequence[int]) -> "ArrayImages":
        labels = None if self.labels is None else self.labels[indices]
        return ArrayImages(
            images=self.images[indices],
            source=self.source,
            labels=labels,
            class_names=self.class_names,
            resolution=self.resolution,
            image_range=self.image_range,
        )

    def _batches(self, batch_size: int) -> Iterator[np.ndarray]:
        for batch in self.stored_batches(batch_size):
            yield batch if self.shape == self.stored_shape else np.stack([self._resized(image) for image in batch])

    def stored_batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """[`batches`] before they are resized."""
        for start in range(0, len(self), batch_size):
            yield values_to_8_bits(self.images[start : start + batch_size], self.image_range)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        return np.asarray(resize_and_crop(picture, self.resolution, center_crop=True)).reshape(self.shape[1:])

    def content_hash(self) -> str:
        digest = hashlib.sha256(str(self.shape).encode())
        if self.images.dtype != np.uint8:
            digest.update(f"{self.images.dtype} {self.image_range}".encode())
        for image in self.images:
            digest.update(np.ascontiguousarray(image))
        return digest.hexdigest()


def check_array(
    name: str, dtype: np.dtype, shape: tuple[int, ...], image_range: ImageRange | None = None
) -> tuple[int, int, int, int]:
    """The shape of an array of images.

    Raises:
        InputError: if it is not (N, H, W, C) with 1 or 3 channels, of uint8 or of numbers whose range is known.
    """
    if dtype.kind not in "uifb":
        raise InputError(f"{name} is of dtype {dtype}: images must be numbers, uint8 in 0..255 or others.")
    if dtype != np.uint8 and image_range is None:
        raise InputError(
            f"{name} is of dtype {dtype}: images are uint8, in 0..255, unless --image_range (`image_range` in Python) says "
            "which values are black and white, as in --image_range 0 1."
        )
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        hint = " Move the channels last." if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise InputError(f"{name} has the shape {shape}: images must be (N, H, W, C) with 1 or 3 channels.{hint}")
    return shape


def constant_images(counted: str, named: str) -> str:
    """A sentence on images that come out in one colour."""
    return (
        f"{counted} come out in one single colour ({named}): where that is not what the files show, --image_range says which "
        "values are black and white."
    )


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
