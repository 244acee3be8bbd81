"""`.npz` files in the layout of OpenAI's reference batches: images as `arr_0`, statistics of features, or both."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from diffusers_cg.data.image_sets import FeatureStatistics, ImageSet, check_array
from diffusers_cg.errors import InputError


IMAGES = "arr_0"
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
CHUNK = 1 << 22
# what `zipfile` raises on truncated and damaged files
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class NpzImages(ImageSet):
    """The array `arr_0` of an `.npz`, never held as a whole, and the statistics that stand beside it."""

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


def open_npz(path: Path) -> NpzImages | FeatureStatistics:
    """Opens the images of an `.npz`, or its statistics where it holds no images.

    Raises:
        ValueError: if it is damaged, holds neither, or holds them in another layout.
    """
    names = _member_names(path)
    statistics = {kind: _read_statistics(path, pair) for kind, pair in STATISTICS.items() if set(pair) <= names}
    if IMAGES not in names and "pool" in statistics:
        return FeatureStatistics(str(path), statistics)
    with _open_member(path) as member:
        dtype, shape, fortran_order = _read_header(member, path)
    shape = check_array(f"{IMAGES} of {path}", dtype, shape)
    if fortran_order:
        raise InputError(f"{IMAGES} of {path} is in Fortran order: save np.ascontiguousarray(images) instead.")
    return NpzImages(str(path), shape, path, statistics=statistics)


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _member_names(path: Path) -> set[str]:
    with _open_archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _open_member(path: Path) -> IO[bytes]:
    names = _member_names(path)
    if IMAGES not in names:
        raise InputError(f"{path} has no array {IMAGES} of images, only {', '.join(sorted(names)) or 'nothing'}.")
    archive = _open_archive(path)
    with archive:  # the member keeps the file open until it is closed itself
        return archive.open(f"{IMAGES}.npy")


def _read_header(member: IO[bytes], path: Path) -> tuple[np.dtype, tuple[int, ...], bool]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran_order, dtype = readers[np.lib.format.read_magic(member)](member)
    except (*DAMAGE, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return dtype, shape, fortran_order


def _read_statistics(path: Path, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as arrays:
            mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in names)
    except (*DAMAGE, ValueError, TypeError, OSError) as error:
        raise _damaged(path, error) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise InputError(
            f"{names[0]} and {names[1]} of {path} must have the shapes (D,) and (D, D), got {mean.shape} and "
            f"{covariance.shape}."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(f"{names[0]} and {names[1]} of {path} hold values that are not finite.")
    return mean, covariance


def _damaged(path: str | Path, reason: object) -> ValueError:
    return ValueError(f"{path} is no .npz, or is truncated or damaged ({reason}).")
