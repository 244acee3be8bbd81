"""One image: read from wherever it is kept, converted, cropped, and taken to tensors and back to 8 bits."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from diffusers_cg.errors import InputError, import_extra


Content = str | Path | bytes | np.ndarray
"""What an image is read from: a file by its path or URL, the bytes of one, or pixels (H, W, C) uint8."""

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# what PIL's decoders raise on damaged files
DECODING_ERRORS = (OSError, EOFError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)


def read_bytes(content: str | Path | bytes) -> bytes:
    """The bytes of an image file."""
    if isinstance(content, bytes):
        return content
    if "://" in str(content):
        with import_extra("fsspec", "train").open(content, "rb") as file:
            return file.read()
    return Path(content).read_bytes()


def open_image(content: Content) -> Image.Image:
    """PIL's image of what it is kept in; a file is not decoded yet. Raises one of `DECODING_ERRORS` where it is none."""
    if isinstance(content, np.ndarray):
        return Image.fromarray(content.squeeze(-1) if content.shape[-1] == 1 else content)
    if isinstance(content, bytes) or "://" in str(content):
        content = io.BytesIO(read_bytes(content))
    return Image.open(content)


def load_image(content: Content, channels: int, name: str | None = None) -> Image.Image:
    """Decodes an image, turns it upright, and converts it by [`convert_channels`].

    Raises:
        InputError: if it cannot be read as an image; the sentence calls it `name`, or else by its path.
    """
    try:
        with open_image(content) as opened:
            return convert_channels(ImageOps.exif_transpose(opened), channels)
    except DECODING_ERRORS as error:
        raise InputError(f"{name or content} cannot be read as an image: {describe_fault(error)}.") from error


def image_fault(content: Content) -> str | None:
    """Why something cannot be read as an image; None if it can."""
    try:
        with open_image(content) as image:
            image.load()
    except DECODING_ERRORS as error:
        return describe_fault(error)
    return None


def describe_fault(error: Exception) -> str:
    """What one of `DECODING_ERRORS` says of an image."""
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


def downscale(image: Image.Image, side: int) -> Image.Image:
    """The low-resolution version of a square image, in 8 bits as a user would have it.

    Every pixel is the mean of those that it covers (box filter) where `side` divides the image's, as for the paper's
    upsamplers; otherwise the filter is PIL's bicubic one, widened so that nothing aliases.
    """
    resample = Image.Resampling.BICUBIC if image.width % side else Image.Resampling.BOX
    return image.resize((side, side), resample)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An image of 8 bits as (C, H, W) float32 in [-1, 1]."""
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)


def to_uint8(sample: torch.Tensor) -> np.ndarray:
    """Images (B, C, H, W) in [-1, 1] as (B, H, W, C) uint8: truncated, not rounded, as the paper's were."""
    return ((sample + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
