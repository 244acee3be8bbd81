"""Files of a folder; and folders that are complete or absent: written beside their place, then renamed into it."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers_cg.errors import InputError


def list_files(directory: Path) -> list[Path]:
    """All files below a folder, sorted; hidden ones and those in hidden folders are left out."""
    return [
        file
        for file in sorted(directory.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(directory).parts)
    ]


def printable(path: str | Path) -> str:
    """A path as UTF-8 can write it: bytes of its name that are none stand as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: if it holds anything else.
    """
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # the first also where bytes are no UTF-8
        raise InputError(f"{path} is not a JSON file ({error}): mend it, or move it away.") from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path} must hold a JSON object, {{...}}, got {type(values).__name__}: mend it, or move it away."
        )
    return values


@contextmanager
def atomic_directory(path: str | Path, replaces: str = "*") -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes its place when the block ends without an error.

    What stood at `path` before stays untouched until then, and for good if the block fails or the process dies. A
    leftover of a killed process, `.NAME.partial`, is removed by the next attempt.

    Args:
        path (`str` or `Path`): The folder to write.
        replaces (`str`): Pattern of a file that a folder must hold to be replaced, so that a mistyped path costs nothing.

    Raises:
        NotADirectoryError: if `path` is a file.
        FileExistsError: if `path` is a folder of something else, or the working directory lies in it.
    """
    path = Path(os.path.abspath(path))  # which has a name, as "." has not
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if Path.cwd().is_relative_to(path):
        raise FileExistsError(
            errno.EEXIST,
            "The working directory lies in it, and it would be replaced whole: name a folder in it",
            str(path),
        )
    if path.exists() and any(path.iterdir()) and not any(path.glob(replaces)):
        raise FileExistsError(
            errno.EEXIST,
            f"This folder has no {replaces} and would be replaced whole: name another or empty it",
            str(path),
        )
    partial = partial_path(path)
    replaced = path.with_name(f".{path.name}.replaced")
    if replaced.exists() and not path.exists():  # killed between the two renames below
        replaced.rename(path)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush(partial)
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
    except BaseException:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """Where what is written whole or not at all lies until it is renamed."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_update(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder whose entries replace those of the same names in `path` when the block ends.

    Folders move first and files last, so that an index file never names a folder that is not there yet.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    staging = path / ".staging"
    with atomic_directory(staging) as partial:
        yield partial
    for entry in sorted(staging.iterdir(), key=Path.is_file):
        if entry.is_dir():
            with atomic_directory(path / entry.name) as place:
                place.rmdir()
                entry.rename(place)
        else:
            os.replace(entry, path / entry.name)
    staging.rmdir()


def _flush(directory: Path) -> None:
    # a rename may reach the disk before the data it names
    for file in directory.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
