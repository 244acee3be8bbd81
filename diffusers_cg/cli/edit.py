"""`diffusers-cg edit`: the images of a folder, made over in another class."""

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from diffusers_cg_cli.edited import EditedSettings, label_of, labels_of, open_source, to_work
from diffusers_cg_cli.shared import Class, SteeredSettings, open_steering, side_of_squares


class EditSettings(EditedSettings, SteeredSettings):
    """Makes images over in another class: counterfactuals, and what an image is compared with.

    DDIM leads each back to noise, as far as --strength says, and it is drawn from there with guidance to --class_label. A
    conditional model is told the class that it comes from: its subfolder's, or --source_class. With --noise, noise is added
    to it instead, which --scheduler takes away. Images are resized and cropped in the middle as for training. Stopped and
    started again it goes on; `accelerate launch -m diffusers_cg edit ...` shares the work among several processes. grid.png
    shows some before and after.
    """

    strength: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the steps that are taken; 1 leaves nothing of an image."""

    noise: bool = False
    """Start from an image with noise added, not from the noise that DDIM would draw it from."""

    source_class: Class | None = None
    """Label or name of the class that all come from."""

    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Noise of DDIM's steps, 0 (default) to 1."""

    num_inversion_steps: PositiveInt | None = None
    """Steps of the whole way back to noise; as many as --num_inference_steps by default."""

    @model_validator(mode="after")
    def _check_noise(self) -> "EditSettings":
        for name in ("source_class", "num_inversion_steps"):
            if self.noise and getattr(self, name) is not None:
                raise ValueError(
                    f"--{name} is of the way back to noise, which --noise does not go: leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _check_scheduler(self) -> "EditSettings":
        if self.scheduler is not None and not self.noise:
            raise ValueError(
                "--scheduler goes with --noise: what DDIM leads back to noise, DDIM's steps draw from there"
            )
        return self


def run(settings: EditSettings) -> None:
    from diffusers_cg.data.images import resize_and_crop
    from diffusers_cg.errors import InputError
    from diffusers_cg.generation import SavedPipeline
    from diffusers_cg.generation.edited_folder import edit_to_folder
    from diffusers_cg.models import DTYPES

    scheduler, guidance = open_steering(settings)
    saved = SavedPipeline(
        settings.model,
        "ddim",
        settings.num_inference_steps,
        settings.classifier_scale,
        DTYPES[settings.dtype],
        settings.eta,
        scheduler=scheduler,
        guidance=guidance,
    )
    pipe = saved.load()
    channels, side = pipe.sample_shape[0], side_of_squares(pipe)
    target, source = label_of(settings.class_label, pipe), label_of(settings.source_class, pipe)
    if target is None and saved.needed_classes(pipe) is not None:
        raise InputError("--class_label is missing: name the class that images are to be made over in.")
    pipe.prepare_class_labels(source, None, "source_class")  # says what is wrong with it
    images = open_source(settings, pipe, source, needs_classes=pipe.needs_class and not settings.noise)
    saved.check(pipe, None if target is None else [target])
    processes = to_work(settings, pipe)
    call = saved.call(pipe) | {"strength": settings.strength}

    def read(index):
        return resize_and_crop(images[index].load(channels), side, center_crop=True)

    def edit(indices, generators):
        pictures = [read(index) for index in indices]
        labels = None if target is None else [target] * len(indices)
        if settings.noise:
            return pipe(labels, image=pictures, generator=generators, **call).images
        return pipe.edit(
            pictures,
            labels,
            source_labels=labels_of(images, indices),
            num_inversion_steps=settings.num_inversion_steps,
            generator=generators,
            **call,
        ).images

    words = ("strength", "noise", "num_inversion_steps")
    follow_from = {"class_label": target, "source_class": source, **{word: getattr(settings, word) for word in words}}
    follow_from["base"] = saved.settings(pipe)
    edit_to_folder(settings.output, images, edit, read, follow_from, settings.seed, settings.batch_size, pipe.device)
    processes.print(f"Saved {settings.output}.")
