"""Where training images come from: folders, `datasets` by name, Parquet and webdataset files, as two columns.

Whatever the source, the result is a `datasets.Dataset`, or an `IterableDataset` where it is streamed, of

    image   `datasets.Image(decode=False)`: the encoded bytes, or the path of a file that holds them
    label   `datasets.ClassLabel` with the names of the classes
"""

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_cg.data.images import image_fault, list_class_folders, list_files
from diffusers_cg.errors import InputError, import_extra


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Row = dict[str, dict | int | str | None]
"""`image` {"bytes", "path"}, `label`, and `__key__` if it was read from a webdataset file."""

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
KEY = "__key__"  # webdataset's name of an example
LABEL_COLUMNS = ("label", "cls")
ONLY_CLASS = "images"  # of those without labels
# flags that make no sense of a folder, whose classes are its subfolders
OF_DATASETS = (
    "dataset_config_name",
    "split",
    "image_column",
    "label_column",
    "class_names",
    "num_classes",
    "streaming",
)


def load_training_dataset(
    args: argparse.Namespace,
    validation_split: str | None = None,
    class_names: Sequence[str] | None = None,
    needs_labels: bool = True,
) -> "Dataset | IterableDataset":
    """The images that the flags of `add_data_arguments` name; [`checked_images`] are those that can be read.

    Args:
        args (`argparse.Namespace`): The flags.
        validation_split (`str`, *optional*): Another split than `--split`.
        class_names (sequence of `str`, *optional*): What the classes are called, if not as `--class_names` says.
        needs_labels (`bool`): Or else images without labels are taken, too, as one class called `images`.

    Raises:
        InputError: if the flags name no source or several, or the source does not hold images with labels as needed.
    """
    sources = {f"--{name}": getattr(args, name) for name in ("train_data_dir", "dataset_name", "train_data_files")}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            f"Pass one of {', '.join(sources)} to say where the images are, got {' and '.join(given) or 'none'}."
        )
    if args.train_data_dir is not None:
        needless = [f"--{name}" for name in OF_DATASETS if getattr(args, name) not in (None, False)]
        if validation_split is not None:
            needless.append("--validation_split")
        if needless:
            raise InputError(f"{needless[0]} is for --dataset_name and --train_data_files, not for --train_data_dir.")
        return load_image_folder(args.train_data_dir, needs_labels)
    return labelled_images(
        open_dataset(
            args.dataset_name,
            args.train_data_files,
            config_name=args.dataset_config_name,
            split=validation_split or args.split or "train",
            streaming=args.streaming,
            cache_dir=args.cache_dir,
        ),
        args.image_column,
        args.label_column,
        class_names or args.class_names,
        args.num_classes,
        needs_labels,
    )


def checked_images(dataset: "Dataset | IterableDataset", args: argparse.Namespace) -> "Dataset | IterableDataset":
    """[`verify_images`] with `--verify_images`; a stream cannot be looked through beforehand."""
    if is_streamed(dataset) or not args.verify_images:
        return dataset
    return verify_images(dataset, args.skip_bad_images, args.dataloader_num_workers)


def is_streamed(dataset: "Dataset | IterableDataset") -> bool:
    """Whether the images come in one after the other, their number unknown."""
    return isinstance(dataset, import_extra("datasets", "train").IterableDataset)


def load_image_folder(data_dir: str | Path, needs_labels: bool = True) -> "Dataset":
    """Finds the images of a folder with a subfolder per class (searched at any depth).

    Args:
        data_dir (`str` or `Path`): The folder. Classes are numbered in the order of their sorted names.
        needs_labels (`bool`): Or else a folder with less than two subfolders is one class, images at any depth.

    Raises:
        InputError: if the folder is missing, has a class without files or too few classes, or holds nothing.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise InputError(f"There is no folder {root}: pass a folder with one subfolder of images per class.")
    class_dirs = list_class_folders(root)
    if len(class_dirs) < 2 and not needs_labels:
        return folder_dataset([(file, 0) for file in list_files(root)], root, [ONLY_CLASS])
    if not class_dirs:
        raise InputError(f"{root} has no subfolders: it must hold one subfolder of images per class.")
    if len(class_dirs) == 1:
        raise InputError(f"{root} has one class only, {class_dirs[0].name}: guidance needs at least two.")

    files = [(file, label) for label, directory in enumerate(class_dirs) for file in list_files(directory)]
    counts = np.bincount([label for _, label in files], minlength=len(class_dirs))
    if 0 in counts:
        empty = ", ".join(str(directory) for directory, count in zip(class_dirs, counts) if count == 0)
        raise InputError(f"These class folders hold no images: {empty}. Fill or remove them.")
    return folder_dataset(files, root, [directory.name for directory in class_dirs])


def folder_dataset(files: Sequence[tuple[Path, int]], root: Path, names: Sequence[str]) -> "Dataset":
    """The dataset of files and their labels; raises `InputError` if there are none."""
    if not files:
        raise InputError(f"{root} holds no images.")
    datasets = import_extra("datasets", "train")
    return datasets.Dataset.from_dict(
        {"image": [{"path": str(file), "bytes": None} for file, _ in files], "label": [label for _, label in files]},
        features=datasets.Features(
            {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(names))}
        ),
    )


def open_dataset(
    name: str | None,
    files: Sequence[str] | None = None,
    *,
    config_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    cache_dir: Path | None = None,
) -> "Dataset | IterableDataset":
    """`datasets.load_dataset` of a name or of files, with one sentence where it fails.

    Args:
        name (`str`, *optional*): A dataset of the Hub, or a local folder that `load_dataset` reads.
        files (sequence of `str`, *optional*): In its place: Parquet or webdataset files (paths, patterns or URLs); the
            suffix tells which.
        config_name (`str`, *optional*): Configuration of a dataset that has several.
        split (`str`): Which of its splits; a slice such as `"train[:10%]"` where it is not streamed.
        streaming (`bool`): Read it while training, in place of first putting it in the cache.
        cache_dir (`Path`, *optional*): Where that cache is; `datasets`' own place by default.

    Raises:
        InputError: if there is no such dataset, or it cannot be read.
    """
    datasets = import_extra("datasets", "train")
    stated = {"path": name}
    if files is not None:
        stated = {"path": builder_of(files), "data_files": [str(file) for file in files]}
    with reading(name or files[0]):
        return datasets.load_dataset(
            **stated,
            name=config_name,
            split=split,
            streaming=streaming,
            cache_dir=None if cache_dir is None else str(cache_dir),
        )


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
            f"--train_data_files takes files of one kind, Parquet (.parquet) or webdataset (.tar), got {', '.join(files)}."
        )
    return BUILDERS[suffix]


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what goes wrong while a dataset is read into a [`InputError`] that names the dataset."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of `datasets` and of whatever library reads the format or the network
        said = str(error).strip().splitlines()
        raise InputError(f"{name} cannot be read: {said[0].rstrip('.') if said else type(error).__name__}.") from error


# ------------------------------------------------------------------------------------------------------------- columns


def labelled_images(
    dataset: "Dataset | IterableDataset",
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    needs_labels: bool = True,
) -> "Dataset | IterableDataset":
    """The two columns of a dataset that hold the images and their labels.

    Args:
        dataset (`Dataset` or `IterableDataset`): As `load_dataset` gives it.
        image_column (`str`, *optional*): By default the only column of images.
        label_column (`str`, *optional*): By default the only column of class labels, or one called `label` or `cls`.
        class_names (sequence of `str`, *optional*): What the classes are called, in the order of their labels; by
            default as the dataset says, and their numbers where it does not.
        num_classes (`int`, *optional*): Number of classes; by default as the dataset says, or one more than the
            greatest label where it does not.
        needs_labels (`bool`): Or else a dataset in which no column of labels is found is one class.

    Raises:
        InputError: if there is no such column, the labels are not whole numbers from 0, or the number of classes of a
            stream is not known.
    """
    datasets = import_extra("datasets", "train")
    if dataset.features is None:
        with reading("The dataset"):
            dataset = dataset._resolve_features()
    features = dataset.features
    listed = ", ".join(f"{name} ({describe_feature(feature)})" for name, feature in features.items())

    def pick(flag: str, wanted: str | None, *candidates: list[str]) -> str:
        if wanted is None:
            wanted = next((found[0] for found in candidates if len(found) == 1), None)
            if wanted is None:
                raise InputError(f"Pass {flag} to say which column to take, of {listed}.")
        elif wanted not in features:
            raise InputError(f"There is no column {wanted} ({flag}): the dataset has {listed}.")
        return wanted

    image_column = pick(
        "--image_column", image_column, [name for name, f in features.items() if isinstance(f, datasets.Image)]
    )
    class_columns = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)]
    usual_columns = [name for name in LABEL_COLUMNS if name in features]
    if label_column is None and not (needs_labels or class_columns or usual_columns):
        return unlabelled_images(dataset, image_column)
    label_column = pick("--label_column", label_column, class_columns, usual_columns)
    label = features[label_column]
    if "int" not in getattr(label, "dtype", ""):
        raise InputError(f"The labels in column {label_column} are not whole numbers: the dataset has {listed}.")

    names = name_classes(dataset, label_column, class_names, num_classes)
    dataset = dataset.select_columns([image_column, label_column] + ([KEY] if KEY in features else []))
    with reading(f"Column {image_column} or {label_column}"):
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        dataset = cast_labels(dataset, label_column, datasets.ClassLabel(names=names))
    renamed = {image_column: "image", label_column: "label"}
    return dataset.rename_columns({old: new for old, new in renamed.items() if old != new})


def unlabelled_images(dataset: "Dataset | IterableDataset", image_column: str) -> "Dataset | IterableDataset":
    """The images of a dataset without labels, as one class."""
    datasets = import_extra("datasets", "train")
    feature = datasets.ClassLabel(names=[ONLY_CLASS])
    dataset = dataset.select_columns([image_column] + ([KEY] if KEY in dataset.features else []))
    dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    if image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    if is_streamed(dataset):
        features = datasets.Features({**dataset.features, "label": feature})
        return dataset.map(lambda row: {"label": 0}, features=features)
    return dataset.add_column("label", [0] * len(dataset), feature=feature)


def cast_labels(dataset: "Dataset | IterableDataset", column: str, feature) -> "Dataset | IterableDataset":
    """The dataset with another type of labels, its images not copied as `cast_column` does."""
    if dataset.features[column] == feature:
        return dataset
    if is_streamed(dataset):
        return dataset.cast_column(column, feature)
    labels = dataset.select_columns(column).cast_column(column, feature)
    return import_extra("datasets", "train").concatenate_datasets([dataset.remove_columns(column), labels], axis=1)


def describe_feature(feature) -> str:
    """The type of a column, in a word or two."""
    return getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__


def name_classes(
    dataset: "Dataset | IterableDataset", column: str, class_names: Sequence[str] | None, num_classes: int | None
) -> list[str]:
    """Names of the classes whose labels a column holds, a name for each label from 0: see [`labelled_images`]."""
    stated = getattr(dataset.features[column], "names", None)
    wanted = {
        len(names) if isinstance(names, Sequence) else names
        for names in (stated, class_names, num_classes)
        if names is not None
    }
    if len(wanted) > 1:
        raise InputError(
            f"The number of classes is not clear: the dataset names {len(stated) if stated else 'none'}, --class_names "
            f"{len(class_names) if class_names else 'none'}, and --num_classes is {num_classes}."
        )
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise InputError(f"--class_names must differ from each other, got {' '.join(class_names)}.")
    if is_streamed(dataset):
        if not wanted:
            raise InputError(
                f"Column {column} of the stream holds plain numbers: pass --num_classes, or --class_names with a name for "
                "each."
            )
    else:
        found = labels_found(dataset, column)
        if not wanted and not np.array_equal(found, np.arange(len(found))):
            raise InputError(
                f"Column {column} holds {len(found)} different labels from {found[0]} to {found[-1]}, where 0 to "
                f"{len(found) - 1} are expected: pass --num_classes {found[-1] + 1} to train with classes that have no "
                "images."
            )
        wanted = wanted or {len(found)}
        if found[-1] >= min(wanted):
            raise InputError(f"Column {column} holds label {found[-1]}, but there are {min(wanted)} classes, from 0.")
    (count,) = wanted
    if count < 2:
        raise InputError(f"There is one class only in column {column}: guidance needs at least two.")
    return list(class_names or stated or map(str, range(count)))


def labels_found(dataset: "Dataset", column: str) -> np.ndarray:
    """The different labels in a column, in order.

    Raises:
        InputError: if there is none, one is missing, or one is negative.
    """
    labels = dataset.with_format("arrow")[column][:]
    if len(labels) == 0:
        raise InputError("The dataset is empty.")
    found = np.unique(labels.drop_null().to_numpy())
    if labels.null_count or found[0] < 0:
        fault = f"label {found[0]}" if len(found) and found[0] < 0 else f"{labels.null_count} missing labels"
        raise InputError(
            f"Column {column} holds {fault}, but every image needs a label of at least 0: is it another split that has "
            "labels?"
        )
    return found


# ---------------------------------------------------------------------------------------------------- images that fail


def encoded_image(row: Row) -> str | BinaryIO:
    """What PIL is to open of a row; where the image is missing, a file without content."""
    image = row["image"] or {"bytes": b""}
    if image["bytes"] is not None:
        return io.BytesIO(image["bytes"])
    if "://" in image["path"]:
        with import_extra("fsspec", "train").open(image["path"], "rb") as file:
            return io.BytesIO(file.read())
    return image["path"]


def row_name(row: Row, number: int) -> str:
    """How to call a row's image in a sentence: by its file, by what name there is, or by its number."""
    image = row["image"] or {"path": None, "bytes": None}
    if image["path"] is not None and image["bytes"] is None:
        return image["path"]
    return f"image {row.get(KEY) or image['path'] or number}"


class EncodedImages(torch.utils.data.Dataset):
    """The images of a dataset, as [`encoded_image`]."""

    def __init__(self, dataset: "Dataset"):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str | BinaryIO:
        return encoded_image(self.dataset[index])


class ImageFaults(torch.utils.data.Dataset):
    """Why each of some files cannot be read as an image; None where it can."""

    def __init__(self, files: Sequence[str | Path | BinaryIO] | EncodedImages):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str | None:
        return image_fault(self.files[index])


def find_bad_images(
    files: Sequence[str | Path | BinaryIO] | EncodedImages,
    name: Callable[[int], str],
    skip_bad_images: bool,
    num_workers: int = 0,
) -> set[int]:
    """Decodes every image once, so that a broken one stops nothing later.

    Args:
        files (sequence): What to look at.
        name (callable): What to call the one with a number.
        skip_bad_images (`bool`): Say which images cannot be read, instead of refusing them.
        num_workers (`int`): Processes that decode.

    Returns:
        `set[int]`: The numbers of the images that cannot be read.

    Raises:
        InputError: if one cannot be read (the first few are named) and they are not skipped.
    """
    loader = DataLoader(
        ImageFaults(files),
        batch_size=32,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # not the one that everything else is drawn from
    )
    faults = {}
    with tqdm(total=len(files), desc="Checking images", unit="image", leave=False) as progress_bar:
        for batch in loader:
            faults |= {progress_bar.n + i: fault for i, fault in enumerate(batch) if fault is not None}
            progress_bar.update(len(batch))
    if faults:
        named = "; ".join(f"{name(index)} ({fault})" for index, fault in list(faults.items())[:5])
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        if not skip_bad_images:
            raise InputError(
                f"{len(faults)} of {len(files)} images cannot be read: {named}{more}. Remove them, or pass "
                "--skip_bad_images to go on without them."
            )
        print(f"Skipped {len(faults)} of {len(files)} images, which cannot be read: {named}{more}.", flush=True)
    return set(faults)


def readable_images(files: Sequence[Path], skip_bad_images: bool = False) -> list[Path]:
    """The files that are images, by [`find_bad_images`]."""
    bad = find_bad_images(files, lambda index: str(files[index]), skip_bad_images)
    return [file for index, file in enumerate(files) if index not in bad]


def verify_images(dataset: "Dataset", skip_bad_images: bool = False, num_workers: int = 0) -> "Dataset":
    """The rows of a dataset of this module whose images can be read, by [`find_bad_images`].

    Raises:
        InputError: as there, or if no image of a class is left.
    """
    bad = find_bad_images(
        EncodedImages(dataset), lambda index: row_name(dataset[index], index), skip_bad_images, num_workers
    )
    if not bad:
        return dataset
    good = dataset.select([index for index in range(len(dataset)) if index not in bad])
    before, after = (set(part["label"]) for part in (dataset, good))
    if before != after:
        names = ", ".join(dataset.features["label"].int2str(sorted(before - after)))
        raise InputError(f"No image of these classes can be read: {names}. Replace or remove them.")
    return good
