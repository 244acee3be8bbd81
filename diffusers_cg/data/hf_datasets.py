"""Images of `datasets`: by a name on the Hub, of a folder or files that it reads (Parquet, webdataset), or loaded already."""

import hashlib
import itertools
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np

from diffusers_cg.data.classes import (
    ONLY_CLASS,
    Labels,
    labels_of_names,
    name_classes,
    natural_order,
    same_classes,
)
from diffusers_cg.data.files import printable
from diffusers_cg.data.image_sets import EncodedImages, StoredImage, constant_images, summary
from diffusers_cg.data.images import ImageRange, look_at_image
from diffusers_cg.errors import InputError, MissingExtraError, import_extra


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    AnyDataset = Dataset | IterableDataset

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
FOLDER_SUFFIXES = (*BUILDERS, ".arrow")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SAVED_TO_DISK = ("dataset_dict.json", "state.json")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
KEY = "__key__"  # webdataset's name of an example
LABEL_COLUMNS = ("label", "cls")
TEXT = ("string", "large_string")
FIRST_IMAGES = 16  # of a stream, which stand for all


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
        return stored_image(row, self.column, self.label(index), index, self.source, self.image_range)


@dataclass(eq=False)
class ImageStream:
    """The rows of a `datasets.IterableDataset`, one after the other, their number unknown.

    Args:
        dataset (`datasets.IterableDataset`): With a column of encoded images.
        source (`str`): What to call it.
        image_column (`str`): Its name.
        label_column (`str`, *optional*): Without one, images are of the only class if `class_names` names it.
        class_names (list of `str`, *optional*): None where labels are ignored.
        label_of (`dict`, *optional*): The label of each value in the column, where it is not that value itself.
        needs_labels (`bool`): Whether a label that is none of the classes is to stay, for whoever uses it to refuse; else
            it becomes 0.
        image_range (`ImageRange`, *optional*): As of an [`ImageSet`].
    """

    dataset: "IterableDataset"
    source: str
    image_column: str
    label_column: str | None = None
    class_names: list[str] | None = None
    label_of: dict[Any, int] | None = None
    needs_labels: bool = True
    image_range: ImageRange | None = None

    @property
    def num_shards(self) -> int:
        return self.dataset.num_shards

    def shard(self, number: int) -> "ImageStream":
        """The rows of one file of several."""
        rows, source = self.dataset.shard(self.num_shards, number), f"shard {number} of {self.source}"
        return replace(self, dataset=rows, source=source)

    def with_classes(self, known: Sequence[str]) -> "ImageStream":
        """As of an [`ImageSet`]."""
        numbers = labels_of_names(self.source, self.class_names, known).tolist()
        before = self.label_of or {label: label for label in range(len(numbers))}
        label_of = {value: numbers[label] for value, label in before.items()}
        return replace(self, class_names=list(known), label_of=label_of)

    def summary(self) -> str:
        """As of an [`ImageSet`]."""
        return summary("a stream of images", self.source, self.class_names, {})

    def warn_of_constant(self) -> None:
        """As of an [`ImageSet`], of the first few images."""
        first = list(itertools.islice(self, FIRST_IMAGES))
        constant = [stored.name for stored in first if look_at_image(stored.content, stored.image_range)[1]]
        if constant:
            counted = f"{len(constant)} of the first {len(first)} images of {self.source}"
            warnings.warn(constant_images(counted, ", ".join(constant[:3])), stacklevel=2)

    def fingerprint(self) -> str:
        """SHA-256, shortened, of the first few images, which tells another stream from this one."""
        digest = hashlib.sha256()
        for stored in itertools.islice(self, FIRST_IMAGES):
            digest.update(f"{stored.label}".encode() + stored.digest())
        return digest.hexdigest()[:16]

    def __iter__(self) -> Iterator[StoredImage]:
        only_label = None if self.class_names is None else 0
        with reading(self.source):
            for number, row in enumerate(self.dataset):
                label = only_label if self.label_column is None else row[self.label_column]
                if self.label_of is not None:
                    label = self.label_of.get(label, label)
                if not self.needs_labels and label not in range(len(self.class_names)):
                    label = 0
                yield stored_image(row, self.image_column, label, number, self.source, self.image_range)


def stored_image(
    row: dict[str, Any], column: str, label: int | None, number: int, source: str, image_range: ImageRange | None
) -> StoredImage:
    """The image of a row, called by its file, by what name there is, or by its number; without content if it is missing."""
    image = row[column]
    if not isinstance(image, dict | type(None)):  # an array, perhaps in lists
        return StoredImage(f"image {row.get(KEY) or number} of {source}", np.asarray(image), label, image_range)
    image = image or {"bytes": None, "path": None}
    if image["bytes"] is None and image["path"] is not None:
        return StoredImage(image["path"], image["path"], label, image_range)
    name = row.get(KEY) or image["path"] or number
    return StoredImage(f"image {name} of {source}", image["bytes"] or b"", label, image_range)


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
    known_classes: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    image_range: ImageRange | None = None,
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
        image_column (`str`, *optional*): Images, or arrays (H, W) or (H, W, C); by default the only column of images.
        label_column (`str`, *optional*): Whole numbers from 0, truth values, or texts, each of which is a class; by
            default the only column of class labels, or one called `label` or `cls`.
        known_classes (sequence of `str`, *optional*): As [`open_images`].
        class_names (sequence of `str`, *optional*): What the classes are called, in the order of their labels; by
            default as the dataset says, and their numbers where it does not. Texts, and the names of the dataset if they
            are the same in another order, are found among them.
        num_classes (`int`, *optional*): By default as the dataset says, or one more than the greatest label where it
            does not.
        streaming (`bool`): Read it when its images are asked for, in place of first putting it in the cache.
        cache_dir (`Path`, *optional*): Where that cache is; `datasets`' own place by default.
        image_range: As [`open_images`].
        resolution, progress_bar: As [`EncodedImages`].

    Raises:
        MissingExtraError: if `datasets` is not installed.
        InputError: if it cannot be read, a choice is missing or is none of those there are, or the labels are none of the
            classes.
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

    image_column = choose_image_column(dataset, image_column)
    try:
        of_images = read_classes(dataset, labels, label_column, known_classes, class_names, num_classes)
    except InputError:
        if labels == "required" or label_column is not None:
            raise
        of_images = NO_CLASSES  # nothing that needs labels is to be refused for them
    label_column, found, label_of, class_names, known_classes = of_images
    if labels == "optional" and label_column is None:
        found, class_names = None if is_stream else np.zeros(len(dataset), dtype=np.int64), [ONLY_CLASS]

    kept = [column for column in (image_column, label_column, KEY) if column in dataset.features]
    dataset = dataset.with_format(None).select_columns(kept)
    if not is_array(dataset.features[image_column]):
        with reading(f"Column {image_column} of {name}"):
            dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    if is_stream:
        images = ImageStream(
            dataset, name, image_column, label_column, class_names, label_of, labels != "optional", image_range
        )
    else:
        images = DatasetImages(
            dataset=dataset,
            column=image_column,
            source=name,
            labels=found,
            class_names=class_names,
            image_range=image_range,
            left_out=count_images_beside(source),
            resolution=resolution,
            progress_bar=progress_bar,
        )
    return images if known_classes is None else images.with_classes(known_classes)


def count_images_beside(source: Any) -> dict[str, int]:
    """The image files of a folder whose images are read from other files, as what is left out."""
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return {}
    return {"image files beside them": sum(file.suffix.lower() in IMAGE_SUFFIXES for file in Path(source).rglob("*"))}


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
            dataset = _load_saved(datasets, name, split, streaming)
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


def _load_saved(datasets: Any, path: str, split: str | None, streaming: bool) -> "AnyDataset | dict[str, AnyDataset]":
    """What `save_to_disk` left, by a split as `load_dataset` spells it, which calls the only one `train`."""
    saved = datasets.load_from_disk(path)
    parts = saved if isinstance(saved, dict) else {"train": saved}
    if split is not None:
        split_name, bracket, part = split.partition("[")
        if split_name not in parts:
            raise InputError(f"{path} has the splits {', '.join(parts)}, not {split_name}: change --split.")
        part = (
            datasets.ReadInstruction.from_spec(split).to_absolute({split_name: len(parts[split_name])})
            if bracket
            else ()
        )
        chosen = parts[split_name]
        if part:
            chosen = datasets.concatenate_datasets([chosen.select(range(piece.from_, piece.to)) for piece in part])
        parts = {split_name: chosen}
    return {name: dataset.to_iterable_dataset() if streaming else dataset for name, dataset in parts.items()}


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
    except Exception as failed:  # of `datasets` and of whatever library reads the format or the network
        error = failed
        while error.__cause__ is not None:  # `datasets` says of many that an error occurred
            error = error.__cause__
        said = str(error).strip().splitlines()
        reason = said[0].rstrip(".") if said else type(error).__name__
        raise InputError(f"{absent}{name} cannot be read: {reason}.") from failed


# -------------------------------------------------------------------------------------------------------------- columns


def choose_column(dataset: "AnyDataset", flag: str, wanted: str | None, *candidates: list[str]) -> str:
    """The name of the column that is wanted, or else the only candidate of the first list that has one alone."""
    features = dataset.features
    listed = ", ".join(f"{name} ({describe_feature(feature)})" for name, feature in features.items())
    if wanted is None:
        wanted = next((found[0] for found in candidates if len(found) == 1), None)
        if wanted is None:
            raise InputError(f"Pass {flag} to say which column to take, of {listed}.")
    elif wanted not in features:
        raise InputError(f"There is no column {wanted} ({flag}): the dataset has {listed}.")
    return wanted


def choose_image_column(dataset: "AnyDataset", wanted: str | None) -> str:
    image = import_extra("datasets", "data").Image
    images = [name for name, feature in dataset.features.items() if isinstance(feature, image)]
    return choose_column(dataset, "--image_column", wanted, images)


class ClassesOfRows(NamedTuple):
    """What a dataset says of its images' classes.

    Args:
        column (`str`, *optional*): Which says it; None where labels are ignored.
        labels (`np.ndarray`, *optional*): (N,) int64; None of a stream.
        label_of (`dict`, *optional*): The label of each value, where it is not the value itself.
        class_names (list of `str`, *optional*): In the order of these labels.
        known_classes (sequence of `str`, *optional*): In the order that they are to have.
    """

    column: str | None = None
    labels: np.ndarray | None = None
    label_of: dict[str, int] | None = None
    class_names: list[str] | None = None
    known_classes: Sequence[str] | None = None


NO_CLASSES = ClassesOfRows()


def read_classes(
    dataset: "AnyDataset",
    labels: Labels,
    column: str | None,
    known_classes: Sequence[str] | None,
    class_names: Sequence[str] | None,
    num_classes: int | None,
) -> ClassesOfRows:
    """The classes of all rows, by arguments of [`open_dataset`].

    Raises:
        InputError: if there is no column of them, or values in it are none.
    """
    datasets = import_extra("datasets", "data")
    features = dataset.features
    is_stream = isinstance(dataset, datasets.IterableDataset)
    stated_classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if labels == "ignored":
        return NO_CLASSES
    usual = [name for name in LABEL_COLUMNS if name in features]
    column = choose_column(dataset, "--label_column", column, stated_classes, usual)
    kind = getattr(features[column], "dtype", "")
    if "int" not in kind and kind not in ("bool", *TEXT):
        listed = ", ".join(f"{name} ({describe_feature(feature)})" for name, feature in features.items())
        raise InputError(
            f"The labels in column {column} are neither whole numbers nor texts: the dataset has {listed}."
        )
    found, label_of = None if is_stream else read_labels(dataset, column), None
    stated = ["False", "True"] if kind == "bool" else getattr(features[column], "names", None)
    if kind in TEXT:
        known_classes = known_classes or class_names
        stated = known_classes if is_stream else natural_order(set(found.tolist()))
        if stated is None:
            raise InputError(
                f"Column {column} of the stream holds texts: pass --class_names with every text that there is."
            )
        label_of = {name: label for label, name in enumerate(stated)}
        found = None if is_stream else np.array([label_of[text] for text in found.tolist()])
    elif known_classes is None and same_classes(stated, class_names):
        known_classes = class_names
    if known_classes is not None:  # which the stated ones are found among, or which are those of numbers
        class_names = known_classes if stated is None else stated
        num_classes = None
    names = name_classes(f"Column {column}", found, stated, class_names, num_classes)
    return ClassesOfRows(column, found, label_of, names, known_classes)


def describe_feature(feature: Any) -> str:
    """The type of a column, in a word or two."""
    return getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__


def is_array(feature: Any) -> bool:
    """Whether a column holds arrays, or lists of lists, of numbers."""
    return type(feature).__name__ in ("Array2D", "Array3D", "List", "LargeList", "Sequence") or isinstance(
        feature, list
    )


def read_labels(dataset: "Dataset", column: str) -> np.ndarray:
    """A column of labels (N,), int64 or texts.

    Raises:
        InputError: if one is missing.
    """
    labels = dataset.select_columns(column).with_format("arrow")[column][:]
    if labels.null_count:
        raise InputError(
            f"Column {column} holds {labels.null_count} missing labels, but every image needs a label of at least 0: is it "
            "another split that has labels?"
        )
    values = labels.to_numpy(zero_copy_only=False)
    return values.astype(str if getattr(dataset.features[column], "dtype", "") in TEXT else np.int64)
