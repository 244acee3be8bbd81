"""Bits per dimension of a folder of images under a saved pipeline: what `diffusers-cg nll` does."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusers_cg.data import ImageSet, find_bad_images, open_folder
from diffusers_cg.data.files import atomic_directory
from diffusers_cg.data.images import resize_and_crop, to_tensor
from diffusers_cg.diffusion import BitsPerDimension, GaussianDiffusion, bits_per_dimension, resolve_timesteps
from diffusers_cg.diffusion.seeds import seeded_generator
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.generation import Stage, resolve_device
from diffusers_cg.generation.folder import BESIDE_SAMPLES
from diffusers_cg.pipelines.classifier_guided import ClassifierGuidedPipeline
from diffusers_cg.pipelines.steps import clip_range


REPORT_FILE, TERMS_FILE, PLOT_FILE = "nll.json", "terms.npz", "nll.png"


@dataclass(frozen=True)
class Likelihood:
    """Means over images, in bits per dimension.

    Args:
        bits_per_dimension (`float`): The bound: the sum of all terms and the prior.
        standard_error (`float`): Of that mean, over the images; 0 for one image.
        prior (`float`): The part that no model can change.
        num_images, num_timesteps, seed (`int`): What it was measured with.
        model, data (`str`): What was measured.
    """

    bits_per_dimension: float
    standard_error: float
    prior: float
    num_images: int
    num_timesteps: int
    seed: int
    model: str
    data: str


def likelihood_to_folder(
    output_dir: str | Path,
    model: str,
    data_dir: str | Path,
    num_inference_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    device: str | None = None,
) -> Likelihood:
    """Measures the variational bound of images, all timesteps of each, into `nll.json`, `terms.npz` and `nll.png`.

    Images are converted to the model's channels, and resized and cropped in the middle as for training. Their noise
    follows from the seed and their place in the folder alone. The terms are those of [`BitsPerDimension`], with the
    `timesteps` (T,) and `files` (N,) that they belong to.

    Args:
        output_dir (`str` or `Path`): Written whole or not at all; a folder that this function wrote before is replaced.
        model (`str`): Folder or Hub name of a pipeline that draws from noise.
        data_dir (`str` or `Path`): Images at any depth; for a class-conditional unet one subfolder for each class, in
            the order of their numbers.
        num_inference_steps (`int`, *optional*): The bound of the process with as many timesteps; all by default.
        seed (`int`): At least 0.
        batch_size (`int`): Images at once, at least 1.
        device (`str`, *optional*): A GPU if there is one, by default.

    Raises:
        ValueError, InputError, OSError: with one sentence; nothing has been computed by then.
        MissingExtraError: if matplotlib is not installed.
    """
    for name, value, least in (("seed", seed, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}, got {value}.")
    import_extra("matplotlib.figure", "eval")  # before hours of work, not after
    with atomic_directory(output_dir, replaces=REPORT_FILE) as directory:
        pipe = Stage(model).load_base().to(resolve_device(device))
        images = find_images(Path(data_dir), pipe.unet.config.num_class_embeds)
        scheduler = pipe.scheduler
        steps = scheduler.config.num_train_timesteps if num_inference_steps is None else num_inference_steps
        diffusion = GaussianDiffusion.from_scheduler(scheduler, resolve_timesteps(scheduler, steps, None))
        terms = measure(pipe, diffusion, images, seed, batch_size)

        total = terms.total.double()
        likelihood = Likelihood(
            bits_per_dimension=total.mean().item(),
            standard_error=total.std().item() / len(images) ** 0.5 if len(images) > 1 else 0.0,
            prior=terms.prior.double().mean().item(),
            num_images=len(images),
            num_timesteps=len(diffusion.timesteps),
            seed=seed,
            model=str(model),
            data=str(data_dir),
        )
        (directory / REPORT_FILE).write_text(json.dumps(asdict(likelihood), indent=2) + "\n")
        np.savez(
            directory / TERMS_FILE,
            timesteps=diffusion.timesteps.numpy(),
            files=np.array([str(Path(image.name).relative_to(data_dir)) for image in images]),
            total=terms.total.numpy(),
            **{name: tensor.numpy() for name, tensor in vars(terms).items()},
        )
        plot_terms(diffusion.timesteps.tolist(), terms, likelihood.bits_per_dimension, directory / PLOT_FILE)
    return likelihood


def find_images(directory: Path, num_classes: int | None) -> ImageSet:
    """All images of a folder, with their labels for a class-conditional model.

    Raises:
        InputError: if there is no such folder, it holds no images or not as many classes as the model knows, or a file
            cannot be read as an image.
    """
    if not directory.is_dir():
        raise InputError(f"There is no folder {directory}: pass a folder of images.")
    labels = "ignored" if num_classes is None else "required"
    images = open_folder(directory, labels, num_classes, leave_out=BESIDE_SAMPLES)
    for index, fault in find_bad_images(images).items():
        raise InputError(f"{images[index].name} cannot be read as an image ({fault}): mend or remove it.")
    return images


def measure(
    pipe: ClassifierGuidedPipeline,
    diffusion: GaussianDiffusion,
    images: ImageSet,
    seed: int,
    batch_size: int,
) -> BitsPerDimension:
    """The terms of all images (N, T), on the CPU.

    Raises:
        ValueError: if the unet's images are not square.
    """
    unet = pipe.unet
    channels, height, width = pipe.sample_shape
    if height != width:
        raise InputError(f"Images are cropped to squares, but those of this model are {width}x{height}.")
    parts = []
    with tqdm(total=len(images) * len(diffusion.timesteps), desc="Bits per dimension", unit="term") as bar:
        for start in range(0, len(images), batch_size):
            batch = [images[index] for index in range(start, min(start + batch_size, len(images)))]
            pictures = [resize_and_crop(stored.load(channels), height, center_crop=True) for stored in batch]
            labels = None
            if images.labels is not None:
                labels = torch.tensor([stored.label for stored in batch], device=unet.device)

            def model(sample: torch.Tensor, timestep: torch.Tensor, labels=labels) -> torch.Tensor:
                bar.update(len(sample))
                of_classes = {} if labels is None else {"class_labels": labels}
                return unet(sample.to(unet.dtype), timestep, **of_classes).sample

            clean_images = torch.stack([to_tensor(picture) for picture in pictures]).to(unet.device)
            generators = [seeded_generator(seed, start + i) for i in range(len(batch))]
            terms = bits_per_dimension(diffusion, model, clean_images, generators, clip_range(pipe.scheduler))
            parts.append({name: tensor.cpu() for name, tensor in vars(terms).items()})
    return BitsPerDimension(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def plot_terms(timesteps: list[int], terms: BitsPerDimension, mean: float, path: Path) -> None:
    """Means over images of the terms, and of the errors behind them, by timestep."""
    figure = import_extra("matplotlib.figure", "eval").Figure(figsize=(9, 4), layout="constrained")
    bound, errors = figure.subplots(1, 2)
    bound.plot(timesteps, terms.vb.mean(dim=0).tolist(), marker=".", label="term")
    bound.set(title=f"{mean:.4f} bits per dimension", ylabel="bits per dimension")
    errors.plot(timesteps, terms.mse.mean(dim=0).tolist(), marker=".", label="noise")
    errors.plot(timesteps, terms.xstart_mse.mean(dim=0).tolist(), marker=".", label="clean image")
    errors.set(title="mean squared error of the prediction")
    errors.legend()
    for axes in (bound, errors):
        axes.set(xlabel="timestep (noise level)", yscale="log")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
