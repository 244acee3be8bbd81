"""Many images from saved pipelines, one stage of a cascade in memory at a time: what `diffusers-cg sample` does."""

import gc
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from tqdm.auto import tqdm

from diffusers_cg.diffusion import to_ddim_scheduler, to_ddpm_scheduler
from diffusers_cg.files import atomic_directory
from diffusers_cg.image_grid import GRID_FILE, image_grid
from diffusers_cg.pipelines import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.pipelines.classifier_guided import ClassifierGuidedPipeline
from diffusers_cg.pipelines.pipeline_classifier_guided_super_resolution import check_level
from diffusers_cg.seeds import seeded_generator


BASE_PIPELINES = {"ddpm": ClassifierGuidedDDPMPipeline, "ddim": ClassifierGuidedDDIMPipeline}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

GRID_CLASSES = 20
GRID_IMAGES = 8
MIN_TILE, MAX_TILE = 64, 128


# ------------------------------------------------------------------------------------------------------ what is asked for


@dataclass(frozen=True)
class Request:
    """One image to draw.

    Args:
        class_label (`int`, *optional*): Its class; None where nobody needs one.
        number (`int`): Its number among those of its class.
    """

    class_label: int | None
    number: int

    @property
    def path(self) -> Path:
        """Its file, by class and number."""
        folder = "images" if self.class_label is None else str(self.class_label)
        return Path(folder) / f"{self.number:05d}.png"

    def generator(self, seed: int, stage: int) -> torch.Generator:
        """Source of all its randomness in a stage, which nothing else that is asked for has a part in."""
        return seeded_generator(seed, self.class_label or 0, self.number, stage)


@dataclass(frozen=True)
class Stage:
    """A saved pipeline, and how to sample from it.

    Args:
        path (`str`): Its folder, or its name on the Hub.
        sampler (`"ddpm"` or `"ddim"`): Algorithm 1 or 2.
        num_inference_steps (`int`, *optional*): The saved default otherwise.
        classifier_scale (`float`, *optional*): The saved default otherwise.
        options (`dict`): What a call takes beside these, such as `low_res_noise`.
    """

    path: str
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    num_inference_steps: int | None = None
    classifier_scale: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def load_base(self) -> ClassifierGuidedPipeline:
        """The pipeline, on the CPU.

        Raises:
            ValueError: if there is none, or it upsamples.
        """
        check_path(self.path)
        return BASE_PIPELINES[self.sampler].from_pretrained(self.path)

    def load_upsampler(self) -> ClassifierGuidedSuperResolutionPipeline:
        """The pipeline, on the CPU.

        Raises:
            ValueError: if there is none, or it does not upsample.
        """
        check_path(self.path)
        pipe = ClassifierGuidedSuperResolutionPipeline.from_pretrained(self.path)
        if self.sampler == "ddim":
            pipe.scheduler = to_ddim_scheduler(pipe.scheduler)
        else:
            pipe.scheduler = to_ddpm_scheduler(pipe.scheduler, pipe.unet.predicts_variance)
        return pipe

    def check(self, pipe: ClassifierGuidedPipeline, class_labels: Sequence[int | None]) -> None:
        """Raises `ValueError` or `TypeError` where a call would for one of these classes; nothing is computed."""
        for label in class_labels:
            pipe.prepare_inputs(
                class_labels=label,
                batch_size=1,
                num_inference_steps=self.num_inference_steps,
                timesteps=None,
                classifier_scale=self.classifier_scale,
                guidance=None,
                generator=torch.Generator(),
                latents=None,
                output_type="pil",
            )


def check_path(path: str) -> None:
    """Raises `ValueError` where a path can be neither a pipeline's folder nor a name on the Hub."""
    folder = Path(path)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(f"{path} is not the folder of a pipeline (it has no model_index.json).")
    if not folder.exists() and not HUB_NAME.fullmatch(path):
        raise ValueError(f"There is no folder {path}: pass that of a saved pipeline, or OWNER/NAME on the Hub.")


def resolve_device(device: str | None) -> torch.device:
    """The device of this name; a GPU if there is one where none is named.

    Raises:
        ValueError: if there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`device` is {device!r}, which cannot be used here ({str(error).splitlines()[0]})."
        ) from error


def make_requests(class_labels: Sequence[int] | None, num_images_per_class: int) -> list[Request]:
    """As many images of every class; of none in particular where `class_labels` is None.

    Raises:
        ValueError: if there are none to draw, or a class is negative or named twice.
    """
    if num_images_per_class < 1:
        raise ValueError(f"`num_images_per_class` must be at least 1, got {num_images_per_class}.")
    labels = [None] if class_labels is None else list(class_labels)
    if not labels or len(set(labels)) < len(labels) or min(class_labels or [0]) < 0:
        raise ValueError(f"`class_labels` must name at least one class, each once and none below 0, got {labels}.")
    return [Request(label, number) for label in labels for number in range(num_images_per_class)]


# --------------------------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Run:
    """What to draw, in every stage.

    Args:
        requests (`list[Request]`): All images, or the share of one process.
        seed (`int`): Of the whole set.
        batch_size (`int`): Images at once.
        device (`torch.device`): Where a stage computes.
    """

    requests: list[Request]
    seed: int
    batch_size: int
    device: torch.device

    @property
    def class_labels(self) -> list[int | None]:
        """Each class once."""
        return list(dict.fromkeys(request.class_label for request in self.requests))

    def check_upsampler(self, stage: Stage) -> dict[str, Any]:
        """Loads an upsampler to see that it can do what is asked, and returns what it demands of the images it gets.

        Raises:
            ValueError, TypeError: if it cannot; nothing has been computed by then.
        """
        for name, level in stage.options.items():
            check_level(name, level)
        pipe = stage.load_upsampler()
        stage.check(pipe, self.class_labels)
        return {"image shape": pipe.low_res_shape, "number of classes": pipe.num_classes}

    def draw_base(self, stage: Stage, directory: Path, demands: dict[str, Any]) -> None:
        """Draws all images from noise into `directory`, as the next stage demands them.

        Raises:
            ValueError, TypeError: if the pipeline cannot; nothing has been computed by then.
        """
        pipe = stage.load_base()
        stage.check(pipe, self.class_labels)
        offers = {"image shape": pipe.sample_shape, "number of classes": pipe.num_classes}
        for name, demanded in demands.items():
            if None not in (demanded, offers[name]) and offers[name] != demanded:
                raise ValueError(
                    f"The two stages do not fit together: the {name} of the first is {offers[name]}, but the upsampler "
                    f"is made for {demanded}."
                )
        self._draw(pipe, stage, 0, directory, "base", lambda part: {"batch_size": len(part)})

    def draw_upsampled(self, stage: Stage, directory: Path, low_res_dir: Path) -> None:
        """Upsamples all images of `low_res_dir` into `directory`."""

        def inputs(part: list[Request]) -> dict[str, Any]:
            return {"image": [read_image(low_res_dir / request.path) for request in part], **stage.options}

        self._draw(stage.load_upsampler(), stage, 1, directory, "upsampler", inputs)

    def _draw(
        self,
        pipe: ClassifierGuidedPipeline,
        stage: Stage,
        stage_number: int,
        directory: Path,
        name: str,
        inputs: Callable[[list[Request]], dict[str, Any]],
    ) -> None:
        pipe.to(self.device)
        pipe.set_progress_bar_config(desc="steps", leave=False)
        with tqdm(total=len(self.requests), desc=name, unit="image") as progress_bar:
            for first in range(0, len(self.requests), self.batch_size):
                part = self.requests[first : first + self.batch_size]
                labels = [request.class_label for request in part]
                images = pipe(
                    class_labels=None if None in labels else labels,
                    num_inference_steps=stage.num_inference_steps,
                    classifier_scale=stage.classifier_scale,
                    generator=[request.generator(self.seed, stage_number) for request in part],
                    **inputs(part),
                ).images
                for request, image in zip(part, images):
                    path = directory / request.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.save(path)
                progress_bar.update(len(part))

    def make_grid(self, directory: Path, low_res_dir: Path | None) -> Image.Image:
        """The first images of the first classes, a row per class, each beside its low-resolution one if there is any."""
        folders = [directory] if low_res_dir is None else [low_res_dir, directory]
        labels = self.class_labels[:GRID_CLASSES]
        rows = [
            [
                read_image(folder / request.path)
                for request in self.requests
                if request.class_label == label and request.number < GRID_IMAGES
                for folder in folders
            ]
            for label in labels
        ]
        return image_grid(
            rows,
            row_labels=() if labels == [None] else [str(label) for label in labels],
            column_labels=() if low_res_dir is None else ["low", "high"] * (len(rows[0]) // 2),
            tile_size=min(MAX_TILE, max(MIN_TILE, *rows[0][-1].size)),
        )


def sample_to_folder(
    output_dir: str | Path,
    base: Stage,
    upsampler: Stage | None = None,
    class_labels: Sequence[int] | None = None,
    num_images_per_class: int = 8,
    seed: int = 0,
    batch_size: int = 8,
    device: str | None = None,
) -> None:
    """Draws images into a folder: a PNG file for each, in a subfolder per class, and a grid of some in `grid.png`.

    An image follows from the seed, its class and its number alone: it stays the same (but for rounding) in batches of
    another size, and beside other classes or more images. With an upsampler, the base pipeline first draws all images,
    which the upsampler then gets as 8-bit files; only one of the two is in memory at a time.

    Args:
        output_dir (`str` or `Path`): Written whole or not at all; a folder that this function wrote before is replaced.
        base ([`Stage`]): Draws images from noise.
        upsampler ([`Stage`], *optional*): Draws images of a higher resolution from those.
        class_labels (sequence of `int`, *optional*): The classes, each once; None for models that need no labels.
        num_images_per_class (`int`): At least 1.
        seed (`int`): At least 0.
        batch_size (`int`): Images at once, at least 1.
        device (`str`, *optional*): A GPU if there is one, by default.

    Raises:
        ValueError, TypeError, FileExistsError: with one sentence; nothing has been computed by then.
    """
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    run = Run(make_requests(class_labels, num_images_per_class), seed, batch_size, resolve_device(device))
    with atomic_directory(output_dir, replaces=GRID_FILE) as directory:
        if upsampler is None:
            low_res_dir = None
            run.draw_base(base, directory, demands={})
        else:
            low_res_dir = directory / ".low_res"
            demands = run.check_upsampler(upsampler)
            release_memory()
            run.draw_base(base, low_res_dir, demands)
            release_memory()
            run.draw_upsampled(upsampler, directory, low_res_dir)
        run.make_grid(directory, low_res_dir).save(directory / GRID_FILE)
        if low_res_dir is not None:
            shutil.rmtree(low_res_dir)


def release_memory() -> None:
    """Gives back what the stage that has just ended held: pipelines refer to themselves in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def read_image(path: Path) -> Image.Image:
    """A file as an image in memory."""
    with Image.open(path) as image:
        return image.copy()
