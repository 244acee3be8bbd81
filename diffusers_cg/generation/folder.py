"""A folder of samples: a file for each image and, beside them, the settings that they follow from."""

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusers_cg.data.files import list_files
from diffusers_cg.errors import InputError
from diffusers_cg.generation.requests import Request


# what lies on top of a folder of samples, beside the images
GRID_FILE, SETTINGS_FILE, NPZ_FILE = "grid.png", "sampling.json", "samples.npz"
BESIDE_SAMPLES = (GRID_FILE, SETTINGS_FILE, NPZ_FILE)


class SampleFolder:
    """The files of one set of samples. An image is there whole or not at all, whenever its process is killed.

    Args:
        path (`Path`): The folder, which need not exist.
    """

    def __init__(self, path: Path):
        self.path = path

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Compares the settings with those of the images that are there; nothing is written.

        Raises:
            NotADirectoryError: if the path is a file.
            ValueError: if the folder holds images of other settings, or something else.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file: name a folder for the samples.")
        file = self.path / SETTINGS_FILE
        if not file.is_file():
            if any(entry != self._partial(SETTINGS_FILE) for entry in self.path.iterdir()):
                raise InputError(
                    f"{self.path} holds something else than samples (it has no {SETTINGS_FILE}): name another folder."
                )
            return
        try:
            before = flatten(json.loads(file.read_text()))
        except json.JSONDecodeError as error:
            raise InputError(f"{file} is damaged ({error}): name another folder.") from error
        now = flatten(settings)
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if differing:
            stated = ", ".join(f"{name} {before.get(name)} (now {now.get(name)})" for name in differing)
            raise InputError(f"{self.path} holds samples of other settings: {stated}. Name another folder.")

    def write_settings(self, settings: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self._partial(SETTINGS_FILE)
        partial.write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(partial, self.path / SETTINGS_FILE)

    def _partial(self, name: str) -> Path:
        """Where a file is written before it is renamed."""
        return self.path / f".{name}"

    # -------------------------------------------------------------------------------------------------------- images

    def missing(self, requests: Sequence[Request]) -> set[Request]:
        """Those whose files are not there yet."""
        there = self._paths()
        return {request for request in requests if request.path not in there}

    def check_nothing_else(self, requests: Sequence[Request]) -> None:
        """Raises `ValueError` where the folder holds more images than these, which its readers would see, too."""
        more = self._paths() - {request.path for request in requests}
        if more:
            raise InputError(
                f"{self.path} holds more than the {len(requests)} samples asked for, {min(more)} for one: name another "
                "folder, or ask for as many."
            )

    def _paths(self) -> set[Path]:
        if not self.path.is_dir():
            return set()
        return {file.relative_to(self.path) for file in list_files(self.path)} - set(map(Path, BESIDE_SAMPLES))

    def save(self, request: Request, image: np.ndarray) -> None:
        """Writes an image (H, W, C) uint8."""
        path = self.path / request.path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(partial, format="PNG")
        os.replace(partial, path)

    def read(self, request: Request) -> Image.Image:
        with Image.open(self.path / request.path) as image:
            return image.copy()

    # ---------------------------------------------------------------------------------------------------------- npz

    def holds_npz(self, num_samples: int) -> bool:
        """Whether `samples.npz` is there with as many images."""
        if not (self.path / NPZ_FILE).is_file():
            return False
        with np.load(self.path / NPZ_FILE) as arrays, arrays.zip.open("arr_0.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, _ = np.lib.format.read_array_header_1_0(member)
        return shape[0] == num_samples

    def write_npz(self, requests: Sequence[Request]) -> None:
        """Gathers images in `samples.npz`: `arr_0` (N, H, W, C) uint8 and, where they have classes, `arr_1` (N,) int64.

        One image at a time is in memory.
        """
        partial = self._partial(NPZ_FILE)
        with zipfile.ZipFile(partial, "w") as archive:
            # members of a fixed date: the same samples make the same file
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
                for number, request in enumerate(requests):
                    image = np.asarray(self.read(request))
                    image = image[..., None] if image.ndim == 2 else image
                    if number == 0:
                        shape = (len(requests), *image.shape)
                        header = {"descr": image.dtype.str, "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(member, header)
                    member.write(image.tobytes())
            if requests[0].class_label is not None:
                labels = np.array([request.class_label for request in requests], dtype=np.int64)
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as member:
                    np.lib.format.write_array(member, labels)
        os.replace(partial, self.path / NPZ_FILE)

    def remove_images(self, requests: Sequence[Request]) -> None:
        for folder in {request.path.parent for request in requests}:
            shutil.rmtree(self.path / folder)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the path of their names; where a model lies does not matter."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        elif name != "path":
            flat[prefix + name] = value
    return flat
