"""The one reader of images: [`open_images`], whatever they lie in."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from diffusers_cg.data.files import list_files, printable
from diffusers_cg.data.hf_datasets import BUILDERS, ImageStream, is_dataset, open_dataset
from diffusers_cg.data.image_sets import (
    ONLY_CLASS,
    ArrayImages,
    EncodedImages,
    FeatureStatistics,
    ImageSet,
    Labels,
    StoredImage,
    check_array,
)
from diffusers_cg.data.npz import open_npz, open_statistics
from diffusers_cg.errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Source = Union[str, Path, Sequence[str | Path], np.ndarray, "Dataset", "IterableDataset", ImageSet, ImageStream]


def open_images(
    source: Source,
    labels: Labels = "ignored",
    *,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    resolution: int | None = None,
    leave_out: Sequence[str] = (),
    split: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    cache_dir: Path | None = None,
    progress_bar: bool = False,
) -> ImageSet | ImageStream:
    """Opens images; none is decoded before it is asked for.

    Args:
        source: One of these, or what is open already:

            - a folder: images at any depth or, where there are labels, in a subfolder for each class (hidden files are
              left out);
            - a dataset: its name on the Hub, a folder or files (Parquet, webdataset) that `datasets` reads, or itself;
            - an `.npz` that holds images as `arr_0`, and their labels, if any, as `arr_1`;
            - an array (N, H, W, C) of uint8, C being 1 or 3.
        labels (`str`): Whether they are `"ignored"`, `"required"`, or `"optional"`: then images without any are one class.
        class_names, num_classes (*optional*): The classes of a dataset or `.npz` that does not tell them; see
            [`open_dataset`]. With `num_classes` a folder must have as many subfolders, and some may be empty.
        resolution (`int`, *optional*): In arrays, resize images to this side and crop them in the middle, as for
            training. By default they must be of one size.
        leave_out (sequence of `str`): Names of files that are no images of the set, on top of a folder.
        split, config_name, image_column, label_column, streaming, cache_dir (*optional*): Of a dataset alone; see
            [`open_dataset`].
        progress_bar (`bool`): Show one when all files are looked at.

    Returns:
        [`ImageSet`], or [`ImageStream`] of a dataset with `streaming`.

    Raises:
        InputError: if there is nothing there, or it holds something else.
        MissingExtraError: if it is a dataset and `datasets` is not installed.
    """
    if isinstance(source, ImageSet | ImageStream):
        return source
    if isinstance(source, FeatureStatistics):
        raise InputError(f"{source.source} holds statistics of features instead of images.")
    if isinstance(source, np.ndarray):
        return open_array(source, labels, resolution)
    if is_dataset(source):
        return open_dataset(
            source,
            labels,
            split=split,
            config_name=config_name,
            image_column=image_column,
            label_column=label_column,
            class_names=class_names,
            num_classes=num_classes,
            streaming=streaming,
            cache_dir=cache_dir,
            resolution=resolution,
            progress_bar=progress_bar,
        )
    if not isinstance(source, str | Path):
        raise InputError(
            f"A set of images must be an array, a path or a dataset, got {type(source).__name__}: pass a numpy array "
            "(N, H, W, C) of uint8."
        )
    path = Path(source)
    if path.is_dir():
        return open_folder(path, labels, num_classes, leave_out, resolution, progress_bar)
    if not path.is_file():
        raise InputError(f"There is no file or folder {path}: pass an .npz or a folder of images.")
    return open_npz(path, labels, class_names, num_classes, resolution)


def open_array(images: np.ndarray, labels: Labels = "ignored", resolution: int | None = None) -> ArrayImages:
    """Images (N, H, W, C) uint8 in memory, without classes."""
    check_array("The array", images.dtype, images.shape)
    if labels == "required":
        raise InputError("The array states no labels: pass an .npz that holds them beside the images, as arr_1.")
    found, class_names = None, None
    if labels == "optional":
        found, class_names = np.zeros(len(images), dtype=np.int64), [ONLY_CLASS]
    return ArrayImages(images=images, source="array", labels=found, class_names=class_names, resolution=resolution)


def open_set(source: Source | FeatureStatistics, **options) -> ImageSet | FeatureStatistics:
    """Opens what can be measured: [`open_images`] of one size, or an `.npz` of statistics in their place (`mu, sigma`, and
    `mu_s, sigma_s`, of features). All that can be checked without decoding images is.

    Raises:
        InputError: as [`open_images`]; if images are of different sizes, or come in a stream; if statistics say that they
            are of images of another size than `resolution`.
    """
    if isinstance(source, FeatureStatistics):
        return source
    if isinstance(source, str | Path) and Path(source).is_file() and Path(source).suffix not in BUILDERS:
        statistics = open_statistics(Path(source))
        if statistics is not None:
            side, shape = options.get("resolution"), statistics.made_by.get("shape")
            if None not in (side, shape) and shape[:2] != [side, side]:
                raise InputError(
                    f"{statistics.source} holds statistics of images of {shape[1]}x{shape[0]}, not of {side}x{side}: make "
                    "them of images of that size."
                )
            return statistics
    opened = open_images(source, **options)
    if isinstance(opened, ImageStream):
        raise InputError(f"{opened.source} is a stream, whose length is not known: open it without streaming.")
    _ = opened.shape  # looks at every file
    return opened


# -------------------------------------------------------------------------------------------------------------- folders


@dataclass(eq=False, kw_only=True)
class FolderImages(EncodedImages):
    """Image files.

    Args:
        files (`np.ndarray`): Their paths (N,), in order, as bytes: one block of memory, where a list would be copied into
            every process that loads images, piece by piece.
    """

    files: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> StoredImage:
        path = os.fsdecode(self.files[index])
        return StoredImage(printable(path), path, self.label(index))


def open_folder(
    folder: str | Path,
    labels: Labels = "ignored",
    num_classes: int | None = None,
    leave_out: Sequence[str] = (),
    resolution: int | None = None,
    progress_bar: bool = False,
) -> FolderImages:
    """Opens the images of a folder.

    Args:
        folder (`str` or `Path`): With labels, it has a subfolder for each class (searched at any depth), numbered in the
            order of their sorted names; with optional ones, a folder with less than two subfolders is one class.
        num_classes (`int`, *optional*): Number of classes that there must be; some may then be empty.
        labels, leave_out, resolution, progress_bar: As [`open_images`].

    Raises:
        InputError: if the folder is missing, has a class without files or too few classes, or holds nothing.
    """
    root = Path(folder)
    if not root.is_dir():
        layout = "of images" if labels == "ignored" else "with one subfolder of images per class"
        raise InputError(f"There is no folder {root}: pass a folder {layout}.")
    directories = class_folders(root)
    if labels == "ignored" or (labels == "optional" and len(directories) < 2):
        unwanted = {root / name for name in leave_out}
        files = [file for file in list_files(root) if file not in unwanted]
        numbers, names = ([0] * len(files), [ONLY_CLASS]) if labels == "optional" else (None, None)
    else:
        names = [printable(directory.name) for directory in directories]
        _check_classes(root, names, num_classes)
        labelled = [(file, label) for label, directory in enumerate(directories) for file in list_files(directory)]
        files, numbers = [file for file, _ in labelled], [label for _, label in labelled]
        empty = sorted(set(range(len(names))) - set(numbers))
        if empty and num_classes is None:
            listed = ", ".join(printable(directories[label]) for label in empty)
            raise InputError(f"These class folders hold no images: {listed}. Fill or remove them.")
    if not files:
        raise InputError(f"{root} holds no images.")
    return FolderImages(
        source=printable(root),
        files=np.array([os.fsencode(file) for file in files]),
        labels=None if numbers is None else np.array(numbers, dtype=np.int64),
        class_names=names,
        resolution=resolution,
        progress_bar=progress_bar,
    )


def class_folders(folder: Path) -> list[Path]:
    """The subfolders of a folder of classes, in the order of the classes' numbers; hidden ones are left out."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _check_classes(root: Path, names: Sequence[str], num_classes: int | None) -> None:
    if num_classes is not None and len(names) != num_classes:
        raise InputError(
            f"{root} has {len(names)} subfolders, but the model knows {num_classes} classes: it must have one of images "
            "for each, sorted as for training."
        )
    if not names:
        raise InputError(f"{root} has no subfolders: it must hold one subfolder of images per class.")
    if len(names) == 1 and num_classes is None:
        raise InputError(f"{root} has one class only, {names[0]}: guidance needs at least two.")
