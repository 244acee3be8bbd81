"""The images of a folder, each made anew by a call of a pipeline, in another folder under the same names."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from diffusers_cg.data.batches import in_batches
from diffusers_cg.data.files import list_files
from diffusers_cg.data.folders import FolderImages
from diffusers_cg.data.grids import image_grid
from diffusers_cg.diffusion import seeded_generator
from diffusers_cg.errors import InputError
from diffusers_cg.generation.generate import GRID_IMAGES, MAX_TILE, MIN_TILE, batches_to_draw, shares, start_processes
from diffusers_cg.generation.sample_folder import GRID_FILE, SampleFolder


Edit = Callable[[Sequence[int], list[torch.Generator]], list[Image.Image]]
"""(numbers of images among those of the folder, a generator for each) -> new ones."""


@dataclass(frozen=True)
class ImageToEdit:
    """An image of a folder, and its file in the other.

    Args:
        path (`Path`): Of the new file, from the other folder on.
        index (`int`): Its number among those of the folder.
    """

    path: Path
    index: int

    def generator(self, seed: int) -> torch.Generator:
        """Source of all its randomness, which follows from the seed and its name."""
        return seeded_generator(seed, *os.fsencode(self.path.as_posix()))


def edit_to_folder(
    output_dir: str | Path,
    images: FolderImages,
    edit: Edit,
    before: Callable[[int], Image.Image],
    settings: dict[str, Any],
    seed: int = 0,
    batch_size: int | Literal["auto"] = 8,
    device: str | torch.device = "cpu",
) -> None:
    """Makes all images of a folder anew: a PNG file for each, of the same name, and some beside what they were in `grid.png`.

    `sampling.json` holds the settings. A call that was stopped goes on with what is missing, also where images have been added
    since. Started in several processes (by `accelerate launch`), each takes its share of the batches.

    Args:
        output_dir (`str` or `Path`): New, or of an earlier call; outside of the folder that is read.
        images ([`FolderImages`]): What is read.
        edit (`Edit`): Makes new images.
        before (callable): The image of this number as it was, to be shown.
        settings (`dict`): What the new images follow from beside the seed, the images and their names.
        seed (`int`): At least 0.
        batch_size (`int` or `"auto"`): Images at once in each process, at least 1; see [`in_batches`].
        device (`str` or `torch.device`): Where `edit` works.

    Raises:
        InputError, NotADirectoryError: with one sentence; nothing has been computed by then.
    """
    root = Path(images.source)
    if Path(output_dir).resolve().is_relative_to(root.resolve()):
        raise InputError(f"The new images would lie among those of {root}: name a folder outside of it.")
    listed = [
        ImageToEdit(path_of_result(Path(os.fsdecode(file)), root), index) for index, file in enumerate(images.files)
    ]
    names = {}
    for image in listed:
        if image.path == Path(GRID_FILE):
            raise InputError(f"The new image of {images.name(image.index)} would lie where the grid does: rename it.")
        other = names.setdefault(image.path, image)
        if other is not image:
            raise InputError(
                f"{images.name(other.index)} and {images.name(image.index)} have one name but for the suffix: rename one."
            )
    folder = SampleFolder(output_dir)
    settings = {"seed": seed, **settings}
    folder.check(settings, listed)

    processes = start_processes()
    is_main = processes.is_main_process
    missing = folder.missing(listed)
    batches = batches_to_draw(shares(listed, batch_size), folder)
    processes.wait_for_everyone()  # all have seen the same
    if is_main:
        folder.write_settings(settings, {})
    processes.wait_for_everyone()  # no image lies there without them
    own = [image for batch in batches[processes.process_index :: processes.num_processes] for image in batch]

    def work(batch: Sequence[ImageToEdit]) -> list[Image.Image]:
        return edit([image.index for image in batch], [image.generator(seed) for image in batch])

    with tqdm(total=len(own), unit="image", disable=not is_main) as progress_bar:
        for batch, made in in_batches(own, work, batch_size, device, progress_bar):
            for picture, image in zip(made, batch):
                if image in missing:
                    folder.save(image, np.asarray(picture))
            progress_bar.update(len(batch))
    processes.wait_for_everyone()
    if is_main:
        shown = listed[:: max(1, len(listed) // GRID_IMAGES)][:GRID_IMAGES]
        rows = [[before(image.index) for image in shown], [folder.read(image) for image in shown]]
        tile_size = min(MAX_TILE, max(MIN_TILE, *rows[1][0].size))
        image_grid(rows, row_labels=["before", "after"], tile_size=tile_size).save(folder.path / GRID_FILE)


def path_of_result(file: Path, root: Path) -> Path:
    """Where the new image of a file lies in its folder, as the file does below `root`."""
    return file.relative_to(root).with_suffix(".png")


def files_beside(images: FolderImages, path: Path) -> list[Path]:
    """A file for each image: `path` itself, or those of the same names in the folder `path`.

    Raises:
        InputError: if there is none for an image.
    """
    if path.is_file():
        return [path] * len(images)
    root = Path(images.source)
    there = {path_of_result(file, path): file for file in list_files(path)} if path.is_dir() else {}
    wanted = [path_of_result(Path(os.fsdecode(file)), root) for file in images.files]
    for index, name in enumerate(wanted):
        if name not in there:
            raise InputError(f"There is no file in {path} for {images.name(index)}: it must have the same name there.")
    return [there[name] for name in wanted]
