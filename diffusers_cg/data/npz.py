"""`.npz` files in the layout of OpenAI's reference batches: images as `arr_0`, their classes as `arr_1`, statistics."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from diffusers_cg.data.classes import ONLY_CLASS, Labels, name_classes
from diffusers_cg.data.files import printable
from diffusers_cg.data.image_sets import ArrayImages, FeatureStatistics, Statistics, check_array
from diffusers_cg.data.images import ImageRange, values_to_8_bits
from diffusers_cg.errors import InputError


IMAGES, LABELS = "arr_0", "arr_1"
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
MADE_BY = "made_by"  # beside statistics: what they were made by
CHUNK = 1 << 22
# what `zipfile` and NumPy raise on truncated and damaged files
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, KeyError, TypeError)


class NpzImages(ArrayImages):
    """The array `arr_0` of an `.npz`. Batches are read one by one; who asks for single images gets it into memory whole."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, int, int, int], **options):
        self.path = path
        self._dtype, self._shape = dtype, shape
        super(ArrayImages, self).__init__(source=printable(path), **options)

    @property
    def stored_shape(self) -> tuple[int, int, int, int]:
        return self._shape

    @cached_property
    def images(self) -> np.ndarray:
        return _read(self.path, IMAGES)

    def stored_batches(self, batch_size: int) -> Iterator[np.ndarray]:
        image_shape = self.stored_shape[1:]
        with _open_images(self.path) as member:
            _read_header(member, self.path)
            for start in range(0, len(self), batch_size):
                count = min(batch_size, len(self) - start)
                size = count * int(np.prod(image_shape)) * self._dtype.itemsize
                try:
                    data = member.read(size)
                except DAMAGE as error:
                    raise _damaged(self.path, error) from error
                if len(data) < size:
                    raise _damaged(self.path, "it ends early")
                pixels = np.frombuffer(data, dtype=self._dtype).reshape(count, *image_shape)
                yield values_to_8_bits(pixels, self.image_range)

    def content_hash(self) -> str:
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        if self._dtype != np.uint8:
            digest.update(str(self.image_range).encode())
        return digest.hexdigest()


def open_npz(
    path: Path,
    labels: Labels = "ignored",
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    image_range: ImageRange | None = None,
    resolution: int | None = None,
) -> NpzImages:
    """Opens the images of an `.npz`. Its statistics are those of the images as they are stored.

    Raises:
        InputError: if it is damaged, holds no images or no labels where they are required, or in another layout.
    """
    names = _member_names(path)
    if IMAGES not in names:
        if set(STATISTICS["pool"]) <= names:
            raise InputError(f"{path} holds statistics of features instead of images.")
        raise InputError(f"{path} has no array {IMAGES} of images, only {', '.join(sorted(names)) or 'nothing'}.")
    with _open_images(path) as member:
        dtype, shape, fortran_order = _read_header(member, path)
    shape = check_array(f"{IMAGES} of {path}", dtype, shape, image_range)
    if fortran_order:
        raise InputError(f"{IMAGES} of {path} is in Fortran order: save np.ascontiguousarray(images) instead.")
    found = None
    if labels == "required" or (labels == "optional" and LABELS in names):
        found = _read_labels(path, names, shape[0])
        class_names = name_classes(f"{LABELS} of {path}", found, None, class_names, num_classes)
    elif labels == "optional":
        found, class_names = np.zeros(shape[0], dtype=np.int64), [ONLY_CLASS]
    is_resized = resolution is not None and shape[1:3] != (resolution, resolution)
    return NpzImages(
        path,
        dtype,
        shape,
        labels=found,
        class_names=None if found is None else class_names,
        image_range=image_range,
        statistics={} if is_resized else _read_statistics(path, names),
        resolution=resolution,
    )


def open_statistics(path: Path) -> FeatureStatistics | None:
    """The statistics of an `.npz` that holds no images; None of one that does, or holds neither.

    Raises:
        InputError: if it is damaged, or holds them in another layout.
    """
    names = _member_names(path)
    if IMAGES in names or not set(STATISTICS["pool"]) <= names:
        return None
    made_by = {}
    if MADE_BY in names:
        made_by = _read_made_by(path)
    return FeatureStatistics(printable(path), _read_statistics(path, names), made_by)


def write_statistics(path: str | Path, statistics: Statistics, made_by: dict[str, Any]) -> None:
    """Writes an `.npz` of statistics, whole or not at all, as [`open_statistics`] and the reference read it.

    Args:
        path (`str` or `Path`): A file; one that is there is replaced.
        statistics (`dict`): As in [`FeatureStatistics`].
        made_by (`dict`): `extractor`, `extractor_hash`, `num_images`, `shape` [H, W, C] of the images, and what else
            tells people where the numbers are from; kept as JSON, in the array `made_by`.
    """
    path = Path(path)
    arrays = {name: array for kind, pair in statistics.items() for name, array in zip(STATISTICS[kind], pair)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays, **{MADE_BY: json.dumps(made_by)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _member_names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _open_images(path: Path) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:  # the member keeps the file open until it is closed itself
        return archive.open(f"{IMAGES}.npy")


def _read_header(member: IO[bytes], path: Path) -> tuple[np.dtype, tuple[int, ...], bool]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran_order, dtype = readers[np.lib.format.read_magic(member)](member)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return dtype, shape, fortran_order


def _read(path: Path, name: str, dtype: type | None = None) -> np.ndarray:
    try:
        with np.load(path) as arrays:
            return np.asarray(arrays[name], dtype)
    except (*DAMAGE, OSError) as error:
        raise _damaged(path, error) from error


def _read_labels(path: Path, names: set[str], num_images: int) -> np.ndarray:
    if LABELS not in names:
        raise InputError(f"{path} has no array {LABELS} of labels: save it beside the images.")
    labels = _read(path, LABELS)
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{LABELS} of {path} must be ({num_images},) whole numbers, the labels of the images, got {labels.shape} of "
            f"dtype {labels.dtype}."
        )
    return labels.astype(np.int64)


def _read_statistics(path: Path, names: set[str]) -> Statistics:
    statistics = {}
    for kind, pair in STATISTICS.items():
        if not set(pair) <= names:
            continue
        mean, covariance = (_read(path, name, np.float64) for name in pair)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise InputError(
                f"{pair[0]} and {pair[1]} of {path} must have the shapes (D,) and (D, D), got {mean.shape} and "
                f"{covariance.shape}."
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise InputError(f"{pair[0]} and {pair[1]} of {path} hold values that are not finite.")
        statistics[kind] = mean, covariance
    return statistics


def _read_made_by(path: Path) -> dict[str, Any]:
    try:
        made_by = json.loads(str(_read(path, MADE_BY)))
        num_images, shape = made_by["num_images"], made_by["shape"]
        is_right = isinstance(num_images, int) and len(shape) == 3 and all(isinstance(side, int) for side in shape)
        is_right = is_right and {"extractor", "extractor_hash"} <= made_by.keys()
    except DAMAGE:
        is_right = False
    if not is_right:
        raise InputError(f"{MADE_BY} of {path} does not say what made the statistics: write them anew.")
    return made_by


def _damaged(path: Path, reason: object) -> InputError:
    return InputError(f"{path} is no .npz, or is truncated or damaged ({reason}).")
