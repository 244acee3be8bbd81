"""`diffusers-cg restore`: images from a folder of what was measured of them."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from diffusers_cg_cli.edited import EditedSettings, label_of, labels_of, open_source, to_work
from diffusers_cg_cli.shared import Scale, open_guidance


class RestoreSettings(EditedSettings):
    """Draws images that fit small, blurred or gray ones, which are known by how they came about.

    Stopped and started again it goes on; `accelerate launch -m diffusers_cg restore ...` shares the work among several
    processes. grid.png shows some before and after.
    """

    operator: Annotated[list[str], Field(min_length=1)]
    """What made --images: BoxDownsampling, BicubicDownsampling, GaussianBlur, MotionBlur or Grayscale of
    diffusers_cg.restoration, then its options: GaussianBlur sigma=2."""

    method: Literal["ddnm", "diffpir", "pigdm", "dps"] = "ddnm"
    """Whose steps are taken."""

    num_inference_steps: PositiveInt | None = None
    """Steps; 100 by default, and 1,000 of dps, or as many as the model was trained with."""

    classifier_scale: Scale = 0.0
    """Scale of the classifier's guidance beside the measurement, 0 for none."""

    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much noise of the steps is drawn anew; 0.85 of ddnm and 1 of pigdm and dps by default, diffpir has none."""

    noise_std: Scale = 0.0
    """Standard deviation of noise in --images, as if they spanned -1 to 1; 8 bits alone make 0.002."""


def run(settings: RestoreSettings) -> None:
    from dataclasses import replace

    import torch

    from diffusers_cg.errors import InputError
    from diffusers_cg.generation import SavedPipeline
    from diffusers_cg.generation.edited_folder import edit_to_folder
    from diffusers_cg.generation.operator_choice import OperatorChoice
    from diffusers_cg.models import DTYPES
    from diffusers_cg.pipelines.restoration import RESTORATION_METHODS

    choice = OperatorChoice.parse(settings.operator)
    saved = SavedPipeline(
        settings.model,
        "ddim",
        settings.num_inference_steps,
        settings.classifier_scale,
        DTYPES[settings.dtype],
        settings.eta,
        guidance=open_guidance(settings),
    )
    pipe = saved.load()
    operator = choice.operator()
    if settings.num_inference_steps is None:
        saved = replace(saved, num_inference_steps=RESTORATION_METHODS[settings.method].steps(pipe.scheduler))
    target = label_of(settings.class_label, pipe)
    images = open_source(settings, pipe, target, needs_classes=saved.needed_classes(pipe) is not None)
    channels, *size = operator.forward(torch.zeros(1, *pipe.sample_shape)).shape[1:]
    if list(images.shape[1:3]) != size:
        height, width = images.shape[1:3]
        raise InputError(
            f"{choice.name} makes images of {size[1]}x{size[0]} of those of the model, but {images.source} holds images of "
            f"{width}x{height}."
        )
    saved.check(pipe, labels_of(images))
    processes = to_work(settings, pipe)
    of_method = {"method": settings.method, "noise_std": settings.noise_std}
    call = saved.call(pipe) | of_method

    def read(index):
        return images[index].load(channels)

    def restore(indices, generators):
        return pipe.restore(
            [read(index) for index in indices],
            operator,
            class_labels=labels_of(images, indices),
            generator=generators,
            **call,
        ).images

    follow_from = {"class_label": target, "operator": choice.settings, **of_method, "base": saved.settings(pipe)}
    edit_to_folder(
        settings.output, images, restore, read, follow_from, settings.seed, settings.batch_size, pipe.device
    )
    processes.print(f"Saved {settings.output}.")
