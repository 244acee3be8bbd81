"""A folder of samples: which images it is to hold, a file for each, and beside them the settings that they follow from."""

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusers_cg.data import ImageSet, open_images
from diffusers_cg.data.files import list_files, read_json
from diffusers_cg.diffusion import seeded_generator
from diffusers_cg.errors import InputError


SETTINGS_FILE, GRID_FILE, NPZ_FILE = "sampling.json", "grid.png", "samples.npz"
EVALUATIONS = "evaluations"  # the one entry of the settings that no image follows from
BESIDE_SAMPLES = (SETTINGS_FILE, GRID_FILE, NPZ_FILE)
"""Names of what lies on top of a folder of samples, beside the images: for readers to leave out."""


@dataclass(frozen=True)
class ImageToDraw:
    """One image of a set, which follows from the set's seed and from these alone.

    Args:
        class_label (`int`, *optional*): Its class; None where nobody needs one.
        number (`int`): Its number among those of its class.
        class_digits (`int`): How many digits its class has in the name of its folder, with leading zeros.
    """

    class_label: int | None
    number: int
    class_digits: int = 1

    @property
    def path(self) -> Path:
        """Its file, by class and number."""
        folder = "images" if self.class_label is None else f"{self.class_label:0{self.class_digits}d}"
        return Path(folder) / f"{self.number:05d}.png"

    def generator(self, seed: int, stage: int) -> torch.Generator:
        """Source of all its randomness in a stage (0: the base, 1: the upsampler), which no other image has a part in."""
        return seeded_generator(seed, self.class_label or 0, self.number, stage)


def images_to_draw(
    num_samples: int,
    classes: Sequence[int] | None = None,
    random_classes: bool = False,
    seed: int = 0,
    class_digits: int = 1,
) -> list[ImageToDraw]:
    """As many images, in turn of every class; of none in particular where `classes` is None.

    The list for fewer images is the beginning of the one for more.

    Args:
        num_samples (`int`): At least 1.
        classes (sequence of `int`, *optional*): Each once.
        random_classes (`bool`): Draw the class of every image, uniformly, instead of taking turns.
        seed (`int`): Of that draw.
        class_digits (`int`): As of [`ImageToDraw`].
    """
    if classes is None:
        return [ImageToDraw(None, number) for number in range(num_samples)]
    turns = np.arange(num_samples) % len(classes)
    if random_classes:
        turns = np.random.default_rng(seed).integers(len(classes), size=num_samples)
    counts = dict.fromkeys(classes, 0)
    images = []
    for turn in turns:
        label = classes[turn]
        images.append(ImageToDraw(label, counts[label], class_digits))
        counts[label] += 1
    return images


class SampleFolder:
    """The files of one set of samples. An image is there whole or not at all, whenever its process is killed.

    Args:
        path (`str` or `Path`): The folder, which need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def images(self) -> list[Path]:
        """The files of all its images, sorted."""
        beside = {self.path / name for name in BESIDE_SAMPLES}
        return [file for file in list_files(self.path) if file not in beside] if self.path.is_dir() else []

    def open(self) -> ImageSet:
        """Its images, to be measured."""
        return open_images(self.path, leave_out=BESIDE_SAMPLES, progress_bar=True)

    def first_images(self, count: int) -> list[np.ndarray]:
        """A few images to look at, (H, W) or (H, W, C) uint8: the first of every class, then the second, and so on."""
        files = sorted(self.images(), key=lambda file: (file.name, len(file.parent.name), file.parent))
        return [np.asarray(Image.open(file)) for file in files[:count]]

    def class_digits(self, num_classes: int) -> int:
        """How many digits a class has in its folder's name: those of the greatest label, but one in a folder that was begun
        when names had no leading zeros.

        Raises:
            InputError: if the folder's settings cannot be read.
        """
        file = self.path / SETTINGS_FILE
        is_begun = file.is_file() and self.has_samples
        return read_json(file).get("class_digits", 1) if is_begun else len(str(num_classes - 1))

    @property
    def has_samples(self) -> bool:
        """Whether there is more than what a run leaves that has drawn nothing yet."""
        settings = (self.path / SETTINGS_FILE, self._partial(SETTINGS_FILE))
        return self.path.is_dir() and any(entry not in settings for entry in self.path.iterdir())

    def check(self, settings: dict[str, Any], images: Sequence[ImageToDraw]) -> None:
        """Sees whether these images can be drawn here; nothing is written.

        Raises:
            NotADirectoryError: if the path is a file.
            InputError: if the folder holds images of other settings, more of them, or something else.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file: name a folder for the samples.")
        if not self.has_samples:
            return
        file = self.path / SETTINGS_FILE
        if not file.is_file():
            raise InputError(
                f"{self.path} holds something else than samples (it has no {SETTINGS_FILE}): name another folder."
            )
        before = flatten({name: value for name, value in read_json(file).items() if name != EVALUATIONS})
        now = flatten(settings)
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if differing:
            stated = ", ".join(f"{name} {before.get(name)} (now {now.get(name)})" for name in differing)
            raise InputError(f"{self.path} holds samples of other settings: {stated}. Name another folder.")
        more = self._paths() - {image.path for image in images}
        if more or self.num_in_npz > len(images):
            more = min(more) if more else f"{NPZ_FILE} with {self.num_in_npz}"
            raise InputError(
                f"{self.path} holds more than the {len(images)} samples asked for, {more} for one: name another "
                "folder, or ask for as many."
            )

    @property
    def evaluations(self) -> dict[str, dict[str, int]]:
        """What an image has cost, stage by stage, as far as images were drawn: passes of `"unet"`, `"classifier"`, `"backward"`."""
        file = self.path / SETTINGS_FILE
        return read_json(file).get(EVALUATIONS, {}) if file.is_file() else {}

    def write_settings(self, settings: dict[str, Any], evaluations: dict[str, dict[str, int]]) -> None:
        """Writes what the images follow from, and what one of them has cost so far."""
        settings = settings | ({EVALUATIONS: evaluations} if evaluations else {})
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self._partial(SETTINGS_FILE)
        partial.write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(partial, self.path / SETTINGS_FILE)

    def missing(self, images: Sequence[ImageToDraw]) -> set[ImageToDraw]:
        """Those whose files are not there yet."""
        there = self._paths()
        return {image for image in images if image.path not in there}

    def save(self, image: ImageToDraw, pixels: np.ndarray) -> None:
        """Writes an image (H, W, C) uint8."""
        path = self.path / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(partial, format="PNG")
        os.replace(partial, path)

    def read(self, image: ImageToDraw) -> Image.Image:
        with Image.open(self.path / image.path) as opened:
            return opened.copy()

    @property
    def num_in_npz(self) -> int:
        """How many images `samples.npz` holds; 0 if it is not there."""
        if not (self.path / NPZ_FILE).is_file():
            return 0
        with np.load(self.path / NPZ_FILE) as arrays, arrays.zip.open("arr_0.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, _ = np.lib.format.read_array_header_1_0(member)
        return shape[0]

    def write_npz(self, images: Sequence[ImageToDraw]) -> None:
        """Gathers images in `samples.npz`: `arr_0` (N, H, W, C) uint8 and, where they have classes, `arr_1` (N,) int64.

        One image at a time is in memory.
        """
        partial = self._partial(NPZ_FILE)
        with zipfile.ZipFile(partial, "w") as archive:
            # members of a fixed date: the same samples make the same file
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
                for number, image in enumerate(images):
                    pixels = np.asarray(self.read(image))
                    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
                    if number == 0:
                        shape = (len(images), *pixels.shape)
                        header = {"descr": pixels.dtype.str, "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(member, header)
                    member.write(pixels.tobytes())
            if images[0].class_label is not None:
                labels = np.array([image.class_label for image in images], dtype=np.int64)
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as member:
                    np.lib.format.write_array(member, labels)
        os.replace(partial, self.path / NPZ_FILE)

    def remove_images(self, images: Sequence[ImageToDraw]) -> None:
        for folder in {image.path.parent for image in images}:
            shutil.rmtree(self.path / folder)

    def _paths(self) -> set[Path]:
        return {file.relative_to(self.path) for file in self.images()}

    def _partial(self, name: str) -> Path:
        """Where a file is written before it is renamed."""
        return self.path / f".{name}"


def is_by_label(path: Path) -> bool:
    """Whether a folder is one that `sample` wrote, whose subfolders are called by their labels, whatever the classes' names."""
    file = path / SETTINGS_FILE
    return file.is_file() and "random_classes" in read_json(file)  # which no edited folder has


def cost_in_words(evaluations: dict[str, dict[str, int]]) -> str:
    """What an image has cost, as a sentence; nothing where that is not known."""
    words = {"unet": "of the unet", "classifier": "of a classifier", "backward": "backward"}
    stages = [
        f"{stage}: " * (len(evaluations) > 1)
        + ", ".join(f"{cost[name]} {word}" for name, word in words.items() if cost.get(name))
        for stage, cost in evaluations.items()
    ]
    return f"Passes for an image: {'; '.join(stages)}." if stages else ""


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the path of their names; where a model lies does not matter."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        elif name != "path":
            flat[prefix + name] = value
    return flat
