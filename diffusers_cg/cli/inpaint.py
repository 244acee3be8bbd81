"""`diffusers-cg inpaint`: holes in the images of a folder, filled."""

from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from diffusers_cg_cli.edited import EditedSettings, label_of, labels_of, open_source, to_work
from diffusers_cg_cli.shared import open_guidance, side_of_squares


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
        guidance=open_guidance(settings),
    )
    pipe = saved.load(ClassifierGuidedInpaintPipeline)
    channels, side = pipe.sample_shape[0], side_of_squares(pipe)
    target = label_of(settings.class_label, pipe)
    images = open_source(settings, pipe, target, needs_classes=saved.needed_classes(pipe) is not None)
    masks = files_beside(images, settings.masks)
    saved.check(pipe, labels_of(images))
    processes = to_work(settings, pipe)
    of_method = {word: getattr(settings, word) for word in ("method", "jump_length", "jump_n_sample")}
    call = saved.call(pipe) | of_method

    def read(index):
        return resize_and_crop(images[index].load(channels), side, center_crop=True)

    def read_mask(index):
        return resize_and_crop(load_image(masks[index], 1), side, center_crop=True)

    def before(index):
        image = read(index)
        image.paste(
            128 if image.mode == "L" else (128, 128, 128),
            mask=read_mask(index).point(lambda value: 255 * (value > 127)),
        )
        return image

    def fill(indices, generators):
        return pipe(
            [read(index) for index in indices],
            [read_mask(index) for index in indices],
            labels_of(images, indices),
            generator=generators,
            **call,
        ).images

    mask_of_all = sha256(settings.masks.read_bytes()).hexdigest()[:16] if settings.masks.is_file() else None
    follow_from = {"class_label": target, "mask": mask_of_all, **of_method, "base": saved.settings(pipe)}
    edit_to_folder(settings.output, images, fill, before, follow_from, settings.seed, settings.batch_size, pipe.device)
    processes.print(f"Saved {settings.output}.")
