"""A page to try a model on: what `diffusers-cg demo` opens, and what a Space shows."""

import html
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image, ImageChops

from diffusers_cg.data.images import convert_channels, load_image, resize_and_crop
from diffusers_cg.data.text import in_markdown
from diffusers_cg.diffusion import seeded_generator
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.generation import GuidanceFile, SavedPipeline, SchedulerChoice, resolve_device
from diffusers_cg.generation.saved_pipeline import PIPELINES
from diffusers_cg.pipelines import ClassifierGuidedInpaintPipeline, ClassifierGuidedPipeline


if TYPE_CHECKING:
    import gradio


MAX_IMAGES = 16
MAX_RESAMPLING = 20
MIN_TILE = 128
MIN_CANVAS = 384  # to draw on
SCALES = (0, 0.5, 1, 2, 4, 8)  # of the second tab, times the model's own
PREVIEWS_PER_RUN = 25  # more would keep the page busy rather than the model


# ------------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Preview:
    """The images after a step: noisy until the last one."""

    step: int
    num_steps: int
    images: list[Image.Image]

    def __str__(self) -> str:
        return "Done." if self.step == self.num_steps else f"Step {self.step} of {self.num_steps}"


class DemoModel:
    """A pipeline, by both algorithms and for inpainting, that shows its images step by step.

    Args:
        pipe ([`ClassifierGuidedPipeline`]): Draws from noise.
        scheduler ([`SchedulerChoice`], *optional*): In place of the saved one, for its algorithm.
        guidance ([`GuidanceFile`], *optional*): In place of the classifier's; scales multiply it.
    """

    def __init__(
        self,
        pipe: ClassifierGuidedPipeline,
        scheduler: SchedulerChoice | None = None,
        guidance: GuidanceFile | None = None,
    ):
        components = pipe.components
        if scheduler is not None:
            components["solver"] = None  # its options are none of another scheduler's
        self.pipes = {name: PIPELINES[name](**components, **pipe.parameters) for name in ("ddpm", "ddim")}
        if scheduler is not None:
            stepped = self.pipes[scheduler.sampler]
            stepped.scheduler = scheduler.of(stepped.scheduler)
        self.inpaint_pipe = ClassifierGuidedInpaintPipeline(**self.pipes["ddpm"].components, **pipe.parameters)
        self.guidance = None if guidance is None else guidance.load(pipe)
        self.num_classes = pipe.num_classes if guidance is None else pipe.num_classes or guidance.num_classes(pipe)
        for one in (*self.pipes.values(), self.inpaint_pipe):
            one.set_progress_bar_config(disable=True)

    @classmethod
    def load(
        cls,
        path: str,
        device: str | None = None,
        scheduler: SchedulerChoice | None = None,
        guidance: GuidanceFile | None = None,
    ) -> "DemoModel":
        """That of a folder or a name on the Hub, on a GPU if there is one.

        Args:
            path (`str`): Folder, or name on the Hub.
            device (`str`, *optional*): Where it draws.
            scheduler ([`SchedulerChoice`], *optional*): In place of the saved one.
            guidance ([`GuidanceFile`], *optional*): In place of the classifier's.

        Raises:
            InputError: if there is no such pipeline, or it upsamples, or the others cannot be had with it.
        """
        model = cls(SavedPipeline(path).load().to(resolve_device(device)), scheduler, guidance)
        for pipe in model.pipes.values():
            pipe.check_call(class_labels=0 if model.class_names else None, guidance=model.guidance)
        return model

    @property
    def pipe(self) -> ClassifierGuidedPipeline:
        """Either pipeline: they share their models."""
        return self.pipes["ddim"]

    @property
    def is_guided(self) -> bool:
        return self.pipe.classifier is not None or self.guidance is not None

    @property
    def class_names(self) -> list[str]:
        """A name for every class, its number where it has none; nothing where a call takes no classes."""
        if self.num_classes is None:
            return []
        return self.pipe.class_names or [str(label) for label in range(self.num_classes)]

    @property
    def steps_of(self) -> dict[str, str]:
        """What the steps of each algorithm are called."""
        name = type(self.pipe.scheduler).__name__.removesuffix("Scheduler")
        return {"ddim": name, "ddpm": "DDPM"}

    def default(self, setting: Literal["num_inference_steps", "classifier_scale"], algorithm: str) -> float:
        """What is saved with the model; a guidance of its own goes as far as it says."""
        if setting == "classifier_scale" and self.guidance is not None:
            return 1.0
        pipe = self.pipes[algorithm]
        if setting == "num_inference_steps":
            return pipe.saved_num_inference_steps(pipe.scheduler)
        return pipe.config[f"{algorithm}_{setting}"]

    def draw(
        self,
        class_label: int | None,
        classifier_scale: float | Sequence[float] | None,
        num_inference_steps: float,
        algorithm: Literal["ddpm", "ddim"],
        seed: float,
        num_images: float = 1,
    ) -> Iterator[Preview]:
        """Draws images of one scale, each from its own noise, or the same noise at several scales.

        Args:
            class_label (`int`, *optional*): None for a model that needs none.
            classifier_scale (`float` or sequence of `float`): One for all images, or one per image.
            num_inference_steps, seed, num_images (`float`): As the page's fields give whole numbers.
            algorithm (`"ddpm"` or `"ddim"`): Algorithm 1 or 2.

        Returns:
            iterator of [`Preview`]: After every step, or every few; the last images are clean.

        Raises:
            InputError: with one sentence for the person on the page, before anything is computed.
        """
        num_images = _whole_number("The number of images", num_images, 1, MAX_IMAGES)
        if isinstance(classifier_scale, Sequence):
            scales, numbers = list(classifier_scale), [0] * len(classifier_scale)
        else:
            scales, numbers = [classifier_scale] * num_images, range(num_images)
        pipe = self.pipes[algorithm]
        return _previews(pipe, **self._checked_call(pipe, class_label, scales, num_inference_steps, seed, numbers))

    def fill(
        self,
        image: Image.Image | None,
        mask_image: Image.Image | None,
        class_label: int | None,
        classifier_scale: float | None,
        num_inference_steps: float,
        jump_n_sample: float,
        seed: float,
    ) -> Iterator[Preview]:
        """Fills a part of an image, by RePaint on Algorithm 1's steps.

        Args:
            image (`PIL.Image.Image`, *optional*): Of any size and mode; as [`fit`] makes it, it is kept outside the mask.
            mask_image (`PIL.Image.Image`, *optional*): In mode L, of the same size: white is to be filled. A pixel of the
                model's is if at least half of it is white.
            jump_n_sample (`float`): How often steps are taken; 1 is never again.
            class_label, classifier_scale, num_inference_steps, seed: As [`draw`] takes them.

        Returns:
            iterator of [`Preview`]: As of [`draw`]; steps are counted up and down.

        Raises:
            InputError: with one sentence for the person on the page, before anything is computed.
        """
        jump_n_sample = _whole_number("The resampling", jump_n_sample, 1, MAX_RESAMPLING)
        call = self._checked_call(
            self.inpaint_pipe, class_label, [classifier_scale], num_inference_steps, seed, numbers=[0]
        )
        if image is None:
            raise InputError("There is no image to fill: upload one, or let the model draw one.")
        if mask_image is None or not (mask := self._fit_sides(mask_image)).point(lambda value: value >= 128).getbbox():
            raise InputError("There is nothing to fill: cover some of the image with the brush.")
        if mask_image.size != image.size:
            raise InputError(f"The mask must be of the image's size {image.size}, got {mask_image.size}.")
        return _previews(
            self.inpaint_pipe, image=self.fit(image), mask_image=mask, jump_n_sample=jump_n_sample, **call
        )

    def fit(self, image: Image.Image) -> Image.Image:
        """An image of any size and mode in the model's channels and size, cropped as in training."""
        return self._fit_sides(convert_channels(image, self.pipe.sample_shape[0]))

    def _fit_sides(self, image: Image.Image) -> Image.Image:
        _, height, width = self.pipe.sample_shape
        if image.width * height == image.height * width and image.width % width == 0:  # as the page enlarges them
            return image.resize((width, height), Image.Resampling.BOX)
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        return resize_and_crop(image, side, center_crop=True).crop((left, top, left + width, top + height))

    def _checked_call(
        self,
        pipe: ClassifierGuidedPipeline,
        class_label: int | None,
        scales: list[float | None],
        num_inference_steps: float,
        seed: float,
        numbers: Sequence[int],
    ) -> dict[str, Any]:
        """Keywords of a call that draws an image at each of some scales, from the noise of its number."""
        seed = _whole_number("The seed", seed, 0, 2**32 - 1)
        num_inference_steps = _whole_number("The number of steps", num_inference_steps, 1, 1000)
        if None in scales:
            raise InputError("The scale must be a number of at least 0.")
        call = {
            "class_labels": None if class_label is None else [class_label] * len(scales),
            "batch_size": len(scales),
            "num_inference_steps": num_inference_steps,
            "classifier_scale": scales if self.is_guided and self.guidance is None else 0.0,
            "guidance": None if self.guidance is None else self.guidance * scales,
        }
        pipe.check_call(**call)
        return {**call, "generator": [seeded_generator(seed, k) for k in numbers]}


def _previews(pipe: ClassifierGuidedPipeline, **call: Any) -> Iterator[Preview]:
    """The images of a call after every step, or every few.

    The model works in a thread of its own. Whoever stops listening stops it.
    """
    previews, stop = queue.Queue(), threading.Event()
    shown = 0

    def on_step_end(pipe: ClassifierGuidedPipeline, step: int, _: torch.Tensor, tensors: dict) -> dict[str, Any]:
        nonlocal shown
        pipe._interrupt = stop.is_set()
        if step + 1 - shown >= pipe.num_timesteps // PREVIEWS_PER_RUN and step + 1 < pipe.num_timesteps:
            shown = step + 1
            images = pipe.image_processor.postprocess(tensors["latents"], output_type="pil")
            previews.put(Preview(step + 1, pipe.num_timesteps, _enlarged(images)))
        return {}

    def work() -> None:
        try:
            images = pipe(callback_on_step_end=on_step_end, **call).images
            previews.put(Preview(pipe.num_timesteps, pipe.num_timesteps, _enlarged(images)))
        except Exception as error:  # for the thread that listens
            previews.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            preview = previews.get()
            if isinstance(preview, Exception):
                raise preview
            yield preview
            if preview.step == preview.num_steps:
                return
    finally:
        stop.set()
        worker.join()


def _whole_number(what: str, number: float | None, least: int, most: int) -> int:
    if number is None or not float(number).is_integer() or not least <= number <= most:
        raise InputError(f"{what} must be a whole number from {least} to {most:,}.")
    return int(number)


def _enlarged(images: Sequence[Image.Image], least: int = MIN_TILE) -> list[Image.Image]:
    """Small images in whole multiples of their size, so that browsers do not blur them."""
    factor = -(-least // min(images[0].size))
    return [image.resize([side * factor for side in image.size], Image.Resampling.NEAREST) for image in images]


# ------------------------------------------------------------------------------------------------------------- the page


def build_page(model: DemoModel, title: str) -> "gradio.Blocks":
    """The page: one tab for images of a class, one for one noise across scales, one to fill a part of an image.

    Those who press a button while the model is at work wait in Gradio's queue.
    """
    gradio = import_extra("gradio", "demo")
    one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
    streamed = {"show_progress": "hidden", **one_at_a_time}

    @contextmanager
    def saying_what_is_wrong():
        try:
            yield
        except InputError as error:
            raise gradio.Error(html.escape(str(error), quote=False), print_exception=False) from error

    def show(start, label, scale, *settings):
        with saying_what_is_wrong():
            for preview in start(label, scale, *settings):
                scales = scale if isinstance(scale, list) else [scale] * len(preview.images)
                captioned = [(image, f"scale {each:g}") for image, each in zip(preview.images, scales)]
                yield captioned if model.is_guided else preview.images, str(preview)

    def draw(*settings):
        yield from show(model.draw, *settings)

    def draw_across_scales(label, steps, algorithm, seed):
        scale = model.default("classifier_scale", algorithm)
        yield from show(model.draw, label, [factor * scale for factor in SCALES], steps, algorithm, seed)

    def fill(drawing, *settings):
        drawing = drawing or {"background": None, "layers": []}  # of a canvas that nobody has touched
        strokes = [layer.getchannel("A") for layer in drawing["layers"]]
        mask_image = reduce(ImageChops.lighter, strokes) if strokes else None
        yield from show(partial(model.fill, drawing["background"], mask_image), *settings)

    def draw_canvas(label, seed):
        scale, steps = model.default("classifier_scale", "ddim"), model.default("num_inference_steps", "ddim")
        with saying_what_is_wrong():
            *_, last = model.draw(label, scale, steps, "ddim", seed)
        return _enlarged(last.images, MIN_CANVAS)[0]

    def upload_canvas(path):
        with saying_what_is_wrong():
            image = load_image(path, model.pipe.sample_shape[0], Path(path).name)
        return _enlarged([model.fit(image)], MIN_CANVAS)[0]

    def saved_defaults(algorithm):
        return model.default("num_inference_steps", algorithm), model.default("classifier_scale", algorithm)

    def controls(algorithms=("ddim", "ddpm")):
        label = gradio.Dropdown(
            [(name, label) for label, name in enumerate(model.class_names)],
            value=0 if model.class_names else None,
            label="Class",
            visible=bool(model.class_names),
        )
        algorithm = gradio.Radio(
            [(model.steps_of[each], each) for each in algorithms],
            value=algorithms[0],
            label="Sampler",
            visible=len(algorithms) > 1,
        )
        steps = gradio.Number(model.default("num_inference_steps", algorithms[0]), label="Steps")
        seed = gradio.Number(0, label="Seed")
        return label, algorithm, steps, seed

    def scale_field(algorithm):
        return gradio.Number(
            model.default("classifier_scale", algorithm),
            label=f"{'Classifier' if model.guidance is None else 'Guidance'} scale",
            visible=model.is_guided,
        )

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {in_markdown(title)}")
        with gradio.Tab("Sample"), gradio.Row():
            with gradio.Column(scale=1):
                label, algorithm, steps, seed = controls()
                scale = scale_field("ddim")
                count = gradio.Number(4, label=f"Images (up to {MAX_IMAGES})")
                button = gradio.Button("Draw", variant="primary")
            with gradio.Column(scale=2):
                status = gradio.Markdown("Choose, then press the button.", elem_id="sample-status")
                gallery = gradio.Gallery(label="Images", columns=4, format="png", elem_id="sample-images")
        algorithm.change(saved_defaults, algorithm, [steps, scale], api_visibility="private")
        button.click(
            draw, [label, scale, steps, algorithm, seed, count], [gallery, status], api_name="sample", **streamed
        )
        with gradio.Tab("One seed across scales", visible=model.is_guided), gradio.Row():
            with gradio.Column(scale=1):
                label, algorithm, steps, seed = controls()
                button = gradio.Button("Compare", variant="primary")
            with gradio.Column(scale=2):
                status = gradio.Markdown("The same noise, guided more from left to right.", elem_id="scales-status")
                gallery = gradio.Gallery(label="Images", columns=len(SCALES), format="png", elem_id="scales-images")
        algorithm.change(lambda algorithm: saved_defaults(algorithm)[0], algorithm, steps, api_visibility="private")
        button.click(
            draw_across_scales, [label, steps, algorithm, seed], [gallery, status], api_name="scales", **streamed
        )
        with gradio.Tab("Inpaint"), gradio.Row():
            with gradio.Column(scale=1, min_width=200):
                label, _, steps, seed = controls(["ddpm"])
                scale = scale_field("ddpm")
                resampling = gradio.Number(1, label=f"Resampling (1: quick, up to {MAX_RESAMPLING}: fits better)")
                button = gradio.Button("Fill", variant="primary")
            with gradio.Column(scale=2, min_width=300):
                with gradio.Row():
                    upload = gradio.UploadButton("Upload", file_types=["image"], min_width=100)
                    example = gradio.Button("Draw an image", min_width=100)
                canvas = gradio.ImageEditor(
                    type="pil",
                    format="png",  # others would change what is to be kept
                    label="Image",
                    height=330,
                    canvas_size=(MIN_CANVAS, MIN_CANVAS),
                    sources=[],
                    transforms=[],
                    layers=False,
                    brush=gradio.Brush(default_size=MIN_CANVAS // 8, colors=["#e02020"], color_mode="fixed"),
                    elem_id="inpaint-canvas",
                )
            with gradio.Column(scale=2, min_width=300):
                status = gradio.Markdown("Cover with the brush what is to be filled.", elem_id="inpaint-status")
                gallery = gradio.Gallery(label="Filled", columns=1, format="png", elem_id="inpaint-images")
        upload.upload(upload_canvas, upload, canvas, api_visibility="private")
        example.click(draw_canvas, [label, seed], canvas, api_name="canvas", **one_at_a_time)
        button.click(
            fill, [canvas, label, scale, steps, resampling, seed], [gallery, status], api_name="inpaint", **streamed
        )
    return page.queue()
