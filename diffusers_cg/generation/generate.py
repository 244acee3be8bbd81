"""Images in batches, and many of them in a folder: from one pipeline or a cascade of two, one of them in memory at a time."""

import gc
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from PIL import Image
from tqdm.auto import tqdm

from diffusers_cg.data.batches import in_batches
from diffusers_cg.data.grids import image_grid
from diffusers_cg.data.images import to_uint8
from diffusers_cg.errors import InputError
from diffusers_cg.generation.sample_folder import GRID_FILE, ImageToDraw, SampleFolder, images_to_draw
from diffusers_cg.generation.saved_pipeline import SavedPipeline, class_labels
from diffusers_cg.pipelines import ClassifierGuidedPipeline
from diffusers_cg.pipelines.pipeline_classifier_guided import GuidedImagePipelineOutput


LOW_RES_FOLDER = ".low_res"
STAGES = ("base", "upsampler")
GRID_CLASSES = 20
GRID_IMAGES = 8
MIN_TILE, MAX_TILE = 64, 128


def draw_images(
    pipe: ClassifierGuidedPipeline,
    class_labels: Sequence[int | None],
    generators: torch.Generator | Iterable[torch.Generator],
    batch_size: int,
    low_res: Iterable | None = None,
    **call: Any,
) -> Iterator[Any]:
    """Draws an image for each label, a batch at a time.

    Args:
        pipe ([`ClassifierGuidedPipeline`]): Draws from noise or, given `low_res`, upsamples.
        class_labels (sequence of `int` or of None): One per image; None where the call takes no labels.
        generators (`torch.Generator` or iterable of them): One for all, whose state runs on from batch to batch, or one
            per image, which then does not depend on its batch.
        batch_size (`int`): Images at once; the last batch may be smaller.
        low_res (iterable, *optional*): One low-resolution image per image, of any kind that the pipeline takes. It and
            the generators are asked for a batch's items when the batch is drawn.
        call (`dict`): What every call is given beside these.

    Yields:
        `.images` of each call, as its `output_type` says.
    """
    generators = generators if isinstance(generators, torch.Generator) else iter(generators)
    low_res = None if low_res is None else iter(low_res)
    for first in range(0, len(class_labels), batch_size):
        labels = list(class_labels[first : first + batch_size])
        size = len(labels)
        of_batch = {"batch_size": size} if low_res is None else {"image": list(islice(low_res, size))}
        yield pipe(
            class_labels=None if None in labels else labels,
            generator=generators if isinstance(generators, torch.Generator) else list(islice(generators, size)),
            **of_batch,
            **call,
        ).images


def generate_to_folder(
    output_dir: str | Path,
    base: SavedPipeline,
    upsampler: SavedPipeline | None = None,
    num_samples: int = 16,
    classes: Sequence[int | str] | None = None,
    random_classes: bool = False,
    seed: int = 0,
    batch_size: int | Literal["auto"] = 8,
    png: bool = True,
    npz: bool = False,
    device: str | None = None,
) -> None:
    """Draws images into a folder: a PNG file for each, in a subfolder per class, or `samples.npz`; some in `grid.png`.

    `sampling.json` holds what they follow from, and what one of them cost: how often the networks were asked.

    An image follows from the seed, its class and its number in it alone: it stays the same (but for rounding) in batches
    of another size, beside other classes or more images, and whichever process draws it. Pixels are truncated to 8 bits
    as those of the paper were. With an upsampler, the base pipeline first draws all images, which the upsampler then
    gets as 8-bit files.

    A call that was stopped goes on with what is missing: no image is drawn again but those of batches in flight, whose
    files then are the same. Started in several processes (by `accelerate launch`), each draws its share of the batches;
    all see one file system.

    Args:
        output_dir (`str` or `Path`): New, or of an earlier call, which may have asked for fewer images.
        base ([`SavedPipeline`]): Draws images from noise.
        upsampler ([`SavedPipeline`], *optional*): Draws images of a higher resolution from those.
        num_samples (`int`): At least 1.
        classes (sequence of `int` or `str`, *optional*): Labels, or names that the base pipeline knows, each class once;
            all that the models know where they need labels, by default.
        random_classes (`bool`): Draw the class of every image, uniformly, instead of taking turns.
        seed (`int`): At least 0.
        batch_size (`int` or `"auto"`): Images at once in each process, at least 1; see [`in_batches`].
        png (`bool`): Leave a file per image.
        npz (`bool`): Leave `samples.npz`, in the reference's layout: `arr_0` (N, H, W, C) uint8 and, with classes,
            `arr_1` (N,) int64.
        device (`str`, *optional*): A GPU of each process's own if there is one, by default.

    Raises:
        InputError, NotADirectoryError: with one sentence; nothing has been computed by then.
    """
    for name, value, least in (("seed", seed, 0), ("num_samples", num_samples, 1)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}, got {value}.")
    if batch_size != "auto" and (isinstance(batch_size, str) or batch_size < 1):
        raise InputError(f'`batch_size` must be at least 1, or "auto", got {batch_size!r}.')
    if not (png or npz):
        raise InputError("Neither `png` nor `npz`: there would be nothing left of the samples.")
    processes = start_processes()
    device = processes.device if device is None else resolve_device(device)

    # both are loaded, one at a time, to see that everything fits before anything is computed; the first one stays
    pipe = None
    if classes is not None or upsampler is None:
        pipe = base.load()
    asked_classes = classes = None if classes is None else class_labels(pipe, classes)
    upsampler_settings, demands = None, {}
    if upsampler is not None:
        del pipe
        release_memory()
        pipe = upsampler.load_upsampler()
        classes = classes or upsampler.needed_classes(pipe)
        upsampler.check(pipe, classes)
        upsampler_settings = upsampler.settings(pipe)
        demands = {
            "image shape": pipe.low_res_shape,
            "number of classes": pipe.num_classes,
            "order of classes": pipe.class_names,
        }
        del pipe
        release_memory()
        pipe = base.load()
    classes = classes or base.needed_classes(pipe)
    base.check(pipe, classes)
    check_fit(pipe, demands)
    settings = {
        "seed": seed,
        "classes": asked_classes,
        "random_classes": random_classes,
        "base": base.settings(pipe),
        "upsampler": upsampler_settings,
    }
    folder = SampleFolder(output_dir)
    num_classes = pipe.num_classes or demands.get("number of classes") or (classes and max(classes) + 1)
    class_digits = folder.class_digits(num_classes or 1)
    if class_digits > 1:
        settings["class_digits"] = class_digits
    images = images_to_draw(num_samples, classes, random_classes, seed, class_digits)
    low_res_folder = SampleFolder(folder.path / LOW_RES_FOLDER)
    folder.check(settings, images)
    evaluations = folder.evaluations

    def note_cost(stage: int, cost: dict[str, int]) -> None:
        if processes.is_main_process and evaluations.get(STAGES[stage]) != cost:
            evaluations[STAGES[stage]] = cost
            folder.write_settings(settings, evaluations)

    if png or folder.num_in_npz != num_samples:
        if processes.is_main_process:
            folder.write_settings(settings, evaluations)
        batches = batches_to_draw(shares(images, batch_size), folder)
        draw = partial(draw_stage, batches, batch_size, seed, processes, device, note_cost)
        if upsampler is None:
            draw(0, base, pipe, folder)
        else:
            draw(0, base, pipe, low_res_folder)
            del pipe
            release_memory()
            draw(1, upsampler, upsampler.load_upsampler(), folder, low_res_folder)
    processes.wait_for_everyone()
    if processes.is_main_process:
        if not folder.missing(images):
            make_grid(images, classes, folder, low_res_folder).save(folder.path / GRID_FILE)
            if npz:
                folder.write_npz(images)
            if not png:
                folder.remove_images(images)
        shutil.rmtree(low_res_folder.path, ignore_errors=True)
    processes.wait_for_everyone()


def shares(images: Sequence[ImageToDraw], batch_size: int | Literal["auto"]) -> list[Sequence[ImageToDraw]]:
    """What is given out to processes: batches, or single images for each to make batches of a size that it finds."""
    size = 1 if batch_size == "auto" else batch_size
    return [images[first : first + size] for first in range(0, len(images), size)]


def batches_to_draw(batches: list[Sequence[ImageToDraw]], folder: SampleFolder) -> list[Sequence[ImageToDraw]]:
    """The batches of which images are missing: drawn whole, for their images to have the company that they would have had."""
    missing = folder.missing([image for batch in batches for image in batch])
    return [batch for batch in batches if not missing.isdisjoint(batch)]


def draw_stage(
    batches: list[Sequence[ImageToDraw]],
    batch_size: int | Literal["auto"],
    seed: int,
    processes: PartialState,
    device: torch.device,
    note_cost: Callable[[int, dict[str, int]], None],
    stage: int,
    saved: SavedPipeline,
    pipe: ClassifierGuidedPipeline,
    folder: SampleFolder,
    low_res_folder: SampleFolder | None = None,
) -> None:
    """Draws this process's share of the batches into a folder, from the images of another one if the stage upsamples."""
    batches = batches_to_draw(batches, folder)
    images = [image for batch in batches[processes.process_index :: processes.num_processes] for image in batch]
    missing = folder.missing(images)
    processes.wait_for_everyone()  # all have seen the same, and ended the stage before
    is_main = processes.is_main_process
    pipe.to(device).set_progress_bar_config(desc="steps", leave=False, disable=not is_main)
    total = sum(len(batch) for batch in batches)
    call = saved.call(pipe)

    def draw(batch: Sequence[ImageToDraw]) -> GuidedImagePipelineOutput:
        labels = [image.class_label for image in batch]
        of_batch = {"batch_size": len(batch)}
        if low_res_folder is not None:
            of_batch = {"image": [low_res_folder.read(image) for image in batch]}
        return pipe(
            class_labels=None if None in labels else labels,
            generator=[image.generator(seed, stage) for image in batch],
            output_type="latent",
            **of_batch,
            **call,
        )

    with tqdm(total=total, desc=STAGES[stage], unit="image", disable=not is_main) as progress_bar:
        for batch, output in in_batches(images, draw, batch_size, device, progress_bar):
            note_cost(stage, output.evaluations)  # before images, so that a folder with images says it
            for image, pixels in zip(batch, to_uint8(output.images)):
                if image in missing:
                    folder.save(image, pixels)
            # the other processes are taken to be as far
            done = progress_bar.n + len(output.images) * processes.num_processes
            progress_bar.update(min(done, total) - progress_bar.n)


def make_grid(
    images: Sequence[ImageToDraw], classes: Sequence[int] | None, folder: SampleFolder, low_res_folder: SampleFolder
) -> Image.Image:
    """The first images of the first classes, a row per class, each beside its low-resolution one if there is any."""
    rows = {}
    for label in classes or [None]:
        row = [image for image in images if image.class_label == label][:GRID_IMAGES]
        if row and len(rows) < GRID_CLASSES:
            rows[label] = row
    folders = [folder]
    if low_res_folder.path.is_dir() and not low_res_folder.missing([image for row in rows.values() for image in row]):
        folders.insert(0, low_res_folder)
    pictures = [[folder.read(image) for image in row for folder in folders] for row in rows.values()]
    return image_grid(
        pictures,
        row_labels=() if None in rows else [str(label) for label in rows],
        column_labels=() if len(folders) == 1 else ["low", "high"] * max(len(row) for row in rows.values()),
        tile_size=min(MAX_TILE, max(MIN_TILE, *pictures[0][-1].size)),
    )


def check_fit(pipe: ClassifierGuidedPipeline, demands: dict[str, Any]) -> None:
    """Raises `InputError` unless the images of the first stage are what the second one demands."""
    offers = {
        "image shape": pipe.sample_shape,
        "number of classes": pipe.num_classes,
        "order of classes": pipe.class_names,
    }
    for name, demanded in demands.items():
        if None not in (demanded, offers[name]) and offers[name] != demanded:
            raise InputError(
                f"The two stages do not fit together: the {name} of the first is {offers[name]}, but the upsampler "
                f"is made for {demanded}."
            )


LONGEST_WAIT = timedelta(days=7)
"""Of a process for another's work, as a stage or an evaluation; PyTorch gives up after ten minutes or half an hour."""


def is_on_cpu() -> bool:
    """Whether processes compute on CPUs: there Accelerate takes those that torchrun started for strangers unless it is told."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def start_processes() -> PartialState:
    """This process among those that a launcher started; the first call connects them."""
    return PartialState(cpu=is_on_cpu(), timeout=LONGEST_WAIT)


def resolve_device(device: str | None) -> torch.device:
    """The device of this name; a GPU if there is one where none is named.

    Raises:
        InputError: if there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"`device` is {device!r}, which cannot be used here ({str(error).splitlines()[0]})."
        ) from error


def release_memory() -> None:
    """Gives back what the stage that has just ended held: pipelines refer to themselves in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
