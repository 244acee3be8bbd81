"""`diffusers-cg nll`: bits per dimension of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusers_cg.errors import InputError
from diffusers_cg_cli.app import app
from diffusers_cg_cli.command import command
from diffusers_cg_cli.options import DEVICE, MODEL


if TYPE_CHECKING:
    from diffusers_cg.evaluation.bits_per_dimension import MeanBitsPerDimension


@app.command()
@command
def nll(
    model: Annotated[str, MODEL],
    data: Annotated[
        Path, typer.Option("--data", help="Folder of images; of a subfolder per class if the unet is conditional.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; a report that is there is replaced.")],
    num_inference_steps: Annotated[
        int | None, typer.Option("--num_inference_steps", help="Timesteps of the process; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="What the noise follows from.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch_size", help="Images at once; changes no number.")] = 8,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Measures bits per dimension of images by the variational bound: nll.json, terms.npz and nll.png.

    Images are resized and cropped in the middle as for training.
    """
    means = measure_folder(output, model, data, num_inference_steps, seed, batch_size, device)
    print(
        f"{means.bits_per_dimension:.4f} bits per dimension (standard error {means.standard_error:.4f}), "
        f"{means.num_images} images, {means.num_timesteps} timesteps."
    )
    print(f"Saved {output}.")


def measure_folder(
    output: Path,
    model: str,
    data: Path,
    num_inference_steps: int | None,
    seed: int,
    batch_size: int,
    device: str | None,
) -> "MeanBitsPerDimension":
    """[`bits_per_dimension_to_folder`] of a saved pipeline and a folder of images.

    Raises:
        InputError: if the pipeline does not draw square images from noise, or the images are not as it needs them.
    """
    import torch

    from diffusers_cg.data.images import load_image, resize_and_crop, to_tensor
    from diffusers_cg.diffusion import GaussianDiffusion, clip_range, resolve_timesteps
    from diffusers_cg.evaluation.bits_per_dimension import bits_per_dimension_to_folder
    from diffusers_cg.generation import SavedPipeline, resolve_device

    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, got {batch_size}.")
    pipe = SavedPipeline(model).load().to(resolve_device(device))
    unet, scheduler = pipe.unet, pipe.scheduler
    channels, height, width = pipe.sample_shape
    if height != width:
        raise InputError(f"Images are cropped to squares, but those of this model are {width}x{height}.")
    files, class_labels = find_images(data, unet.config.num_class_embeds)
    steps = scheduler.config.num_train_timesteps if num_inference_steps is None else num_inference_steps

    def network(sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        of_classes = {} if labels is None else {"class_labels": labels}
        return unet(sample.to(unet.dtype), timestep, **of_classes).sample

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for start in range(0, len(files), batch_size):
            batch = slice(start, start + batch_size)
            images = [resize_and_crop(load_image(file, channels), height, center_crop=True) for file in files[batch]]
            labels = None if class_labels is None else torch.tensor(class_labels[batch], device=unet.device)
            yield torch.stack([to_tensor(image) for image in images]).to(unet.device), labels

    return bits_per_dimension_to_folder(
        output,
        GaussianDiffusion.from_scheduler(scheduler, resolve_timesteps(scheduler, steps, None)),
        network,
        batches(),
        [str(file.relative_to(data)) for file in files],
        clip_range(scheduler),
        seed,
        model_name=model,
        data_name=str(data),
    )


def find_images(directory: Path, num_classes: int | None) -> tuple[list[Path], list[int] | None]:
    """All images of a folder and, for a class-conditional model, their labels.

    Raises:
        InputError: if there is no such folder, it holds no images or not as many classes as the model knows, or a file
            cannot be read as an image.
    """
    from tqdm.auto import tqdm

    from diffusers_cg.data.images import image_fault, list_class_folders, list_files, list_images

    if not directory.is_dir():
        raise InputError(f"There is no folder {directory}: pass a folder of images.")
    if num_classes is None:
        files, class_labels = list_images(directory), None
    else:
        folders = list_class_folders(directory)
        if len(folders) != num_classes:
            raise InputError(
                f"{directory} has {len(folders)} subfolders, but the model knows {num_classes} classes: it must have "
                "one of images for each, sorted as for training."
            )
        labelled = [(file, label) for label, folder in enumerate(folders) for file in list_files(folder)]
        files, class_labels = ([pair[part] for pair in labelled] for part in (0, 1))
    if not files:
        raise InputError(f"{directory} holds no images.")
    for file in tqdm(files, desc="Checking images", unit="file", leave=False):
        fault = image_fault(file)
        if fault is not None:
            raise InputError(f"{file} cannot be read as an image ({fault}): mend or remove it.")
    return files, class_labels
