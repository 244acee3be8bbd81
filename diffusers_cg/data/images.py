"""Images as they come from files: found, decoded, converted and cropped as the models see them."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from diffusers_cg.data.grids import GRID_FILE
from diffusers_cg.errors import InputError


# what lies on top of a folder of samples, beside the images
SETTINGS_FILE, NPZ_FILE = "sampling.json", "samples.npz"
BESIDE_SAMPLES = (GRID_FILE, SETTINGS_FILE, NPZ_FILE)

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# what PIL's decoders raise on damaged files
DECODING_ERRORS = (OSError, EOFError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)


def list_files(directory: Path) -> list[Path]:
    """All files below a folder, sorted; hidden ones and those in hidden folders are left out."""
    return [
        file
        for file in sorted(directory.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(directory).parts)
    ]


def list_images(directory: Path) -> list[Path]:
    """[`list_files`], without what `diffusers-cg sample` puts on top of a folder, beside the images."""
    beside = {directory / name for name in BESIDE_SAMPLES}
    return [file for file in list_files(directory) if file not in beside]


def list_class_folders(directory: Path) -> list[Path]:
    """The subfolders of a folder of classes, in the order of the classes' numbers; hidden ones are left out."""
    return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def image_fault(file: str | Path | BinaryIO) -> str | None:
    """Why a file, or what was read of one, cannot be read as an image; None if it can."""
    try:
        with Image.open(file) as image:
            image.load()
    except DECODING_ERRORS as error:
        return _describe(error)
    return None


def load_image(file: str | Path | BinaryIO, channels: int, name: str | None = None) -> Image.Image:
    """Reads a file, or what was read of one, turned upright, by [`convert_channels`].

    Raises:
        InputError: if it cannot be read as an image; the sentence calls it `name`, or else by its path.
    """
    try:
        with Image.open(file) as opened:
            return convert_channels(ImageOps.exif_transpose(opened), channels)
    except DECODING_ERRORS as error:
        raise InputError(f"{name or file} cannot be read as an image: {_describe(error)}.") from error


def _describe(error: Exception) -> str:
    return "not an image" if isinstance(error, Image.UnidentifiedImageError) else f"damaged: {error}"


def convert_channels(image: Image.Image, channels: int) -> Image.Image:
    """Converts an image of any mode to 1 (gray), 3 (RGB) or 4 (RGBA) channels; transparency is laid on white."""
    if image.mode.startswith("I"):  # 16 bits, which PIL would clip
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if channels != 4 and image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(PIL_MODES[channels])


def resize_and_crop(
    image: Image.Image, resolution: int, center_crop: bool, rng: np.random.Generator | None = None
) -> Image.Image:
    """Square crop as the reference makes it: halved by box filter while twice too large, then bicubic, then cut.

    A random crop, which needs `rng`, first draws the shorter side from [resolution, resolution / 0.8].
    """
    short_side = resolution if center_crop else int(rng.integers(resolution, int(resolution / 0.8) + 1))
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = short_side / min(image.size)
    size = tuple(max(resolution, round(side * scale)) for side in image.size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    spare = (image.width - resolution, image.height - resolution)
    left, top = (side // 2 for side in spare) if center_crop else (int(rng.integers(side + 1)) for side in spare)
    return image.crop((left, top, left + resolution, top + resolution))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An image of 8 bits as (C, H, W) float32 in [-1, 1]."""
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)
