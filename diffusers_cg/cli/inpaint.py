"""`diffusers-cg inpaint`: holes in the images of a folder, filled."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from diffusers_cg_cli.edited import EditedSettings, label_of_all, open_source, reader, to_work
from diffusers_cg_cli.shared import open_guidance


class InpaintSettings(EditedSettings):
    """Fills a part of images, by RePaint or DDNM's projection; all else stays as it is.

    Images, and masks with them, are resized and cropped in the middle as for training. Stopped and started again it goes on;
    `accelerate launch -m diffusers_cg inpaint ...` shares the work among several processes. grid.png shows some before and after.
    """

    masks: Path
    """White where images are to be filled: a file for all, or a folder of one for each, of the same name."""

    method: Literal["repaint", "ddnm"] = "repaint"
    """What is known is drawn at each noise level, or put into the clean image that the unet sees."""

    jump_length: PositiveInt = 10
    """Steps that noise is added back for at a time."""

    jump_n_sample: PositiveInt = 10
    """How often steps are taken; 1 is never again."""


def run(settings: InpaintSettings) -> None:
    from diffusers_cg.data.images import load_image, resize_and_crop
    from diffusers_cg.generation import SavedPipeline
    from diffusers_cg.generation.edited_folder import edit_to_folder, files_beside
    from diffusers_cg.models import DTYPES
    from diffusers_cg.pipelines import ClassifierGuidedInpaintPipeline

    saved = SavedPipeline(
        settings.model,
        "ddpm",
        settings.num_inference_steps,
        settings.classifier_scale,
        DTYPES[settings.dtype],
        settings.eta,
        guidance=open_guidance(settings),
    )
    pipe = saved.load(ClassifierGuidedInpaintPipeline)
    target = label_of_all(settings, pipe)
    has_classes = target is None and saved.needed_classes(pipe) is not None
    images = open_source(settings, pipe, has_classes)
    masks, read = files_beside(images, settings.masks), reader(images, pipe)
    saved.check(pipe, images.labels.tolist() if has_classes else None if target is None else [target])
    processes = to_work(settings, pipe)
    call = saved.call(pipe) | {word: getattr(settings, word) for word in ("method", "jump_length", "jump_n_sample")}

    def read_mask(index):
        return resize_and_crop(load_image(masks[index], 1), pipe.sample_shape[-1], center_crop=True)

    def before(index):
        image = read(index)
        image.paste(
            128 if image.mode == "L" else (128, 128, 128),
            mask=read_mask(index).point(lambda value: 255 * (value > 127)),
        )
        return image

    def fill(indices, generators):
        labels = [images.label(index) if has_classes else target for index in indices]
        return pipe(
            [read(index) for index in indices],
            [read_mask(index) for index in indices],
            None if None in labels else labels,
            generator=generators,
            **call,
        ).images

    words = ("method", "jump_length", "jump_n_sample")
    follow_from = {"class_label": target, **{word: getattr(settings, word) for word in words}}
    follow_from["base"] = saved.settings(pipe)
    edit_to_folder(settings.output, images, fill, before, follow_from, settings.seed, settings.batch_size)
    processes.print(f"Saved {settings.output}.")
