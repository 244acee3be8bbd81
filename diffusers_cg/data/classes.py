"""Classes: which label a name has.

One rule, whatever the names come from (class folders, file names, a column, a model): where it is known which classes there
are (those of a model, of a checkpoint, of the images that are trained on), a name's label is its place among them. Otherwise
names are put in natural order, in which numbers count as numbers: `2` before `10`, `class_2` before `class_10`.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from diffusers_cg.errors import InputError


Labels = Literal["ignored", "optional", "required"]
"""Whether a source must say of each image which class it is of. Images without classes, if they may be, are one class."""
ONLY_CLASS = "images"

NUMBER = re.compile("[0-9]+")
MAX_NAMED = 10


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted as a person would: runs of digits by their value."""
    return sorted(names, key=lambda name: (_parts(name), name))


def _parts(name: str) -> list[str | int]:
    """Text and numbers in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(f"({NUMBER.pattern})", name))]


def labels_of_names(where: str, names: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """The labels (len(names),) int64 that names have among known classes.

    Equal are also numbers with and without leading zeros, and letters in one or several code points (as file systems
    store them). Where no known class is called by a number, numbers are labels: `sample` so names its folders.

    Args:
        where (`str`): What holds the names.
        names (sequence of `str`): Each once.
        known (sequence of `str`): The names of the classes, in the order of their labels.

    Raises:
        InputError: if a name is none of them (the nearest is named), or two are the same one.
    """
    exact = {name: label for label, name in enumerate(known)}
    alike = {_canonical(name): label for label, name in enumerate(known)}
    if all(map(NUMBER.fullmatch, names)) and not any(map(NUMBER.fullmatch, known)):
        alike |= {str(label): label for label in range(len(known))}
    labels = [exact.get(name, alike.get(_canonical(name))) for name in names]
    unknown = [name for name, label in zip(names, labels) if label is None]
    if unknown:
        near = [(name, difflib.get_close_matches(name, known, n=1, cutoff=0)) for name in unknown[:3]]
        listed = ", ".join(f"{name} (the nearest is {nearest})" for name, (nearest,) in near)
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise InputError(
            f"{where} has classes that are none of the {len(known)} known ones ({list_names(known)}): {listed}{more}."
        )
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        same = [name for name, label in zip(names, labels) if label == twice]
        raise InputError(f"{where} has several names for the class {known[twice]}: {', '.join(same)}.")
    return np.array(labels, dtype=np.int64)


def labels_of_numbers(where: str, names: Sequence[str], num_classes: int) -> np.ndarray:
    """The labels (len(names),) int64 of names, in natural order, where it is known how many classes there are and no more.

    Numbers below that are labels; other names must be as many as the classes.

    Raises:
        InputError: if they are not, or two are the same number.
    """
    if all(map(NUMBER.fullmatch, names)) and all(int(name) < num_classes for name in names):
        return labels_of_names(where, names, list(map(str, range(num_classes))))
    if len(names) != num_classes:
        raise InputError(
            f"{where} has {len(names)} classes, but the model knows {num_classes} and not their names: there must be one of "
            f"images for each, in the order of training, or folders named by labels, 0 to {num_classes - 1}."
        )
    return np.arange(len(names))


def _canonical(name: str) -> str:
    return str(int(name)) if NUMBER.fullmatch(name) else unicodedata.normalize("NFC", name)


def same_classes(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Whether two lists name the same classes, in whatever order."""
    return one is not None and other is not None and sorted(map(_canonical, one)) == sorted(map(_canonical, other))


def list_names(names: Sequence[str]) -> str:
    """The first few names, and the last one."""
    shown = names if len(names) <= MAX_NAMED else [*names[: MAX_NAMED - 1], "...", names[-1]]
    return ", ".join(shown)


def name_classes(
    where: str,
    labels: np.ndarray | None,
    stated: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> list[str]:
    """Names of the classes of numbers, one for each label from 0.

    Args:
        where (`str`): What holds the labels.
        labels (`np.ndarray`, *optional*): (N,), all of them; None of a stream.
        stated (sequence of `str`, *optional*): What the source calls the classes.
        class_names (sequence of `str`, *optional*): What the user does; by default as the source, or their numbers.
        num_classes (`int`, *optional*): How many there are; by default as many as names, or one more than the greatest
            label.

    Raises:
        InputError: if the three do not agree, there are less than two classes, a label is none of them, or, of unnamed
            classes, one has no images.
    """
    wanted = {len(names) for names in (stated, class_names) if names is not None} | {num_classes} - {None}
    if len(wanted) > 1:
        raise InputError(
            f"The number of classes is not clear: the dataset names {len(stated) if stated else 'none'}, --class_names "
            f"{len(class_names) if class_names else 'none'}, and --num_classes is {num_classes}."
        )
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise InputError(f"--class_names must differ from each other, got {' '.join(class_names)}.")
    if labels is not None:
        found = np.unique(labels)
        if found[0] < 0:
            raise InputError(
                f"{where} holds label {found[0]}, but every image needs a label of at least 0: is it another split that "
                "has labels?"
            )
        if not wanted and not np.array_equal(found, np.arange(len(found))):
            raise InputError(
                f"{where} holds {len(found)} different labels from {found[0]} to {found[-1]}, where 0 to "
                f"{len(found) - 1} are expected: pass --num_classes {found[-1] + 1} to train with classes that have no "
                "images."
            )
        wanted = wanted or {len(found)}
        if found[-1] >= min(wanted):
            raise InputError(f"{where} holds label {found[-1]}, but there are {min(wanted)} classes, from 0.")
    elif not wanted:
        raise InputError(
            f"{where} of the stream holds plain numbers: pass --num_classes, or --class_names with a name for each."
        )
    (count,) = wanted
    if count < 2:
        raise InputError(f"There is one class only in {where}: guidance needs at least two.")
    return list(class_names or stated or map(str, range(count)))
