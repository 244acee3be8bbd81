"""What the commands have in common that make a folder of new images of a folder of old ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from diffusers_cg_cli.shared import BatchSettings, Class, Dtype, GuidedSettings, Scale


if TYPE_CHECKING:
    from accelerate import PartialState

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

    dtype: Dtype = "fp32"
    """Precision of the networks."""


def label_of(named: int | str | None, pipe: "ClassifierGuidedPipeline") -> int | None:
    """The label of a class that a flag names, if it does."""
    from diffusers_cg.generation.saved_pipeline import class_labels

    return None if named is None else class_labels(pipe, [named])[0]


def open_source(
    settings: EditedSettings, pipe: "ClassifierGuidedPipeline", label_of_all: int | None, needs_classes: bool
) -> "FolderImages":
    """The images that flags name, each of the class `label_of_all` or, if classes are needed, of that which its subfolder names."""
    import numpy as np

    from diffusers_cg.data.folders import open_folder
    from diffusers_cg.generation import BESIDE_SAMPLES
    from diffusers_cg.generation.sample_folder import is_by_label

    known_classes, num_classes = pipe.class_names, pipe.num_classes
    if num_classes is not None and is_by_label(settings.images):
        known_classes = list(map(str, range(num_classes)))
    images = open_folder(
        settings.images,
        "required" if needs_classes and label_of_all is None else "ignored",
        known_classes=known_classes,
        num_classes=num_classes if known_classes is None else None,
        leave_out=BESIDE_SAMPLES,
    )
    if label_of_all is not None:
        images.labels = np.full(len(images), label_of_all)
    return images


def labels_of(images: "FolderImages", indices: Sequence[int] | None = None) -> list[int] | None:
    """The labels of some images, or of all; None if they have none."""
    if images.labels is None:
        return None
    return (images.labels if indices is None else images.labels[indices]).tolist()


def to_work(settings: EditedSettings, pipe: "ClassifierGuidedPipeline") -> "PartialState":
    """Takes the pipeline where it is to work, among the processes that a launcher started."""
    from diffusers_cg.generation import resolve_device, start_processes

    processes = start_processes()
    pipe.to(processes.device if settings.device is None else resolve_device(settings.device))
    pipe.set_progress_bar_config(desc="steps", leave=False, disable=not processes.is_main_process)
    return processes
