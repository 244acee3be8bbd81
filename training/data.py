"""A folder of images with a subfolder per class, as batches for training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from diffusers_cg.errors import UserError
from diffusers_cg.extras import import_extra
from diffusers_cg.image_files import (
    image_fault,
    list_class_folders,
    list_files,
    load_image,
    resize_and_crop,
    to_tensor,
)


if TYPE_CHECKING:
    from datasets import Dataset


def load_image_folder(data_dir: str | Path, skip_bad_images: bool = False, verify: bool = True) -> "Dataset":
    """Finds the images of a folder with a subfolder per class (searched at any depth).

    Args:
        data_dir (`str` or `Path`): The folder. Classes are numbered in the order of their sorted names.
        skip_bad_images (`bool`): Leave out files that cannot be read as images, instead of refusing the folder.
        verify (`bool`): Decode every file once now, so that a broken one does not stop a training later.

    Returns:
        `datasets.Dataset`: Columns `path` (string) and `label` (`ClassLabel` with the classes' names).

    Raises:
        UserError: if the folder is missing or empty, has fewer than two classes, has a class without images, or holds
            a file that cannot be read as an image (the first few are named).
    """
    datasets = import_extra("datasets", "train")
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: pass a folder with one subfolder of images per class.")
    class_dirs = list_class_folders(root)
    if not class_dirs:
        raise UserError(f"{root} has no subfolders: it must hold one subfolder of images per class.")
    if len(class_dirs) == 1:
        raise UserError(f"{root} has one class only, {class_dirs[0].name}: guidance needs at least two.")

    files = [(file, label) for label, directory in enumerate(class_dirs) for file in list_files(directory)]
    if verify:
        readable = set(readable_images([file for file, _ in files], skip_bad_images))
        files = [(file, label) for file, label in files if file in readable]

    counts = np.bincount([label for _, label in files], minlength=len(class_dirs))
    if 0 in counts:
        empty = ", ".join(str(directory) for directory, count in zip(class_dirs, counts) if count == 0)
        raise UserError(f"These class folders hold no images: {empty}. Fill or remove them.")
    names = [directory.name for directory in class_dirs]
    features = datasets.Features({"path": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict(
        {"path": [str(file) for file, _ in files], "label": [label for _, label in files]}, features=features
    )


def readable_images(files: Sequence[Path], skip_bad_images: bool = False) -> list[Path]:
    """Decodes every file once, and gives back those that are images.

    Args:
        files (sequence of `Path`): What to look at.
        skip_bad_images (`bool`): Leave out files that cannot be read as images, and say so, instead of refusing them.

    Raises:
        UserError: if a file cannot be read as an image (the first few are named).
    """
    faults = {}
    for file in tqdm(files, desc="Checking images", unit="file", leave=False):
        fault = image_fault(file)
        if fault is not None:
            faults[file] = fault
    if faults:
        named = "; ".join(f"{file} ({fault})" for file, fault in list(faults.items())[:5])
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        if not skip_bad_images:
            raise UserError(
                f"{len(faults)} of {len(files)} files cannot be read as images: {named}{more}. Remove them, or "
                "pass --skip_bad_images to go on without them."
            )
        print(f"Skipped {len(faults)} files that cannot be read as images: {named}{more}.", flush=True)
    return [file for file in files if file not in faults]


def downscale(image: Image.Image, side: int) -> Image.Image:
    """The low-resolution version of a square image, in 8 bits as a user would have it.

    Every pixel is the mean of those that it covers (box filter) where `side` divides the image's, as for the paper's
    upsamplers; otherwise the filter is PIL's bicubic one, widened so that nothing aliases.
    """
    resample = Image.Resampling.BICUBIC if image.width % side else Image.Resampling.BOX
    return image.resize((side, side), resample)


@dataclass
class TrainingImages(torch.utils.data.Dataset):
    """Images of a folder, preprocessed. An item is asked for by (index, draw): see [`EndlessSampler`].

    Augmentation depends on the seed and the draw alone, so it is the same whoever loads it and after a resume.

    Args:
        dataset (`datasets.Dataset`): From [`load_image_folder`].
        resolution (`int`): Side of the square images.
        channels (`int`): 1, 3 or 4.
        center_crop (`bool`): Cut out the middle, or else a random part.
        random_flip (`bool`): Mirror every other image, left to right.
        seed (`int`): Seed of the augmentation.
        low_res_size (`int`, *optional*): Side of the low-resolution versions that an upsampler is trained on.
    """

    dataset: "Dataset"
    resolution: int
    channels: int
    center_crop: bool = True
    random_flip: bool = False
    seed: int = 0
    low_res_size: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor | int]:
        """`clean_images` (C, H, W) float32 in [-1, 1], `class_labels` and `draws` int.

        With `low_res_size` also `low_res_images` (C, h, w) float32 in [-1, 1]: the same pictures, by [`downscale`].

        Raises:
            UserError: if the file cannot be read as an image.
        """
        index, draw = item if isinstance(item, tuple) else (item, item)
        row = self.dataset[index]
        image = load_image(row["path"], self.channels)
        rng = np.random.default_rng([self.seed, draw])
        image = resize_and_crop(image, self.resolution, self.center_crop, rng)
        if self.random_flip and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        item = {"clean_images": to_tensor(image), "class_labels": row["label"], "draws": draw}
        if self.low_res_size is not None:
            item["low_res_images"] = to_tensor(downscale(image, self.low_res_size))
        return item


class EndlessSampler(Sampler[tuple[int, int]]):
    """Yields (index, draw) without end: every epoch is a permutation of its own, which follows from the seed.

    `draw` counts the images of the whole training, over all processes. Whatever an image needs at random (crop,
    timestep, noise) is derived from it, so that a training resumed at any draw goes on as if it had never stopped.
    """

    def __init__(self, num_images: int, seed: int, first_draw: int = 0):
        self.num_images = num_images
        self.seed = seed
        self.first_draw = first_draw

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = self.first_draw
        while True:
            epoch, position = divmod(draw, self.num_images)
            permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
            for index in permutation[position:]:
                yield int(index), draw
                draw += 1


def training_loader(images: TrainingImages, batch_size: int, first_draw: int, num_workers: int) -> DataLoader:
    """Endless batches, starting at a draw."""
    sampler = EndlessSampler(len(images), images.seed, first_draw)
    return DataLoader(
        images, batch_size=batch_size, sampler=sampler, num_workers=num_workers, pin_memory=torch.cuda.is_available()
    )
