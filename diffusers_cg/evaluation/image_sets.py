"""Sets of images to measure: arrays, `.npz` files in the layout of OpenAI's reference batches, folders of images."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from diffusers_cg.image_files import DECODING_ERRORS, list_images, load_image


IMAGES = "arr_0"
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
GRAY_MODES = {"1", "L", "I", "I;16", "I;16B", "I;16L", "F"}
LOSSY_FORMATS = {"JPEG", "MPO", "WEBP"}
CHUNK = 1 << 22
# what `zipfile` raises on truncated and damaged files
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, read in batches so that a set may be larger than the memory.

    Args:
        source (`str`): What it was opened from.
        shape (`tuple`): (N, H, W, C), C being 1 or 3.
    """

    source: str
    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def is_lossy(self) -> bool:
        """Whether the files were compressed with loss."""
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


@dataclass(frozen=True)
class NpzImages(ImageSet):
    """The array `arr_0` of an `.npz`, never held as a whole."""

    path: Path

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        image_shape = self.shape[1:]
        with _open_member(self.path) as member:
            _read_header(member, self.path)
            for start in range(0, len(self), batch_size):
                count = min(batch_size, len(self) - start)
                size = count * int(np.prod(image_shape))
                try:
                    data = member.read(size)
                except DAMAGE as error:
                    raise _damaged(self.path, error) from error
                if len(data) < size:
                    raise _damaged(self.path, "it ends early")
                yield np.frombuffer(data, dtype=np.uint8).reshape(count, *image_shape)

    def content_hash(self) -> str:
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class FolderImages(ImageSet):
    """Image files, each converted to the channels of the set."""

    files: tuple[Path, ...]
    formats: frozenset[str]

    @property
    def is_lossy(self) -> bool:
        return bool(self.formats & LOSSY_FORMATS)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        _, height, width, channels = self.shape
        for start in range(0, len(self), batch_size):
            images = [load_image(file, channels) for file in self.files[start : start + batch_size]]
            for file, image in zip(self.files[start:], images):
                if image.size != (width, height):  # the file says that it lies on its side
                    raise _mixed_sizes(self.source, self.files[0], (width, height), file, image.size)
            yield np.stack([np.asarray(image) for image in images]).reshape(-1, height, width, channels)

    def content_hash(self) -> str:
        digest = hashlib.sha256(str(self.shape).encode())
        for file in self.files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def open_images(source: str | Path | np.ndarray) -> ImageSet:
    """Opens a set of images and checks what can be checked without reading all of it.

    Args:
        source (`str`, `Path` or `np.ndarray`): An array (N, H, W, C) of uint8, an `.npz` that holds one as `arr_0`, or
            a folder of images of one size at any depth (hidden files and the `grid.png` on top are left out). C is 1
            or 3; the images of a folder have 3 channels unless all are gray.

    Raises:
        ValueError: with one sentence, if there is nothing there, or it holds something else.
    """
    if isinstance(source, np.ndarray):
        return ArrayImages("array", _check_array("The array", source.dtype, source.shape), source)
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise ValueError(f"There is no file or folder {path}: pass an .npz or a folder of images.")
    with _open_member(path) as member:
        dtype, shape, fortran_order = _read_header(member, path)
    shape = _check_array(f"{IMAGES} of {path}", dtype, shape)
    if fortran_order:
        raise ValueError(f"{IMAGES} of {path} is in Fortran order: save np.ascontiguousarray(images) instead.")
    return NpzImages(str(path), shape, path)


def open_reference(
    source: str | Path | np.ndarray,
) -> tuple[ImageSet | None, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Opens a reference: its images, and the statistics of their features where an `.npz` states them.

    Returns:
        The images, or None where there are statistics only; and `{"pool": (mu, sigma), "spatial": (mu_s, sigma_s)}`,
        float64, or as many of these as there are.

    Raises:
        ValueError: as [`open_images`]; if statistics are not finite or their shapes do not fit each other.
    """
    if isinstance(source, np.ndarray) or not Path(source).is_file():
        return open_images(source), {}
    path = Path(source)
    names = _member_names(path)
    statistics = {}
    for kind, pair in STATISTICS.items():
        if set(pair) <= names:
            try:
                with np.load(path) as arrays:
                    mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in pair)
            except (*DAMAGE, ValueError, TypeError, OSError) as error:
                raise _damaged(path, error) from error
            statistics[kind] = _check_statistics(path, pair, mean, covariance)
    if IMAGES not in names and statistics:
        return None, statistics
    return open_images(path), statistics


def _open_folder(path: Path) -> FolderImages:
    files = list_images(path)
    if not files:
        raise ValueError(f"{path} holds no images.")
    size, modes, formats = None, set(), set()
    for file in files:
        own_size, mode, format = _image_header(file)
        if size not in (None, own_size):
            raise _mixed_sizes(path, files[0], size, file, own_size)
        size = own_size
        modes.add(mode)
        formats.add(format)
    channels = 1 if modes <= GRAY_MODES else 3
    return FolderImages(str(path), (len(files), size[1], size[0], channels), tuple(files), frozenset(formats))


def _image_header(file: Path) -> tuple[tuple[int, int], str, str]:
    """Size, mode and format of a file, whose pixels are not decoded."""
    try:
        with Image.open(file) as image:
            return image.size, image.mode, image.format
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{file} is not an image: remove it, or name a folder of images alone.") from error
    except DECODING_ERRORS as error:
        raise ValueError(f"{file} cannot be read as an image: {error}.") from error


def _mixed_sizes(source: str | Path, file: Path, size: tuple[int, int], other: Path, other_size: tuple) -> ValueError:
    return ValueError(
        f"{source} holds images of different sizes: {file} is {size[0]}x{size[1]} and {other} is "
        f"{other_size[0]}x{other_size[1]}. Images must be of one size."
    )


def _open_npz(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _member_names(path: Path) -> set[str]:
    with _open_npz(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _open_member(path: Path) -> IO[bytes]:
    names = _member_names(path)
    if IMAGES not in names:
        raise ValueError(f"{path} has no array {IMAGES} of images, only {', '.join(sorted(names)) or 'nothing'}.")
    archive = _open_npz(path)
    with archive:  # the member keeps the file open until it is closed itself
        return archive.open(f"{IMAGES}.npy")


def _read_header(member: IO[bytes], path: Path) -> tuple[np.dtype, tuple[int, ...], bool]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran_order, dtype = readers[np.lib.format.read_magic(member)](member)
    except (*DAMAGE, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return dtype, shape, fortran_order


def _check_array(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if dtype != np.uint8:
        raise ValueError(f"{name} is of dtype {dtype}: images must be uint8, in 0..255.")
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        hint = " Move the channels last." if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise ValueError(f"{name} has the shape {shape}: images must be (N, H, W, C) with 1 or 3 channels.{hint}")
    return shape


def _check_statistics(
    path: Path, names: tuple[str, str], mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{names[0]} and {names[1]} of {path} must have the shapes (D,) and (D, D), got {mean.shape} and "
            f"{covariance.shape}."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{names[0]} and {names[1]} of {path} hold values that are not finite.")
    return mean, covariance


def _damaged(path: str | Path, reason: object) -> ValueError:
    return ValueError(f"{path} is no .npz, or is truncated or damaged ({reason}).")
