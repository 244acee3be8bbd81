"""`diffusers-cg nll`: bits per dimension of images."""

from pathlib import Path

from pydantic import PositiveInt

from diffusers_cg_cli.shared import BatchSettings


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

    from diffusers_cg.data import find_bad_images, open_folder
    from diffusers_cg.data.files import printable
    from diffusers_cg.data.images import resize_and_crop, to_tensor
    from diffusers_cg.diffusion import GaussianDiffusion, resolve_timesteps
    from diffusers_cg.errors import InputError
    from diffusers_cg.evaluation.bits_per_dimension import bits_per_dimension_to_folder
    from diffusers_cg.generation import BESIDE_SAMPLES, SavedPipeline, resolve_device

    pipe = SavedPipeline(settings.model).load().to(resolve_device(settings.device))
    unet, scheduler = pipe.unet, pipe.scheduler
    channels, height, width = pipe.sample_shape
    if height != width:
        raise InputError(f"Images are cropped to squares, but those of this model are {width}x{height}.")
    steps = settings.num_inference_steps or scheduler.config.num_train_timesteps
    diffusion = GaussianDiffusion.from_scheduler(scheduler, resolve_timesteps(scheduler, steps, None))

    labels = "required" if pipe.is_conditional else "ignored"
    images = open_folder(settings.data, labels, unet.config.num_class_embeds, leave_out=BESIDE_SAMPLES)
    for index, fault in find_bad_images(images).items():
        raise InputError(f"{images[index].name} cannot be read as an image ({fault}): mend or remove it.")

    def model(sample, timestep, class_labels):
        inputs = {} if class_labels is None else {"class_labels": class_labels}
        return unet(sample.to(unet.dtype), timestep, **inputs).sample

    def batches():
        for start in range(0, len(images), settings.batch_size):
            batch = [images[index] for index in range(start, min(start + settings.batch_size, len(images)))]
            pictures = [resize_and_crop(stored.load(channels), height, center_crop=True) for stored in batch]
            class_labels = [stored.label for stored in batch] if pipe.is_conditional else None
            yield (
                torch.stack([to_tensor(picture) for picture in pictures]).to(unet.device),
                None if class_labels is None else torch.tensor(class_labels, device=unet.device),
            )

    means = bits_per_dimension_to_folder(
        settings.output,
        diffusion,
        model,
        batches(),
        [printable(Path(image.content).relative_to(settings.data)) for image in images],
        diffusion.clip_range,
        settings.seed,
        model_name=settings.model,
        data_name=images.source,
    )
    print(
        f"{means.bits_per_dimension:.4f} bits per dimension (standard error {means.standard_error:.4f}), "
        f"{means.num_images} images, {means.num_timesteps} timesteps."
    )
    print(f"Saved {settings.output}.")
