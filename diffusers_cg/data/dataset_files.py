"""Images of `datasets`: of the Hub, of a folder, or already loaded."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers_cg.data.encoded_images import EncodedFile
from diffusers_cg.errors import InputError, MissingExtraError, import_extra


if TYPE_CHECKING:
    from datasets import Dataset


DATASET_SUFFIXES = ("parquet", "arrow", "tar")
SAVED_TO_DISK = ("dataset_dict.json", "state.json")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
BATCH = 64  # rows read at once


class DatasetFiles(Sequence[EncodedFile]):
    """The encoded images of a dataset's column, read from disk when they are asked for."""

    def __init__(self, dataset: "Dataset", column: str, source: str):
        datasets = import_extra("datasets", "eval")
        self.rows = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column, self.source = column, source

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedFile:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._file(index, self.rows[index][self.column])

    def __iter__(self) -> Iterator[EncodedFile]:
        for start in range(0, len(self), BATCH):
            values = self.rows[start : start + BATCH][self.column]
            yield from (self._file(start + offset, value) for offset, value in enumerate(values))

    def _file(self, index: int, value: dict | None) -> EncodedFile:
        name = f"row {index} of {self.source}"
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise InputError(f"There is no image in the column {self.column}, {name}: remove such rows.")
        data = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        return EncodedFile(name, data)


def is_dataset(source: object) -> bool:
    """Whether something is a dataset, names a folder of one, or can be the name of one on the Hub."""
    loaded = sys.modules.get("datasets")
    if loaded is not None and isinstance(source, loaded.Dataset):
        return True
    if not isinstance(source, (str, Path)):
        return False
    path = Path(source)
    if path.is_dir():
        return _is_saved_to_disk(path) or any(next(path.rglob(f"*.{suffix}"), None) for suffix in DATASET_SUFFIXES)
    is_name = isinstance(source, str) and HUB_NAME.fullmatch(source) is not None
    return is_name and not path.exists() and path.suffix != ".npz"


def open_dataset(
    source: "str | Path | Dataset",
    split: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
) -> DatasetFiles:
    """The images of a dataset.

    Args:
        source (`str`, `Path` or `datasets.Dataset`): A name on the Hub, a folder that `datasets.load_dataset` or
            `datasets.load_from_disk` reads, or a dataset itself.
        split (`str`, *optional*): Which one, as `datasets` spells it (`train`, `train[:10000]`); the only one by
            default.
        config_name (`str`, *optional*): Which configuration, where there are several.
        image_column (`str`, *optional*): The only column of images by default.

    Raises:
        MissingExtraError: if `datasets` is not installed.
        ValueError: if it cannot be loaded, or a choice is missing or is none of those there are.
    """
    is_loaded = not isinstance(source, (str, Path))
    name = "dataset" if is_loaded else str(source)
    dataset = source if is_loaded else _load(name, split, config_name)
    if isinstance(dataset, dict):
        if len(dataset) > 1:
            raise InputError(f"{name} has the splits {', '.join(dataset)}: pass one with --split.")
        (dataset,) = dataset.values()
    datasets = import_extra("datasets", "eval")
    columns = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if image_column is None and len(columns) == 1:
        image_column = columns[0]
    if image_column not in columns:
        if not columns:
            raise InputError(f"{name} has no column of images, only {', '.join(dataset.features)}.")
        problem = "several columns of images" if image_column is None else f"no column of images {image_column}"
        raise InputError(f"{name} has {problem}: pass one of {', '.join(columns)} with --image_column.")
    return DatasetFiles(dataset, image_column, name if split is None else f"{name}, split {split}")


def _load(name: str, split: str | None, config_name: str | None) -> "Dataset | dict[str, Dataset]":
    path = Path(name)
    try:
        datasets = import_extra("datasets", "eval")
    except MissingExtraError as error:
        absent = "" if path.is_dir() else f"There is no file or folder {name}, and it may be a dataset of the Hub. "
        raise MissingExtraError(f"{absent}{error}") from error
    try:
        if not (path.is_dir() and _is_saved_to_disk(path)):
            return datasets.load_dataset(name, config_name, split=split)
        loaded = datasets.load_from_disk(name)
    except Exception as error:  # whatever a loader, pyarrow or the network raises
        absent = "" if path.is_dir() else f"There is no file or folder {name}, and "
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{absent}{name} cannot be loaded as a dataset ({reason.rstrip('.')}).") from error
    if split is None:
        return loaded
    if not isinstance(loaded, dict) or split not in loaded:
        there = f"the splits {', '.join(loaded)}" if isinstance(loaded, dict) else "no splits"
        raise InputError(f"{name} has {there}, not {split}: change --split.")
    return loaded[split]


def _is_saved_to_disk(path: Path) -> bool:
    return any((path / file).is_file() for file in SAVED_TO_DISK)
