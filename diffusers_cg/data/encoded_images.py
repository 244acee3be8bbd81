"""Sets of encoded images (PNG, JPEG, ...), whether files of a folder or rows of a dataset."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from diffusers_cg.data.image_sets import ImageSet
from diffusers_cg.data.images import DECODING_ERRORS, list_images, load_image, resize_and_crop
from diffusers_cg.errors import InputError


GRAY_MODES = {"1", "L", "I", "I;16", "I;16B", "I;16L", "F"}
LOSSY_FORMATS = {"JPEG", "MPO", "WEBP"}


class EncodedFile(NamedTuple):
    """The bytes of an image file, and what to call it in a sentence."""

    name: str
    data: bytes


class FolderFiles(Sequence[EncodedFile]):
    """Image files below a folder, each read when it is asked for."""

    def __init__(self, folder: Path):
        self.paths = list_images(folder)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> EncodedFile:
        return EncodedFile(str(self.paths[index]), self.paths[index].read_bytes())


@dataclass(frozen=True)
class EncodedImages(ImageSet):
    """Encoded images, each decoded, turned upright and converted to the channels of the set when its batch comes.

    Args:
        files (sequence of [`EncodedFile`]): In order.
        resolution (`int`, *optional*): Side that images are resized and cropped to.
        formats (`frozenset`): What PIL calls the files' formats.
        digest (`str`): SHA-256 of the files.
    """

    files: Sequence[EncodedFile]
    resolution: int | None
    formats: frozenset[str]
    digest: str

    @property
    def is_lossy(self) -> bool:
        return bool(self.formats & LOSSY_FORMATS)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self), batch_size):
            indices = range(start, min(start + batch_size, len(self)))
            yield np.stack([self._decode(self.files[index]) for index in indices])

    def content_hash(self) -> str:
        return self.digest

    def _decode(self, file: EncodedFile) -> np.ndarray:
        _, height, width, channels = self.shape
        image = load_image(io.BytesIO(file.data), channels, name=file.name)
        if self.resolution is not None:
            image = resize_and_crop(image, self.resolution, center_crop=True)
        if image.size != (width, height):  # the file says that it lies on its side
            raise _mixed_sizes(self.source, self.files[0].name, (width, height), file.name, image.size)
        return np.asarray(image).reshape(height, width, channels)


def open_encoded(
    source: str, files: Sequence[EncodedFile], resolution: int | None = None, progress_bar: bool = False
) -> EncodedImages:
    """Reads every file once, for its size, mode, format and hash; pixels are not decoded.

    Args:
        source (`str`): What a report calls the set.
        files (sequence of [`EncodedFile`]): The images.
        resolution (`int`, *optional*): Resize and crop in the middle as for training. Without it images must be of one
            size.
        progress_bar (`bool`): Show one over the files.

    Raises:
        ValueError: if there are no files, one is not an image, or sizes differ without a `resolution`.
    """
    if resolution is not None and resolution < 1:
        raise InputError(f"`resolution` must be at least 1, got {resolution}.")
    if not len(files):
        raise InputError(f"{source} holds no images.")
    first, size, modes, formats, hashes = None, None, set(), set(), hashlib.sha256()
    for file in tqdm(files, desc=f"Files of {source}", unit="image", leave=False, disable=not progress_bar):
        own_size, mode, format = _image_header(file)
        first, size = first or file.name, size or own_size
        if resolution is None and own_size != size:
            raise _mixed_sizes(source, first, size, file.name, own_size)
        modes.add(mode)
        formats.add(format)
        hashes.update(hashlib.sha256(file.data).digest())
    width, height = size if resolution is None else (resolution, resolution)
    shape = (len(files), height, width, 1 if modes <= GRAY_MODES else 3)
    hashes.update(str(shape).encode())
    return EncodedImages(source, shape, files, resolution, frozenset(formats), hashes.hexdigest())


def _image_header(file: EncodedFile) -> tuple[tuple[int, int], str, str]:
    """Size, mode and format."""
    try:
        with Image.open(io.BytesIO(file.data)) as image:
            return image.size, image.mode, image.format
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{file.name} is not an image: remove it, or name a set of images alone.") from error
    except DECODING_ERRORS as error:
        raise InputError(f"{file.name} cannot be read as an image: {error}.") from error


def _mixed_sizes(source: str, name: str, size: tuple[int, int], other: str, other_size: tuple[int, int]) -> ValueError:
    return ValueError(
        f"{source} holds images of different sizes: {name} is {size[0]}x{size[1]} and {other} is "
        f"{other_size[0]}x{other_size[1]}. Images must be of one size: pass --resolution to resize and crop them."
    )
