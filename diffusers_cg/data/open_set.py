"""Opens whatever a user may have as samples or as a reference."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from diffusers_cg.data.dataset_files import is_dataset, open_dataset
from diffusers_cg.data.encoded_images import FolderFiles, open_encoded
from diffusers_cg.data.image_sets import FeatureStatistics, ImageSet, open_array
from diffusers_cg.data.npz_files import open_npz
from diffusers_cg.errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset

Source = Union[str, Path, np.ndarray, "Dataset", ImageSet, FeatureStatistics]


def open_set(
    source: Source,
    resolution: int | None = None,
    split: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    progress_bar: bool = False,
) -> ImageSet | FeatureStatistics:
    """Opens a set, and checks what can be checked without decoding its images.

    Args:
        source: One of these:

            - an array (N, H, W, C) of uint8, C being 1 or 3;
            - an `.npz` that holds one as `arr_0`, or `mu, sigma` (and `mu_s, sigma_s`) of features, or both;
            - a folder of images at any depth (hidden files and the `grid.png` on top are left out);
            - a dataset: its name on the Hub, a folder that `datasets` reads, or a `datasets.Dataset`.

            Images of a folder or dataset have 3 channels unless all are gray. What is open already is returned.
        resolution (`int`, *optional*): Resize images of a folder or dataset to this side, and crop them in the middle,
            as for training. By default they must be of one size.
        split, config_name, image_column (`str`, *optional*): Which images of a dataset; see [`open_dataset`].
        progress_bar (`bool`): Show one over the files of a folder or dataset.

    Raises:
        ValueError, TypeError: with one sentence, if there is nothing there, or it holds something else.
        MissingExtraError: if it is a dataset and `datasets` is not installed.
    """
    if isinstance(source, (ImageSet, FeatureStatistics)):
        return source
    if isinstance(source, np.ndarray):
        return open_array(source)
    if is_dataset(source):
        files = open_dataset(source, split, config_name, image_column)
        return open_encoded(files.source, files, resolution, progress_bar)
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"A set of images must be an array, a path or a dataset, got {type(source).__name__}: pass a numpy array "
            "(N, H, W, C) of uint8."
        )
    path = Path(source)
    if path.is_dir():
        return open_encoded(str(path), FolderFiles(path), resolution, progress_bar)
    if not path.is_file():
        raise InputError(f"There is no file or folder {path}: pass an .npz or a folder of images.")
    return open_npz(path)


def open_images(source: Source, **options) -> ImageSet:
    """[`open_set`], of images.

    Raises:
        ValueError, TypeError: as [`open_set`]; if there are statistics of features instead of images.
    """
    opened = open_set(source, **options)
    if isinstance(opened, FeatureStatistics):
        raise InputError(f"{opened.source} holds statistics of features instead of images.")
    return opened
