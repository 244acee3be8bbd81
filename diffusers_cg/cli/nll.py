"""`diffusers-cg nll`: bits per dimension of images."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from diffusers_cg_cli.shared import BatchSettings, ImageSettings, side_of_squares


if TYPE_CHECKING:
    from diffusers_cg.data import StoredImage


class NLLSettings(ImageSettings, BatchSettings):
    """Measures bits per dimension of images by the variational bound: nll.json, terms.npz and nll.png.

    Images are resized and cropped in the middle as for training.
    """

    data: str
    """Images: a folder (of a subfolder per class, called as the model calls it, if the unet is conditional), an .npz (arr_0,
    arr_1 the labels), or a dataset: its folder, file or Hub name."""

    output: Path
    """Folder to write; a report that is there is replaced."""

    num_inference_steps: PositiveInt | None = None
    """Timesteps of the process; all by default."""

    class_from_file_name: bool = False
    """The class of a file is what stands before the first _ in its name, not its folder."""

    label_column: str | None = None
    """Of a dataset; by default its only one of class labels, or else label or cls."""


def run(settings: NLLSettings) -> None:
    import torch

    from diffusers_cg.data import find_bad_images, open_images
    from diffusers_cg.data.images import resize_and_crop, to_tensor
    from diffusers_cg.diffusion import GaussianDiffusion, resolve_timesteps
    from diffusers_cg.errors import InputError
    from diffusers_cg.evaluation.bits_per_dimension import bits_per_dimension_to_folder
    from diffusers_cg.generation import BESIDE_SAMPLES, SavedPipeline, resolve_device
    from diffusers_cg.generation.sample_folder import is_by_label

    pipe = SavedPipeline(settings.model).load().to(resolve_device(settings.device))
    unet, scheduler = pipe.unet, pipe.scheduler
    channels, side = pipe.sample_shape[0], side_of_squares(pipe)
    steps = settings.num_inference_steps or scheduler.config.num_train_timesteps
    diffusion = GaussianDiffusion.from_scheduler(scheduler, resolve_timesteps(scheduler, steps, None))

    num_classes, known_classes = unet.config.num_class_embeds, unet.config.get("class_names")
    if pipe.is_conditional and is_by_label(Path(settings.data)):
        known_classes = list(map(str, range(num_classes)))
    images = open_images(
        settings.data,
        "required" if pipe.is_conditional else "ignored",
        known_classes=known_classes,
        num_classes=num_classes if known_classes is None else None,
        image_range=settings.image_range,
        leave_out=BESIDE_SAMPLES,
        class_from_file_name=settings.class_from_file_name,
        split=settings.split,
        config_name=settings.config_name,
        image_column=settings.image_column,
        label_column=settings.label_column,
    )
    print(images.summary(), file=sys.stderr)
    for index, fault in find_bad_images(images).items():
        raise InputError(f"{images[index].name} cannot be read as an image ({fault}): mend or remove it.")

    def model(sample, timestep, class_labels):
        inputs = {} if class_labels is None else {"class_labels": class_labels}
        return unet(sample.to(unet.dtype), timestep, **inputs).sample

    def load(numbers):
        batch = [images[number] for number in numbers]
        pictures = [resize_and_crop(stored.load(channels), side, center_crop=True) for stored in batch]
        class_labels = [stored.label for stored in batch] if pipe.is_conditional else None
        return (
            torch.stack([to_tensor(picture) for picture in pictures]).to(unet.device),
            None if class_labels is None else torch.tensor(class_labels, device=unet.device),
        )

    means = bits_per_dimension_to_folder(
        settings.output,
        diffusion,
        model,
        load,
        [name_in_report(image, settings.data) for image in images],
        diffusion.clip_range,
        settings.seed,
        model_name=settings.model,
        data_name=images.source,
        image_range=settings.image_range,
        batch_size=settings.batch_size,
        device=unet.device,
    )
    print(
        f"{means.bits_per_dimension:.4f} bits per dimension (standard error {means.standard_error:.4f}), "
        f"{means.num_images} images, {means.num_timesteps} timesteps."
    )
    print(f"Saved {settings.output}.")


def name_in_report(image: "StoredImage", data: str) -> str:
    """The path of a file inside the folder; what else the image is called."""
    from diffusers_cg.data.files import printable

    if isinstance(image.content, str) and Path(image.content).is_relative_to(data):
        return printable(Path(image.content).relative_to(data))
    return image.name
