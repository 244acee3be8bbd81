"""Samples from one pipeline or a cascade of two, into a folder; one stage in memory at a time."""

import gc
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from PIL import Image
from tqdm.auto import tqdm

from diffusers_cg.data.grids import image_grid
from diffusers_cg.data.images import to_uint8
from diffusers_cg.errors import InputError
from diffusers_cg.generation.folder import GRID_FILE, SampleFolder
from diffusers_cg.generation.requests import Request, check_classes, make_requests
from diffusers_cg.generation.stages import Stage, resolve_device
from diffusers_cg.pipelines.classifier_guided import ClassifierGuidedPipeline


LOW_RES_FOLDER = ".low_res"
GRID_CLASSES = 20
GRID_IMAGES = 8
MIN_TILE, MAX_TILE = 64, 128


def sample_to_folder(
    output_dir: str | Path,
    base: Stage,
    upsampler: Stage | None = None,
    num_samples: int = 16,
    classes: Sequence[int] | None = None,
    random_classes: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    png: bool = True,
    npz: bool = False,
    device: str | None = None,
) -> None:
    """Draws images into a folder: a PNG file for each, in a subfolder per class, or `samples.npz`; some in `grid.png`.

    An image follows from the seed, its class and its number in it alone: it stays the same (but for rounding) in batches
    of another size, beside other classes or more images, and whichever process draws it. Pixels are truncated to 8 bits
    as those of the paper were. With an upsampler, the base pipeline first draws all images, which the upsampler then
    gets as 8-bit files.

    A call that was stopped goes on with what is missing: no image is drawn again but those of batches in flight, whose
    files then are the same. Started in several processes (by `accelerate launch`), each draws its share of the batches;
    all see one file system.

    Args:
        output_dir (`str` or `Path`): New, or of an earlier call, which may have asked for fewer images.
        base ([`Stage`]): Draws images from noise.
        upsampler ([`Stage`], *optional*): Draws images of a higher resolution from those.
        num_samples (`int`): At least 1.
        classes (sequence of `int`, *optional*): Each once; all that the models know where they need labels, by default.
        random_classes (`bool`): Draw the class of every image, uniformly, instead of taking turns.
        seed (`int`): At least 0.
        batch_size (`int`): Images at once in each process, at least 1.
        png (`bool`): Leave a file per image.
        npz (`bool`): Leave `samples.npz`, in the reference's layout: `arr_0` (N, H, W, C) uint8 and, with classes,
            `arr_1` (N,) int64.
        device (`str`, *optional*): A GPU of each process's own if there is one, by default.

    Raises:
        ValueError, TypeError, NotADirectoryError: with one sentence; nothing has been computed by then.
    """
    for name, value, least in (("seed", seed, 0), ("batch_size", batch_size, 1), ("num_samples", num_samples, 1)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}, got {value}.")
    if not (png or npz):
        raise InputError("Neither `png` nor `npz`: there would be nothing left of the samples.")
    processes = start_processes()
    run = Run(
        SampleFolder(Path(output_dir)),
        base,
        upsampler,
        seed,
        batch_size,
        processes,
        processes.device if device is None else resolve_device(device),
    )
    run.look(num_samples, classes, random_classes)
    if png or not run.folder.holds_npz(num_samples):
        run.draw()
    processes.wait_for_everyone()
    if processes.is_main_process:
        run.finish(png, npz)
    processes.wait_for_everyone()


def start_processes() -> PartialState:
    """This process among those that a launcher started; the first call connects them."""
    # one may wait for another's stage for longer than the half hour after which PyTorch gives up
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=7))


class Run:
    """One set of samples in the making; see [`sample_to_folder`]."""

    def __init__(
        self,
        folder: SampleFolder,
        base: Stage,
        upsampler: Stage | None,
        seed: int,
        batch_size: int,
        processes: PartialState,
        device: torch.device,
    ):
        self.folder = folder
        self.low_res_folder = SampleFolder(folder.path / LOW_RES_FOLDER)
        self.base = base
        self.upsampler = upsampler
        self.seed = seed
        self.batch_size = batch_size
        self.processes = processes
        self.device = device

    def look(self, num_samples: int, classes: Sequence[int] | None, random_classes: bool) -> None:
        """Loads each stage, to see that everything fits before anything is computed; the first one stays."""
        asked_classes = None if classes is None else list(classes)
        if classes is not None:
            check_classes(classes)
        demands, of_upsampler = {}, None
        if self.upsampler is not None:
            pipe = self.upsampler.load_upsampler()
            classes = classes or self.upsampler.needed_classes(pipe)
            self.upsampler.check(pipe, classes)
            demands = {"image shape": pipe.low_res_shape, "number of classes": pipe.num_classes}
            of_upsampler = self.upsampler.settings(pipe)
            del pipe
            release_memory()
        self.base_pipe = self.base.load_base()
        classes = classes or self.base.needed_classes(self.base_pipe)
        self.base.check(self.base_pipe, classes)
        check_fit(self.base_pipe, demands)
        self.settings = {
            "seed": self.seed,
            "classes": asked_classes,
            "random_classes": random_classes,
            "base": self.base.settings(self.base_pipe),
            "upsampler": of_upsampler,
        }
        self.classes = classes
        self.requests = make_requests(num_samples, classes, random_classes, self.seed)
        self.folder.check_settings(self.settings)
        self.folder.check_nothing_else(self.requests)

    def draw(self) -> None:
        """Draws what is missing, in all stages."""
        if self.processes.is_main_process:
            self.folder.write_settings(self.settings)
        batches = [self.requests[i : i + self.batch_size] for i in range(0, len(self.requests), self.batch_size)]
        missing = self.folder.missing(self.requests)
        batches = [batch for batch in batches if not missing.isdisjoint(batch)]

        pipe, self.base_pipe = self.base_pipe, None
        first_folder = self.folder if self.upsampler is None else self.low_res_folder
        self._draw(pipe, self.base, 0, batches, first_folder, lambda batch: {"batch_size": len(batch)})
        if self.upsampler is not None:
            del pipe
            release_memory()
            self._draw(self.upsampler.load_upsampler(), self.upsampler, 1, batches, self.folder, self._low_res)

    def _low_res(self, batch: list[Request]) -> dict[str, Any]:
        return {"image": [self.low_res_folder.read(request) for request in batch]}

    def _draw(
        self,
        pipe: ClassifierGuidedPipeline,
        stage: Stage,
        stage_number: int,
        batches: list[list[Request]],
        folder: SampleFolder,
        inputs: Callable[[list[Request]], dict[str, Any]],
    ) -> None:
        """Draws this process's share of those batches of which images are missing.

        Such a batch is drawn whole, for its images to have the company that they would have had.
        """
        missing = folder.missing([request for batch in batches for request in batch])
        batches = [batch for batch in batches if not missing.isdisjoint(batch)]
        share = batches[self.processes.process_index :: self.processes.num_processes]
        self.processes.wait_for_everyone()  # all have seen the same, and ended the stage before
        pipe.to(self.device)
        is_main = self.processes.is_main_process
        pipe.set_progress_bar_config(desc="steps", leave=False, disable=not is_main)
        with tqdm(
            total=sum(len(batch) for batch in batches),
            desc=("base", "upsampler")[stage_number],
            unit="image",
            disable=not is_main,
        ) as progress_bar:
            for batch in share:
                labels = [request.class_label for request in batch]
                samples = pipe(
                    class_labels=None if None in labels else labels,
                    num_inference_steps=stage.num_inference_steps,
                    classifier_scale=stage.classifier_scale,
                    generator=[request.generator(self.seed, stage_number) for request in batch],
                    output_type="latent",
                    **stage.options,
                    **inputs(batch),
                ).images
                for request, image in zip(batch, to_uint8(samples)):
                    if request in missing:
                        folder.save(request, image)
                # the other processes are taken to be as far
                done = progress_bar.n + len(batch) * self.processes.num_processes
                progress_bar.update(min(done, progress_bar.total) - progress_bar.n)

    def finish(self, png: bool, npz: bool) -> None:
        """Leaves what was asked for, once all images are there."""
        if not self.folder.missing(self.requests):
            self.make_grid().save(self.folder.path / GRID_FILE)
            if npz:
                self.folder.write_npz(self.requests)
            if not png:
                self.folder.remove_images(self.requests)
        self.low_res_folder.remove()

    def make_grid(self) -> Image.Image:
        """The first images of the first classes, a row per class, each beside its low-resolution one if there is any."""
        rows = {}
        for label in self.classes or [None]:
            row = [request for request in self.requests if request.class_label == label][:GRID_IMAGES]
            if row and len(rows) < GRID_CLASSES:
                rows[label] = row
        shown = [request for row in rows.values() for request in row]
        folders = [self.folder]
        if self.low_res_folder.path.is_dir() and not self.low_res_folder.missing(shown):
            folders.insert(0, self.low_res_folder)
        images = [[folder.read(request) for request in row for folder in folders] for row in rows.values()]
        return image_grid(
            images,
            row_labels=() if None in rows else [str(label) for label in rows],
            column_labels=() if len(folders) == 1 else ["low", "high"] * max(len(row) for row in rows.values()),
            tile_size=min(MAX_TILE, max(MIN_TILE, *images[0][-1].size)),
        )


def check_fit(pipe: ClassifierGuidedPipeline, demands: dict[str, Any]) -> None:
    """Raises `ValueError` unless the images of the first stage are what the second one demands."""
    offers = {"image shape": pipe.sample_shape, "number of classes": pipe.num_classes}
    for name, demanded in demands.items():
        if None not in (demanded, offers[name]) and offers[name] != demanded:
            raise InputError(
                f"The two stages do not fit together: the {name} of the first is {offers[name]}, but the upsampler "
                f"is made for {demanded}."
            )


def release_memory() -> None:
    """Gives back what the stage that has just ended held: pipelines refer to themselves in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
