"""Images as a user has them, as tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.image_processor import PipelineImageInput
from PIL import Image

from diffusers_cg.data.images import PIL_MODES
from diffusers_cg.errors import InputError


def images_to_tensor(image: PipelineImageInput, shape: tuple[int, int, int]) -> torch.Tensor:
    """[`unit_images`] as (B, C, H, W) in [-1, 1], float32."""
    return 2 * unit_images(image, shape) - 1


def unit_images(image: PipelineImageInput, shape: tuple[int, int, int]) -> torch.Tensor:
    """Images of any kind that diffusers takes as (B, C, H, W) in [0, 1], float32.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): Images of 8 bits; arrays (B, H, W, C)
            or (H, W, C), and tensors (B, C, H, W) or (C, H, W), floating point in [0, 1].
        shape (`tuple[int, int, int]`): (C, H, W) that they must have.

    Raises:
        InputError: if they are not images, or not floating point; if there are none, their channels or size differ from
            `shape`, or values are not in [0, 1].
    """
    images = image if isinstance(image, list | tuple) else [image]
    if not images:
        raise InputError("`image` is an empty list: pass at least one image.")
    parts = [_to_tensor(one, shape) for one in images]
    for part in parts:
        if tuple(part.shape[1:]) != shape:
            raise InputError(
                f"`image` must be of shape {shape} (channels, height, width) each, got {tuple(part.shape[1:])}."
            )
    sample = torch.cat(parts)
    if len(sample) == 0:
        raise InputError("`image` is an empty batch: pass at least one image.")
    if not bool(((sample >= 0) & (sample <= 1)).all()):
        raise InputError("`image` holds values that are not in [0, 1].")
    return sample


def _to_tensor(image: Image.Image | np.ndarray | torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """One image or a batch of them as (B, C, H, W) float32, values as given."""
    if isinstance(image, Image.Image):
        mode = PIL_MODES.get(shape[0])
        if image.mode != mode:
            raise InputError(
                f"`image` is a PIL image in mode {image.mode}, but the model's images have {shape[0]} channels: pass "
                + (f"{_conversion(image.mode, mode)}." if mode else "an array or a tensor.")
            )
        image = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1) / 255
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(image)) if image.dtype.kind in "fiub" else None
    else:
        tensor = image if isinstance(image, torch.Tensor) else None
    if tensor is None:
        raise InputError(f"`image` must be PIL images, arrays or tensors, got {_kind(image)}.")
    if not tensor.is_floating_point():
        raise InputError(f"`image` must be floating point in [0, 1], got {tensor.dtype}: divide 8-bit values by 255.")
    if tensor.ndim not in (3, 4):
        raise InputError(
            f"`image` must be one image or a batch, of 3 or 4 dimensions, got shape {tuple(tensor.shape)}."
        )
    if isinstance(image, np.ndarray):
        tensor = tensor.movedim(-1, -3)
    # channels last in memory, networks would round otherwise
    return (tensor if tensor.ndim == 4 else tensor[None]).float().contiguous()


def masks_to_tensor(mask_image: PipelineImageInput, size: tuple[int, int]) -> torch.Tensor:
    """Masks of any kind as (B, 1, H, W), bool: True where they are 1, or white (from 0.5 on).

    Args:
        mask_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): PIL images of 8 bits; arrays (H, W),
            (B, H, W) or (B, H, W, 1), and tensors (H, W), (B, H, W) or (B, 1, H, W), bool or numbers in [0, 1].
        size (`tuple[int, int]`): (H, W) that they must have.

    Raises:
        InputError: if they are no masks, there are none, their size is another, or values are not in [0, 1].
    """
    parts = []
    for mask in mask_image if isinstance(mask_image, list | tuple) else [mask_image]:
        if isinstance(mask, Image.Image):
            mask = np.asarray(mask.convert("L"), dtype=np.float32) / 255
        if isinstance(mask, np.ndarray) and mask.dtype.kind in "fiub":
            channels_last = mask.ndim == 4 or (mask.ndim == 3 and mask.shape[-1] == 1)
            tensor = torch.from_numpy(np.ascontiguousarray(mask))
            tensor = tensor.movedim(-1, -3) if channels_last else tensor
        elif isinstance(mask, torch.Tensor):
            tensor = mask
        else:
            raise InputError(f"`mask_image` must be PIL images, arrays or tensors, got {_kind(mask)}.")
        if tensor.ndim == 4 and tensor.shape[1] == 1:
            tensor = tensor[:, 0]
        tensor = tensor if tensor.ndim == 3 else tensor[None]
        if tensor.ndim != 3 or tuple(tensor.shape[1:]) != size or len(tensor) == 0:
            raise InputError(
                f"`mask_image` must be one mask or a batch, of the images' size {size} and one channel, got shape "
                f"{tuple(mask.shape)}."
            )
        parts.append(tensor.float().cpu())
    if not parts:
        raise InputError("`mask_image` is an empty list: pass at least one mask.")
    masks = torch.cat(parts)[:, None]
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise InputError("`mask_image` holds values that are not in [0, 1]: 1 is to be filled, 0 is kept.")
    return masks >= 0.5


def _conversion(mode: str, wanted: str) -> str:
    """Makes 8 bits of an image; of more, PIL's own conversion would clip them."""
    image = "diffusers_cg.data.images.to_8_bits(image)" if mode.startswith(("I", "F")) else "image"
    return f'{image}.convert("{wanted}")'


def _kind(value: object) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
