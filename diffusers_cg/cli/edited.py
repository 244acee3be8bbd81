"""What the commands have in common that make a folder of new images of a folder of old ones."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from diffusers_cg_cli.shared import BatchSettings, Class, Dtype, GuidedSettings, Scale


if TYPE_CHECKING:
    from accelerate import PartialState
    from PIL import Image

    from diffusers_cg.data.folders import FolderImages
    from diffusers_cg.pipelines import ClassifierGuidedPipeline


class EditedSettings(GuidedSettings, BatchSettings):
    images: Path
    """Folder of the images, at any depth."""

    output: Path
    """Folder of the new images, which have the names of the old ones; an earlier run's goes on."""

    class_label: Class | None = None
    """Label or name of the class of all; by default that of each image's subfolder, if the model needs any."""

    num_inference_steps: PositiveInt | None = None
    """Steps; saved with the model by default."""

    classifier_scale: Scale | None = None
    """Scale of the classifier's guidance, 0 for none; saved by default, 0 beside --guidance."""

    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Noise of DDIM's steps, 0 to 1."""

    dtype: Dtype = "fp32"
    """Precision of the networks."""


def open_source(settings: EditedSettings, pipe: "ClassifierGuidedPipeline", has_classes: bool) -> "FolderImages":
    """The images that flags name, each of the class of the model that its subfolder names if it `has_classes`."""
    from diffusers_cg.data.folders import open_folder
    from diffusers_cg.generation import BESIDE_SAMPLES

    return open_folder(
        settings.images,
        "required" if has_classes else "ignored",
        known_classes=pipe.class_names,
        num_classes=pipe.num_classes if pipe.class_names is None else None,
        leave_out=BESIDE_SAMPLES,
    )


def reader(images: "FolderImages", pipe: "ClassifierGuidedPipeline") -> "Callable[[int], Image.Image]":
    """Reads an image by its number, resized and cropped in the middle as for training.

    Raises:
        InputError: if the model's images are not square.
    """
    from diffusers_cg.data.images import resize_and_crop
    from diffusers_cg.errors import InputError

    channels, height, width = pipe.sample_shape
    if height != width:
        raise InputError(f"Images are cropped to squares, but those of this model are {width}x{height}.")
    return lambda index: resize_and_crop(images[index].load(channels), height, center_crop=True)


def label_of_all(settings: EditedSettings, pipe: "ClassifierGuidedPipeline") -> int | None:
    """The class that a flag names."""
    from diffusers_cg.generation.saved_pipeline import class_labels

    return None if settings.class_label is None else class_labels(pipe, [settings.class_label])[0]


def to_work(settings: EditedSettings, pipe: "ClassifierGuidedPipeline") -> "PartialState":
    """Takes the pipeline where it is to work, among the processes that a launcher started."""
    from diffusers_cg.generation import resolve_device, start_processes

    processes = start_processes()
    pipe.to(processes.device if settings.device is None else resolve_device(settings.device))
    pipe.set_progress_bar_config(desc="steps", leave=False, disable=not processes.is_main_process)
    return processes
