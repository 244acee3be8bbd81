"""Images that are files of a folder, and their classes: its subfolders, or the beginnings of the files' names."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusers_cg.data.classes import ONLY_CLASS, Labels, labels_of_names, labels_of_numbers, natural_order
from diffusers_cg.data.files import printable
from diffusers_cg.data.image_sets import EncodedImages, StoredImage, describe_left_out
from diffusers_cg.data.images import ImageRange
from diffusers_cg.errors import InputError


# files that lie beside images and are none by their names; all others are taken for images
NO_IMAGES = re.compile(
    r"\.(arrow|bin|cache|caption|cfg|csv|css|db|docx?|gz|html|ini|ipynb|js|jsonl?|lock|log|mat|md|md5|npy|npz|parquet|pdf|"
    r"pickle|pkl|pth?|py|rar|safetensors|sh|sha256|sqlite|tar|tgz|toml|tsv|txt|url|xlsx?|xml|xmp|ya?ml|zip)"
)


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
        return StoredImage(printable(path), path, self.label(index), self.image_range)


def open_folder(
    folder: str | Path,
    labels: Labels = "ignored",
    *,
    known_classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    image_range: ImageRange | None = None,
    leave_out: Sequence[str] = (),
    class_from_file_name: bool = False,
    resolution: int | None = None,
    progress_bar: bool = False,
) -> FolderImages:
    """Opens the images of a folder, at any depth, through links too (each folder once). Hidden files and those that are no
    images by their suffix (`NO_IMAGES`) are left out, and counted in [`ImageSet.summary`].

    Args:
        folder (`str` or `Path`): With labels, it has a subfolder for each class, numbered by the rule in `classes.py`; with
            optional ones, a folder with less than two subfolders, or with images beside them, is one class.
        known_classes (sequence of `str`, *optional*): The classes that its own are among; some may have no images.
        num_classes (`int`, *optional*): Number of classes that there must be where no names are known; as above.
        class_from_file_name (`bool`): The class is not the subfolder but what stands before the first `_` in a file's
            name, as in `dog_0001.png`: the layout of the paper's own code.
        labels, image_range, leave_out, resolution, progress_bar: As [`open_images`].

    Raises:
        InputError: if the folder is missing, has a class without files or too few classes, or holds nothing.
    """
    root = Path(folder)
    if not root.is_dir():
        layout = "of images" if labels == "ignored" else "with one subfolder of images per class"
        raise InputError(f"There is no folder {root}: pass a folder {layout}.")
    left_out = Counter()
    files = list(list_images(root, left_out, leave_out))
    owners = names = None  # of each file its class; all classes
    if labels != "ignored" and class_from_file_name:
        files, owners = _by_file_name(root, files, left_out)
        names = natural_order(set(owners))
    elif labels == "required":
        files, owners = _by_subfolder(root, files, left_out)
        names = natural_order(class_folders(root))
    elif labels == "optional":
        owners = [file.relative_to(root).parts[0] if file.parent != root else "" for file in files]
        names = natural_order(set(owners))
        if len(names) < 2 or names[0] == "":
            owners, names = [ONLY_CLASS] * len(files), [ONLY_CLASS]
    if names is not None and labels == "required":
        _check_classes(root, names, owners, left_out, known_classes is None and num_classes is None)
    if not files:
        raise InputError(f"{printable(root)} holds no images{describe_left_out(left_out)}.")
    numbers = class_names = None
    if names is not None:
        class_names = list(map(printable, names))
        numbers = np.arange(len(names))
        if known_classes is not None:
            numbers = labels_of_names(printable(root), class_names, known_classes)
            class_names = list(known_classes)
        elif num_classes is not None:
            numbers = labels_of_numbers(printable(root), class_names, num_classes)
            class_names = class_names if len(class_names) == num_classes else list(map(str, range(num_classes)))
        places = {name: place for place, name in enumerate(names)}
        numbers = numbers[[places[owner] for owner in owners]]
    return FolderImages(
        source=printable(root),
        files=np.array([os.fsencode(file) for file in files]),
        labels=numbers,
        class_names=class_names,
        image_range=image_range,
        left_out=dict(+left_out),
        resolution=resolution,
        progress_bar=progress_bar,
    )


def list_images(root: Path, left_out: Counter, unwanted: Sequence[str] = ()) -> Iterator[Path]:
    """The files below a folder that may be images, in the order of their paths, each folder once however it is linked.

    Args:
        root (`Path`): The folder.
        left_out (`Counter`): What else there is, counted here.
        unwanted (sequence of `str`): Names of files to leave out on top.
    """
    seen = set()

    def is_new(directory: Path) -> bool:
        status = directory.stat()
        is_known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        left_out["linked folders that are read already"] += is_known
        return not is_known

    def listed(directory: Path) -> Iterator[Path]:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        left_out["hidden"] += len(entries) - len(shown)
        # which know without asking the disk again, but for links
        there = {entry.name: directory / entry.name if entry.is_symlink() else entry for entry in shown}
        subfolders = {name for name, entry in there.items() if entry.is_dir()}
        # all of them at once: a class folder is none of another class that links to it
        new_ones = {name for name in sorted(subfolders) if is_new(directory / name)}
        for name, entry in there.items():
            suffix = Path(name).suffix.lower()
            if directory == root and name in unwanted:
                left_out[name] += 1
            elif name in subfolders:
                if name in new_ones:
                    yield from listed(directory / name)
            elif not entry.is_file():
                left_out["broken links"] += 1
            elif NO_IMAGES.fullmatch(suffix):
                left_out[suffix] += 1
            else:
                yield directory / name

    is_new(root)
    yield from listed(root)


def class_folders(root: Path) -> list[str]:
    """The names of a folder's subfolders; hidden ones are left out."""
    return [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _by_subfolder(root: Path, files: Sequence[Path], left_out: Counter) -> tuple[list[Path], list[str]]:
    """The files that lie in subfolders, and the subfolder of each."""
    inside = [file for file in files if file.parent != root]
    left_out["beside the class folders"] += len(files) - len(inside)
    return inside, [file.relative_to(root).parts[0] for file in inside]


def _by_file_name(root: Path, files: Sequence[Path], left_out: Counter) -> tuple[list[Path], list[str]]:
    """The files whose names have a `_`, and what stands before it."""
    named = [file for file in files if "_" in file.name]
    left_out["without a class before a _ in their names"] += len(files) - len(named)
    return named, [file.name.partition("_")[0] for file in named]


def _check_classes(root: Path, names: Sequence[str], owners: Sequence[str], left_out: Counter, are_all: bool) -> None:
    """Raises `InputError` if there are no classes or, where these are all of them, one has no images or is alone."""
    if not names:
        raise InputError(
            f"{root} has no subfolders{describe_left_out(left_out)}: it must hold one subfolder of images per class, or files "
            "called CLASS_NUMBER with --class_from_file_name."
        )
    if not are_all:
        return
    if len(names) == 1:
        raise InputError(f"{root} has one class only, {printable(names[0])}: guidance needs at least two.")
    empty = [printable(root / name) for name in names if name not in set(owners)]
    if empty:
        raise InputError(f"These class folders hold no images: {', '.join(empty)}. Fill or remove them.")
