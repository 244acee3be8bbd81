"""`diffusers-cg nll`: bits per dimension of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from diffusers_cg_cli.shared import BatchSettings


if TYPE_CHECKING:
    from diffusers_cg.data.sources import FolderImages


class NLLSettings(BatchSettings):
    """Measures bits per dimension of images by the variational bound: nll.json, terms.npz and nll.png.

    Images are resized and cropped in the middle as for training.
    """

    data: Path
    """Folder of images; of a subfolder per class if the unet is conditional."""

    output: Path
    """Folder to write; a report that is there is replaced."""

    num_inference_steps: PositiveInt | None = None
    """Timesteps of the process; all by default."""


def run(settings: NLLSettings) -> None:
    import torch

    from diffusers_cg.data.images import resize_and_crop, to_tensor
    from diffusers_cg.diffusion import GaussianDiffusion, clip_range, resolve_timesteps
    from diffusers_cg.errors import InputError
    from diffusers_cg.evaluation.bits_per_dimension import bits_per_dimension_to_folder
    from diffusers_cg.generation import SavedPipeline, resolve_device

    pipe = SavedPipeline(settings.model).load().to(resolve_device(settings.device))
    unet, scheduler = pipe.unet, pipe.scheduler
    channels, height, width = pipe.sample_shape
    if height != width:
        raise InputError(f"Images are cropped to squares, but those of this model are {width}x{height}.")
    images = open_folder_of(settings.data, unet.config.num_class_embeds)
    steps = settings.num_inference_steps or scheduler.config.num_train_timesteps

    def network(sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        of_classes = {} if labels is None else {"class_labels": labels}
        return unet(sample.to(unet.dtype), timestep, **of_classes).sample

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for start in range(0, len(images), settings.batch_size):
            batch = [images[index] for index in range(start, min(start + settings.batch_size, len(images)))]
            cropped = [resize_and_crop(stored.load(channels), height, center_crop=True) for stored in batch]
            labels = None
            if images.labels is not None:
                labels = torch.tensor([stored.label for stored in batch], device=unet.device)
            yield torch.stack([to_tensor(image) for image in cropped]).to(unet.device), labels

    means = bits_per_dimension_to_folder(
        settings.output,
        GaussianDiffusion.from_scheduler(scheduler, resolve_timesteps(scheduler, steps, None)),
        network,
        batches(),
        [str(Path(stored.name).relative_to(settings.data)) for stored in images],
        clip_range(scheduler),
        settings.seed,
        model_name=settings.model,
        data_name=str(settings.data),
    )
    print(
        f"{means.bits_per_dimension:.4f} bits per dimension (standard error {means.standard_error:.4f}), "
        f"{means.num_images} images, {means.num_timesteps} timesteps."
    )
    print(f"Saved {settings.output}.")


def open_folder_of(data: Path, num_classes: int | None) -> "FolderImages":
    """The images of a folder, with labels for a class-conditional model, all of which can be read.

    Raises:
        InputError: if one cannot, or the folder does not hold as many classes as the model knows.
    """
    from diffusers_cg.data import find_bad_images, open_folder
    from diffusers_cg.errors import InputError
    from diffusers_cg.generation import BESIDE_SAMPLES

    labels = "ignored" if num_classes is None else "required"
    images = open_folder(data, labels, num_classes, leave_out=BESIDE_SAMPLES)
    for index, fault in find_bad_images(images).items():
        raise InputError(f"{images[index].name} cannot be read as an image ({fault}): mend or remove it.")
    return images
