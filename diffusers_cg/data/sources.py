"""The one reader of images: [`open_images`], whatever they lie in."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from diffusers_cg.data.classes import ONLY_CLASS, Labels
from diffusers_cg.data.folders import open_folder
from diffusers_cg.data.hf_datasets import BUILDERS, ImageStream, is_dataset, open_dataset
from diffusers_cg.data.image_sets import ArrayImages, FeatureStatistics, ImageSet, check_array
from diffusers_cg.data.images import ImageRange
from diffusers_cg.data.npz import open_npz, open_statistics
from diffusers_cg.errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Source = Union[str, Path, Sequence[str | Path], np.ndarray, "Dataset", "IterableDataset", ImageSet, ImageStream]


def open_images(
    source: Source,
    labels: Labels = "ignored",
    *,
    known_classes: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    image_range: ImageRange | None = None,
    resolution: int | None = None,
    leave_out: Sequence[str] = (),
    class_from_file_name: bool = False,
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

            - a folder: images at any depth or, where there are labels, in a subfolder for each class; see [`open_folder`];
            - a dataset: its name on the Hub, a folder or files (Parquet, webdataset) that `datasets` reads, or itself;
            - an `.npz` that holds images as `arr_0`, and their labels, if any, as `arr_1`;
            - an array (N, H, W, C), C being 1 or 3, of uint8 or, with `image_range`, of other numbers.
        labels (`str`): Whether they are `"ignored"`, `"required"`, or `"optional"`: then images without any are one class.
        known_classes (sequence of `str`, *optional*): The classes of a model or of other images, in the order of their
            labels. Names that the source has are found among them, and numbers are labels; not all need have images.
        class_names, num_classes (*optional*): The classes of a dataset or `.npz` that does not tell them; see
            [`open_dataset`]. A folder must have `num_classes`, of which some may be empty, or be named by labels.
        image_range (`ImageRange`, *optional*): The values of black and white, of arrays and files of more than 8 bits; see
            [`to_8_bits`] for what files are taken for without it.
        resolution (`int`, *optional*): In arrays, resize images to this side and crop them in the middle, as for
            training. By default they must be of one size.
        leave_out (sequence of `str`): Names of files that are no images of the set, on top of a folder.
        class_from_file_name (`bool`): Of a folder: see [`open_folder`].
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
        return open_array(source, labels, image_range, resolution)
    if is_dataset(source):
        return open_dataset(
            source,
            labels,
            split=split,
            config_name=config_name,
            image_column=image_column,
            label_column=label_column,
            known_classes=known_classes,
            class_names=class_names,
            num_classes=num_classes,
            image_range=image_range,
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
        return open_folder(
            path,
            labels,
            known_classes=known_classes,
            num_classes=num_classes,
            image_range=image_range,
            leave_out=leave_out,
            class_from_file_name=class_from_file_name,
            resolution=resolution,
            progress_bar=progress_bar,
        )
    if not path.is_file():
        raise InputError(f"There is no file or folder {path}: pass an .npz or a folder of images.")
    return open_npz(path, labels, class_names or known_classes, num_classes, image_range, resolution)


def open_array(
    images: np.ndarray,
    labels: Labels = "ignored",
    image_range: ImageRange | None = None,
    resolution: int | None = None,
) -> ArrayImages:
    """Images (N, H, W, C) in memory, uint8 or with a range, without classes."""
    check_array("The array", images.dtype, images.shape, image_range)
    if labels == "required":
        raise InputError("The array states no labels: pass an .npz that holds them beside the images, as arr_1.")
    options = {"images": images, "source": "array", "image_range": image_range, "resolution": resolution}
    if labels == "ignored":
        return ArrayImages(**options)
    return ArrayImages(**options, labels=np.zeros(len(images), dtype=np.int64), class_names=[ONLY_CLASS])


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
