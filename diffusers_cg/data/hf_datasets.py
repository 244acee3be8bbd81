"""Images of `datasets`: by a name on the Hub, of a folder or files that it reads (Parquet, webdataset), or loaded already."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from diffusers_cg.data.files import printable
from diffusers_cg.data.image_sets import ONLY_CLASS, EncodedImages, Labels, StoredImage, name_classes
from diffusers_cg.errors import InputError, MissingExtraError, import_extra


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    AnyDataset = Dataset | IterableDataset

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
FOLDER_SUFFIXES = (*BUILDERS, ".arrow")
SAVED_TO_DISK = ("dataset_dict.json", "state.json")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
KEY = "__key__"  # webdataset's name of an example
LABEL_COLUMNS = ("label", "cls")


@dataclass(eq=False, kw_only=True)
class DatasetImages(EncodedImages):
    """The rows of a `datasets.Dataset`, read from disk when they are asked for.

    Args:
        dataset (`datasets.Dataset`): With a column of encoded images.
        column (`str`): Its name.
    """

    dataset: "Dataset"
    column: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> StoredImage:
        return self._stored(index, self.dataset[index])

    def __iter__(self) -> Iterator[StoredImage]:
        return (self._stored(index, row) for index, row in enumerate(self.dataset))

    def _stored(self, index: int, row: dict[str, Any]) -> StoredImage:
        return stored_image(row, self.column, self.label(index), index, self.source)


@dataclass(eq=False)
class ImageStream:
    """The rows of a `datasets.IterableDataset`, one after the other, their number unknown.

    Args:
        dataset (`datasets.IterableDataset`): With a column of encoded images.
        source (`str`): What to call it.
        image_column (`str`): Its name.
        label_column (`str`, *optional*): Without one, images are of the only class if `class_names` names it.
        class_names (list of `str`, *optional*): None where labels are ignored.
    """

    dataset: "IterableDataset"
    source: str
    image_column: str
    label_column: str | None = None
    class_names: list[str] | None = None

    @property
    def num_shards(self) -> int:
        return self.dataset.num_shards

    def shard(self, number: int) -> "ImageStream":
        """The rows of one file of several."""
        rows, source = self.dataset.shard(self.num_shards, number), f"shard {number} of {self.source}"
        return ImageStream(rows, source, self.image_column, self.label_column, self.class_names)

    def __iter__(self) -> Iterator[StoredImage]:
        only_label = None if self.class_names is None else 0
        with reading(self.source):
            for number, row in enumerate(self.dataset):
                label = only_label if self.label_column is None else row[self.label_column]
                yield stored_image(row, self.image_column, label, number, self.source)


def stored_image(row: dict[str, Any], column: str, label: int | None, number: int, source: str) -> StoredImage:
    """The image of a row, called by its file, by what name there is, or by its number; without content if it is missing."""
    image = row[column] or {"bytes": None, "path": None}
    if image["bytes"] is None and image["path"] is not None:
        return StoredImage(image["path"], image["path"], label)
    name = row.get(KEY) or image["path"] or number
    return StoredImage(f"image {name} of {source}", image["bytes"] or b"", label)


# -------------------------------------------------------------------------------------------------------------- opening


def is_dataset(source: object) -> bool:
    """Whether something is a dataset of `datasets`, names a folder or files of one, or can be the name of one on the Hub."""
    if is_loaded(source):
        return True
    if isinstance(source, list | tuple):
        return len(source) > 0 and all(map(is_dataset, source))
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    if path.is_dir():
        return is_saved_to_disk(path) or any(file.suffix in FOLDER_SUFFIXES for file in path.rglob("*"))
    if path.suffix in BUILDERS:
        return True
    is_name = isinstance(source, str) and HUB_NAME.fullmatch(source) is not None
    return is_name and not path.exists() and path.suffix != ".npz"


def is_loaded(source: object) -> bool:
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(source, datasets.Dataset | datasets.IterableDataset)


def is_saved_to_disk(path: Path) -> bool:
    return any((path / file).is_file() for file in SAVED_TO_DISK)


def open_dataset(
    source: Union[str, Path, Sequence[str | Path], "AnyDataset"],
    labels: Labels = "ignored",
    *,
    split: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    streaming: bool = False,
    cache_dir: Path | None = None,
    resolution: int | None = None,
    progress_bar: bool = False,
) -> DatasetImages | ImageStream:
    """Opens the images of a dataset.

    Args:
        source: A name on the Hub, a folder that `datasets.load_dataset` or `datasets.load_from_disk` reads, Parquet or
            webdataset files (paths, patterns or URLs), or a dataset itself.
        labels (`str`): Whether they are `"ignored"`, `"optional"` or `"required"`.
        split (`str`, *optional*): Which one, as `datasets` spells it (`train`, `train[:10000]`); the only one by default.
        config_name (`str`, *optional*): Configuration of a dataset that has several.
        image_column (`str`, *optional*): By default the only column of images.
        label_column (`str`, *optional*): Whole numbers from 0; by default the only column of class labels, or one called
            `label` or `cls`.
        class_names (sequence of `str`, *optional*): What the classes are called, in the order of their labels; by
            default as the dataset says, and their numbers where it does not.
        num_classes (`int`, *optional*): By default as the dataset says, or one more than the greatest label where it
            does not.
        streaming (`bool`): Read it when its images are asked for, in place of first putting it in the cache.
        cache_dir (`Path`, *optional*): Where that cache is; `datasets`' own place by default.
        resolution, progress_bar: As [`EncodedImages`].

    Raises:
        MissingExtraError: if `datasets` is not installed.
        InputError: if it cannot be read, a choice is missing or is none of those there are, or the labels are not whole
            numbers from 0 of known classes.
    """
    if is_loaded(source):
        name, dataset = "dataset", source
    else:
        name, dataset = load_dataset(source, split, config_name, streaming, cache_dir)
    datasets = import_extra("datasets", "data")
    if dataset.features is None:
        with reading(name):
            dataset = dataset._resolve_features()
    is_stream = isinstance(dataset, datasets.IterableDataset)
    if not is_stream and len(dataset) == 0:
        raise InputError(f"{name} holds no images.")

    image_column, label_column = choose_columns(dataset, labels, image_column, label_column)
    found = None
    if label_column is not None:
        found = None if is_stream else read_labels(dataset, label_column)
        stated = getattr(dataset.features[label_column], "names", None)
        class_names = name_classes(f"Column {label_column}", found, stated, class_names, num_classes)
    elif labels == "optional":
        found, class_names = None if is_stream else np.zeros(len(dataset), dtype=np.int64), [ONLY_CLASS]
    else:
        class_names = None

    kept = [column for column in (image_column, label_column, KEY) if column in dataset.features]
    with reading(f"Column {image_column} of {name}"):
        dataset = dataset.select_columns(kept).cast_column(image_column, datasets.Image(decode=False))
    if is_stream:
        return ImageStream(dataset, name, image_column, label_column, class_names)
    return DatasetImages(
        dataset=dataset,
        column=image_column,
        source=name,
        labels=found,
        class_names=class_names,
        resolution=resolution,
        progress_bar=progress_bar,
    )


def load_dataset(
    source: str | Path | Sequence[str | Path],
    split: str | None,
    config_name: str | None,
    streaming: bool,
    cache_dir: Path | None,
) -> tuple[str, "AnyDataset"]:
    """What to call a dataset, and `datasets.load_dataset` or `datasets.load_from_disk` of it, with one sentence where that
    fails.
    """
    files = source if isinstance(source, list | tuple) else [source] if Path(source).suffix in BUILDERS else None
    if files is not None:
        name, absent = str(files[0]), ""
        stated = {"path": builder_of([str(file) for file in files]), "data_files": [str(file) for file in files]}
    else:
        name = str(source)
        absent = "" if Path(name).is_dir() else f"There is no file or folder {name}, and "
        stated = {"path": name}
    try:
        datasets = import_extra("datasets", "data")
    except MissingExtraError as error:
        may_be = f"There is no file or folder {name}, and it may be a dataset of the Hub. " if absent else ""
        raise MissingExtraError(f"{may_be}{error}") from error
    with reading(name, absent):
        if files is None and is_saved_to_disk(Path(name)):
            dataset = datasets.load_from_disk(name)
            dataset = (
                dataset if isinstance(dataset, dict) else {"train": dataset}
            )  # as `load_dataset` calls the only one
            if split is not None and split not in dataset:
                raise InputError(f"{name} has the splits {', '.join(dataset)}, not {split}: change --split.")
            dataset = dataset if split is None else dataset[split]
        else:
            dataset = datasets.load_dataset(
                **stated,
                name=config_name,
                split=split,
                streaming=streaming,
                cache_dir=None if cache_dir is None else str(cache_dir),
            )
    if isinstance(dataset, dict):
        if len(dataset) > 1:
            raise InputError(f"{name} has the splits {', '.join(dataset)}: pass one with --split.")
        (dataset,) = dataset.values()
    name = printable(name)
    return (name if split is None else f"{name}, split {split}"), dataset


def builder_of(files: Sequence[str]) -> str:
    """What `datasets` calls the format of the files.

    Raises:
        InputError: if a local file does not exist, or the suffixes are others than one of `BUILDERS`.
    """
    for file in files:
        if "://" not in file and not glob(file, recursive=True):
            raise InputError(f"There is no file {file}.")
    suffixes = {Path(file).suffix for file in files}
    suffix = suffixes.pop()
    if suffixes or suffix not in BUILDERS:
        raise InputError(
            f"A dataset takes files of one kind, Parquet (.parquet) or webdataset (.tar), got {', '.join(files)}."
        )
    return BUILDERS[suffix]


@contextmanager
def reading(name: str, absent: str = "") -> Iterator[None]:
    """Turns what goes wrong while a dataset is read into an [`InputError`] that names the dataset."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of `datasets` and of whatever library reads the format or the network
        said = str(error).strip().splitlines()
        reason = said[0].rstrip(".") if said else type(error).__name__
        raise InputError(f"{absent}{name} cannot be read: {reason}.") from error


# -------------------------------------------------------------------------------------------------------------- columns


def choose_columns(
    dataset: "AnyDataset", labels: Labels, image_column: str | None, label_column: str | None
) -> tuple[str, str | None]:
    """Names of the columns of images, and of labels unless they are ignored, or optional and not there."""
    datasets = import_extra("datasets", "data")
    features = dataset.features
    listed = ", ".join(f"{name} ({describe_feature(feature)})" for name, feature in features.items())

    def choose(flag: str, wanted: str | None, *candidates: list[str]) -> str:
        if wanted is None:
            wanted = next((found[0] for found in candidates if len(found) == 1), None)
            if wanted is None:
                raise InputError(f"Pass {flag} to say which column to take, of {listed}.")
        elif wanted not in features:
            raise InputError(f"There is no column {wanted} ({flag}): the dataset has {listed}.")
        return wanted

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image_column = choose("--image_column", image_column, images)
    class_labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [name for name in LABEL_COLUMNS if name in features]
    if labels == "ignored" or (labels == "optional" and not (label_column or class_labels or usual)):
        return image_column, None
    label_column = choose("--label_column", label_column, class_labels, usual)
    if "int" not in getattr(features[label_column], "dtype", ""):
        raise InputError(f"The labels in column {label_column} are not whole numbers: the dataset has {listed}.")
    return image_column, label_column


def describe_feature(feature: Any) -> str:
    """The type of a column, in a word or two."""
    return getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__


def read_labels(dataset: "Dataset", column: str) -> np.ndarray:
    """A column of labels (N,) int64.

    Raises:
        InputError: if one is missing.
    """
    labels = dataset.select_columns(column).with_format("arrow")[column][:]
    if labels.null_count:
        raise InputError(
            f"Column {column} holds {labels.null_count} missing labels, but every image needs a label of at least 0: is it "
            "another split that has labels?"
        )
    return labels.to_numpy().astype(np.int64)
